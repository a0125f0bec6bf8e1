"""How often an interval over windows and draws covers the truth: simulated sweeps of known effects.

    python bench/coverage.py --json bench/results/coverage.json
    python bench/coverage.py --json FILE --quick

Each sweep measures S draws of one setting on the same W windows: draw + window + what is left over,
all with mean 0, so that the interval of ``qsweep.evaluate.draws.estimate`` should hold 0 in 95 of 100.
Windows and what is left over are normal, Student's with 3 degrees of freedom (heavy tails), or
exponential (skewed); a draw's effect is normal, as large as so many standard errors over windows.
With ``unequal`` windows hold from 20 to 511 tokens. Beside that interval stands the one of a single
draw, which covers windows alone, and pairs of settings whose draws have different seeds: of as many on
both sides, of all beside two, and of all beside one.
"""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from origin import write
from qsweep.evaluate.draws import Draws, Estimate, difference, estimate

DRAWS, WINDOWS = (2, 3, 5, 10), (8, 16, 64)
EFFECTS, LEFT_OVER = (0.0, 1.0, 3.0, 10.0), (0.3, 1.0, 2.0)
SHAPES = ("normal", "heavy", "skewed", "unequal")
TOKENS = 511
# How many draws the second setting has at most.
PAIRS = {"pair": None, "beside two": 2, "beside one": 1}


@dataclass(frozen=True)
class Case:
    """What is simulated.

    Attributes:
        draws: How many; ``windows``: on how many each is measured.
        effect: Standard deviation of a draw's effect, in standard errors over windows.
        left: That of what is left over, in those of windows.
        shape: What windows are drawn from.
    """

    draws: int
    windows: int
    effect: float
    left: float
    shape: str


def main() -> None:
    """Simulate, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweeps", type=int, default=2000, help="simulated, of each case")
    parser.add_argument("--quick", action="store_true", help="200 sweeps of few cases")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    sweeps = 200 if arguments.quick else arguments.sweeps
    rows = [covered(case, sweeps) for case in cases(quick=arguments.quick)]
    print_table(rows)
    write(
        arguments.json, "coverage of nominal 95 % over windows and draws", rows, ["numpy", "scipy"]
    )


def cases(*, quick: bool) -> Iterator[Case]:
    """All of them, or one in each corner."""
    if quick:
        yield from (Case(s, w, 3.0, 1.0, "heavy") for s in (2, 5) for w in (8, 64))
        return
    for parts in itertools.product(DRAWS, WINDOWS, EFFECTS, LEFT_OVER, SHAPES):
        yield Case(*parts)


def covered(case: Case, sweeps: int) -> dict[str, Any]:
    """How often each interval of a case covers 0, and how wide the pooled one is beside the best.

    ``reach`` is its mean half-width through that of who knows all variances, 1.96 standard errors.
    """
    rng = np.random.default_rng([case.draws, case.windows, round(10 * case.effect)])
    hits = dict.fromkeys(("pooled", "one draw", *PAIRS), 0)
    halves = []
    for _ in range(sweeps):
        counts, one, other = _sweep(case, rng)
        pooled = estimate(one, counts)
        halves.append(pooled.half())
        seeds = tuple(range(case.draws))
        apart = tuple(seed + case.draws for seed in seeds)
        found = {
            "pooled": pooled,
            "one draw": estimate(one[:1], counts),
            **{
                name: difference(Draws(one, seeds), Draws(other[:most], apart[:most]), counts)
                for name, most in PAIRS.items()
            },
        }
        for name, it in found.items():
            hits[name] += _holds_zero(it)
    known = (
        1 / case.windows
        + case.effect**2 / case.windows / case.draws
        + case.left**2 / case.windows / case.draws
    )
    return {
        **vars(case),
        "sweeps": sweeps,
        **{name: round(number / sweeps, 4) for name, number in hits.items()},
        "reach": round(float(np.mean(halves)) / (1.96 * known**0.5), 3),
    }


def _holds_zero(found: Estimate) -> bool:
    return abs(found.value) <= found.half()


def _sweep(case: Case, rng: Any) -> tuple[Any, Any, Any]:
    """Tokens of windows, and sums of two settings [draws, windows] on these."""
    shape = (case.draws, case.windows)
    counts = np.full(case.windows, float(TOKENS))
    if case.shape == "unequal":
        counts = rng.integers(20, TOKENS + 1, case.windows).astype(float)
    windows = _noise(case.shape, (1, case.windows), rng)
    found = []
    for _ in range(2):
        effects = case.effect / case.windows**0.5 * rng.standard_normal((case.draws, 1))
        left = case.left * _noise(case.shape, shape, rng)
        found.append((effects + windows + left) * counts)
    return counts, found[0], found[1]


def _noise(kind: str, shape: tuple[int, int], rng: Any) -> Any:
    """Of mean 0 and variance 1."""
    if kind == "skewed":
        return rng.standard_exponential(shape) - 1
    if kind in ("heavy", "unequal"):
        return rng.standard_t(3, shape) / 3**0.5
    return rng.standard_normal(shape)


def print_table(rows: list[dict[str, Any]]) -> None:
    """By draws, windows and shape: the least and the largest coverage over all effects."""
    head = f"{'draws':>5} {'windows':>7} {'shape':8}"
    print(
        f"{head} {'windows and draws':>19} {'pair, other seeds':>19} {'beside two':>19} "
        f"{'beside one':>19} {'one draw':>15} {'reach':>11}"
    )
    places = dict.fromkeys((row["draws"], row["windows"], row["shape"]) for row in rows)
    for place in places:
        own = [row for row in rows if (row["draws"], row["windows"], row["shape"]) == place]
        cells = [_span([row[name] for row in own], 100) for name in ("pooled", *PAIRS)]
        once = _span([row["one draw"] for row in own], 100)
        reach = _span([row["reach"] for row in own], 1)
        print(
            f"{place[0]:5} {place[1]:7} {place[2]:8} {' '.join(f'{cell:>17} %' for cell in cells)} "
            f"{once:>13} % {reach:>11}"
        )


def _span(values: list[float], scale: int) -> str:
    return f"{scale * min(values):.1f}-{scale * max(values):.1f}"


if __name__ == "__main__":
    main()
