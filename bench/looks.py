"""Do intervals hold that somebody looked at before deciding to stop, and what does stopping save?

    python bench/looks.py --json bench/results/looks.json
    python bench/looks.py --json FILE --quick

Coverage: of the confidence sequence that ``eval.until`` stops by, at all of its looks together, and
of Student's t looked at as often and once; of normal differences, of skewed and heavy-tailed ones, and
of the windows of a model's text, drawn without replacement. Savings: the windows that are read until
the interval is narrow enough, over many random orders of these windows, and how often the interval
that is then printed misses the figure of the whole text; the same for who stops by Student's t, and (``stopped``) of
texts without an end, where it is to be so many spreads of a window wide. Answers: what
the intervals of ``qsweep certify`` for right and wrong answers cover, over all outcomes that are
possible.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from origin import Clock, write
from parity import Bench, add_bench_arguments, model_directory
from qsweep.evaluate.equivalence import OfAnswers, OfScores
from qsweep.evaluate.intervals import half_width
from qsweep.evaluate.until import looks, measure_until, parse_until
from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.quantizers.rtn import RTN

RULES = ("ratio ±2 %", "ratio ±1 %", "ratio ±0.5 %", "kld ±0.002")
# Windows of a text that is long enough for every look that is asked of the sequence.
LONG = 512
SAMPLES = (12, 20, 50, 100, 200, 400)

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
DRAWS: dict[str, Draw] = {
    "normal": lambda rng, size: rng.normal(size=size),
    "Student's t, 3 degrees": lambda rng, size: rng.standard_t(3, size=size),
    "lognormal, skewness 0.95": lambda rng, size: rng.lognormal(0, 0.3, size) - math.exp(0.045),
    "lognormal, skewness 1.75": lambda rng, size: rng.lognormal(0, 0.5, size) - math.exp(0.125),
    "exponential, skewness 2": lambda rng, size: rng.exponential(size=size) - 1,
    "lognormal, skewness 6.2": lambda rng, size: rng.lognormal(0, 1, size) - math.exp(0.5),
}


def main() -> None:
    """Measure, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_bench_arguments(parser)
    parser.set_defaults(windows=400, length=256, samples=1)
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4, 8])
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.runs, arguments.windows, arguments.bits = 400, 40, [4]
    rows = [*drawn(arguments.runs), *answers(), *graded(arguments.runs)]
    for text in texts(arguments):
        rows += text
    print_tables(rows)
    what = "intervals that hold at every look, and what stopping by them saves"
    write(arguments.json, what, rows, ("torch", "transformers", "numpy", "scipy"))


# --- coverage ----------------------------------------------------------------------------------


def drawn(runs: int) -> Iterator[dict[str, Any]]:
    """Coverage of a mean of 0 by draws of all kinds."""
    for name, draw in DRAWS.items():
        values = draw(np.random.default_rng(1), (runs, LONG))
        yield {"row": "coverage", "of": name, "windows": LONG, "runs": runs} | covered(values, 0.0)
    for name in ("normal", "exponential, skewness 2"):
        values = DRAWS[name](np.random.default_rng(1), (runs, LONG))
        for most in (0.5, 0.25):
            row = {"row": "stopped", "of": name, "spreads": most, "runs": runs}
            yield row | saved(values, 0.0, most)


def covered(values: np.ndarray, truth: float) -> dict[str, float]:
    """How often intervals hold the truth: values [runs, windows] in the order they are read."""
    ends = [end for _, end in looks(values.shape[1])]
    means, errors = means_and_errors(values - truth, ends)
    sequence, single = (
        np.abs(means) <= reaches(ends, sequential=one) * errors for one in (True, False)
    )
    found = {
        "sequence": sequence.all(1),
        "t_at_every_look": single.all(1),
        "t_once": single[:, -1],
    }
    return {name: round(float(held.mean()), 4) for name, held in found.items()}


def means_and_errors(values: np.ndarray, ends: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and its standard error, of the first so many of each run's values: [runs, looks]."""
    sums, squares = values.cumsum(1), (values**2).cumsum(1)
    n = np.array(ends)
    means = sums[:, n - 1] / n
    spread = (squares[:, n - 1] - n * means**2) / (n - 1)
    return means, np.sqrt(np.maximum(spread, 0.0) / n)


def reaches(ends: list[int], *, sequential: bool) -> np.ndarray:
    """How many standard errors an interval reaches at each look."""
    return np.array([half_width(1.0, end, sequential=sequential) for end in ends])


# --- a model's windows -------------------------------------------------------------------------


def texts(arguments: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """What the windows of a model's text say, for each number of bits."""
    path = model_directory(arguments.model)
    model = SourceModel(read_facts(path, arguments.model), arguments.device)
    bench = UntilBench(model, arguments)
    for bits in arguments.bits:
        whole, seconds = bench.whole(RTN(bits, 128))
        rows = []
        for figure, values in whole.items():
            found = orders(values, arguments.runs)
            skew = float(((values - values.mean()) ** 3).mean() / values.std() ** 3)
            name = f"{arguments.model} rtn {bits}-bit, {figure} of a window"
            about = {"of": f"{name}, skewness {skew:.2f}", "windows": len(values)}
            rows.append(
                {"row": "coverage", **about, "runs": arguments.runs} | covered(found, values.mean())
            )
        for rule in RULES:
            parsed = parse_until(rule)
            values = whole["NLL" if parsed.figure == "ratio" else "KLD"]
            most = math.log1p(parsed.half) if parsed.figure == "ratio" else parsed.half
            row = {"row": "saved", "model": arguments.model, "bits": bits, "rule": rule}
            row |= saved(orders(values, arguments.runs), values.mean(), most)
            rows.append(row | bench.really(bits, rule) | {"whole_s": seconds})
        print(f"{bits} bits: {len(whole['NLL'])} windows", flush=True)
        yield rows


def orders(values: np.ndarray, runs: int) -> np.ndarray:
    """The values in so many random orders: [runs, windows]."""
    rng = np.random.default_rng(2)
    return np.stack([rng.permutation(values) for _ in range(runs)])


def saved(values: np.ndarray, truth: float, most: float) -> dict[str, Any]:
    """Windows read until an interval is as narrow as ``most``, and how often it then misses."""
    ends = [end for _, end in looks(values.shape[1])]
    found: dict[str, Any] = {"windows": values.shape[1]}
    means, errors = means_and_errors(values - truth, ends)
    n = np.array(ends)
    for name, sequential in (("sequence", True), ("t", False)):
        reach = reaches(ends, sequential=sequential)
        narrow = reach * errors <= most
        narrow[:, -1] = True
        stop = narrow.argmax(1)
        run = np.arange(len(values))
        missed = np.abs(means[run, stop]) > reach[stop] * errors[run, stop]
        found[f"{name}_read"] = round(float(n[stop].mean()), 1)
        found[f"{name}_missed"] = round(float(missed.mean()), 4)
    return found


class UntilBench(Bench):
    """A :class:`Bench` that measures all windows, or as many as a rule wants."""

    def whole(self, quantizer: Any) -> tuple[dict[str, np.ndarray], float]:
        """Each window's mean difference of NLL, and divergence; and the seconds that took."""
        import tempfile

        from qsweep.evaluate import measure

        self._folder_of_one = tempfile.TemporaryDirectory()
        artifact = quantizer.quantize(self._model, None, Path(self._folder_of_one.name))
        self._dense = self._load(artifact)
        clock = Clock()
        found = measure(self._dense, self._windows, self._states)
        seconds = clock.read()["seconds"]
        counts = found.arrays["window_tokens"]
        nll = (found.arrays["window_nll"] - self._reference.arrays["window_nll"]) / counts
        kld = found.arrays["token_kld"].double().split(counts.tolist())
        return {"NLL": nll.numpy(), "KLD": np.array([float(one.mean()) for one in kld])}, seconds

    def really(self, bits: int, rule: str) -> dict[str, Any]:
        """What one run of ``eval.until`` read, in the order that it reads."""
        clock = Clock()
        found = measure_until(
            self._dense, self._windows, self._states, self._reference, parse_until(rule)
        )
        return {"one_run_read": found.facts["windows"], "one_run_s": clock.read()["seconds"]}


# --- right and wrong answers -------------------------------------------------------------------


def answers() -> Iterator[dict[str, Any]]:
    """The least coverage of the one-sided bounds for losses of 0 to 10 points, by exact sums."""
    for samples in SAMPLES:
        upper, lower = [], []
        lost, gained, low, high = outcomes(samples)
        for loss in (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1):
            for gain in (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2):
                chance = probabilities(lost, gained, samples, loss + gain, gain)
                upper.append(float(chance[high >= loss - 1e-12].sum()))
                lower.append(float(chance[low <= loss + 1e-12].sum()))
        yield {
            "row": "answers",
            "samples": samples,
            "upper_least": round(min(upper), 4),
            "upper_mean": round(sum(upper) / len(upper), 4),
            "lower_least": round(min(lower), 4),
            "lower_mean": round(sum(lower) / len(lower), 4),
        }


def outcomes(samples: int) -> tuple[np.ndarray, ...]:
    """All numbers of samples lost and gained that have any chance, with their bounds."""
    # Five standard errors beyond what is lost and gained of samples at most, 30 and 20 %.
    ends = [min(samples, int(p * samples + 5 * (samples * p * (1 - p)) ** 0.5)) for p in (0.3, 0.2)]
    pairs = [(a, b) for a in range(ends[0] + 1) for b in range(min(ends[1], samples - a) + 1)]
    bounds = [OfAnswers(a, b, samples).bounds() for a, b in pairs]
    return (*np.array(pairs).T, *np.array(bounds).T)


def probabilities(
    lost: np.ndarray, gained: np.ndarray, samples: int, loss: float, gain: float
) -> np.ndarray:
    """Of these outcomes, where each sample is lost and gained with these probabilities."""
    from scipy.special import gammaln, xlogy

    rest = samples - lost - gained
    ways = gammaln(samples + 1) - gammaln(lost + 1) - gammaln(gained + 1) - gammaln(rest + 1)
    return np.exp(ways + xlogy(lost, loss) + xlogy(gained, gain) + xlogy(rest, 1 - loss - gain))


def graded(runs: int) -> Iterator[dict[str, Any]]:
    """Coverage of the bounds for graded scores: rare whole losses, and small changes everywhere."""
    kinds: Mapping[str, tuple[Callable[..., np.ndarray], float]] = {
        "one in 50 wholly lost": (lambda rng, size: (rng.random(size) < 0.02) * 1.0, 0.02),
        "one in 20 half lost": (lambda rng, size: (rng.random(size) < 0.05) * 0.5, 0.025),
        "small changes of all": (lambda rng, size: rng.normal(0.01, 0.05, size).clip(-1, 1), 0.01),
    }
    for name, (draw, truth) in kinds.items():
        for samples in (20, 100, 400):
            values = draw(np.random.default_rng(3), (runs, samples))
            bounds = [
                OfScores(float(one.mean()), float((one**2).mean()), samples).bounds()
                for one in values
            ]
            low, high = np.array(bounds).T
            yield {
                "row": "graded",
                "of": name,
                "samples": samples,
                "runs": runs,
                "upper": round(float((high >= truth).mean()), 4),
                "lower": round(float((low <= truth).mean()), 4),
            }


def print_tables(rows: list[dict[str, Any]]) -> None:
    """A table of each kind of row."""
    for kind in dict.fromkeys(row["row"] for row in rows):
        found = [{k: v for k, v in row.items() if k != "row"} for row in rows if row["row"] == kind]
        print(f"\n{kind}: " + ", ".join(found[0]))
        for row in found:
            print("  " + "  ".join(str(value) for value in row.values()))


if __name__ == "__main__":
    main()
