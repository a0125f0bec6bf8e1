"""Does calibrating on the kind of text that is measured pay? Domains crossed, over several draws.

    python bench/alignment.py --json bench/results/alignment-pocket.json
    python bench/alignment.py --quick
    python bench/alignment.py --json FILE --model smollm2-135m --methods gptq --bits 3 --windows 16

Each method at each width is calibrated on every domain and on a blend of all in equal shares, with
every seed, and measured on each domain. What one calibration costs over another on one text is the
difference of the KLD of the same windows after both, draw by draw: windows and draws are crossed as in
bench/parity.py, so that an interval covers which samples were drawn, too. Holm's procedure over all
comparisons keeps the chance of a single false claim below 5 %; what is not claimed is a tie.

Trials are those of a sweep, and go into ``--outputs``: the same command again goes on where it stopped.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from origin import Clock, write
from parity import crossed, model_directory
from qsweep.evaluate.pairs import holm

BLEND = "blend"
# By draw, and in it by window.
Draws = list[list[float]]


@dataclass(frozen=True)
class Cell:
    """One setting calibrated on one text and measured on one: the mean over draws."""

    setting: str
    calibration: str
    corpus: str
    ppl_ratio: float
    kld: float
    least: float
    most: float
    """Of the draws' KLD."""


@dataclass(frozen=True)
class Comparison:
    """What ``other`` instead of the text's own domain costs on it: KLD more, in nats."""

    setting: str
    corpus: str
    other: str
    more: float
    low: float
    high: float
    share: float
    """``more`` over the KLD after its own."""
    p: float
    """Two-sided, Holm's over all comparisons."""

    @property
    def verdict(self) -> str:
        """What may be claimed."""
        if self.p >= 0.05:
            return "tie"
        return "own is better" if self.more > 0 else "other is better"


def main() -> None:
    """Run the sweep, then print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pocket", help="pocket, smollm2-135m, or a directory")
    parser.add_argument("--methods", nargs="+", default=["gptq", "awq"])
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4])
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument(
        "--domains", nargs="+", default=["python_docs", "python_code"],
        help="names that are both a calibration text and a corpus",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512, help="tokens of a sample and a window")
    parser.add_argument("--windows", type=int, default=32, help="of each domain")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/alignment"))
    parser.add_argument("--quick", action="store_true", help="gptq at 3 bits, two draws")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.methods, arguments.bits, arguments.seeds = ["gptq"], [3], [0, 1]
        arguments.samples, arguments.windows = 8, 8
    clock = Clock()
    found = measured(arguments)
    cells = table(found)
    comparisons = compared(found)
    print_tables(cells, comparisons)
    if arguments.json:
        settings = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(arguments).items()
            if name not in ("json", "outputs", "quick")
        }
        rows = [asdict(cell) for cell in cells]
        rows += [asdict(one) | {"verdict": one.verdict} for one in comparisons]
        content = [{"settings": settings, **clock.read()}, *rows]
        write(arguments.json, "calibration domain against measured domain, pooled", content)


@dataclass(frozen=True)
class Measured:
    """One setting's figures on one text: draws by windows, and the draws' perplexity ratios."""

    kld: Draws
    ppl_ratios: list[float]


Found = dict[tuple[str, str, str], Measured]
"""By setting, calibration and corpus."""


def measured(arguments: argparse.Namespace) -> Found:
    """The sweep's figures; every cell has the draws in the order of their seeds."""
    import qsweep
    from qsweep.evaluate import read_measurement

    blend = dict.fromkeys(arguments.domains, 1)
    sweep = qsweep.run(
        {
            "model.path": str(model_directory(arguments.model)),
            "calibration.num_samples": arguments.samples,
            "calibration.max_seq_len": arguments.length,
            "eval.context": arguments.length,
            "eval.max_windows": arguments.windows,
            "eval.noise_floor": False,
        },
        quant=arguments.methods,
        bits=arguments.bits,
        group_size=arguments.group_size,
        calibration=[*arguments.domains, blend],
        corpus=tuple(arguments.domains),
        seed=arguments.seeds,
        device=arguments.device,
        tracking="none",
        outputs_dir=str(arguments.outputs),
        sweep=f"alignment-{Path(arguments.model).name}",
    )
    draws: dict[tuple[str, str, str], dict[int, tuple[list[float], float]]] = defaultdict(dict)
    for record in sweep.records.values():
        if record.status == "failed":
            raise SystemExit(f"{record.name}: {record.reason}")
        calibration = record.calibration
        if calibration is None or record.implied:
            continue
        calibration = calibration if calibration in arguments.domains else BLEND
        for one in record.measurements:
            arrays = read_measurement(Path(str(one.file))).arrays
            windows = arrays["token_kld"].double().split(arrays["window_tokens"].tolist())
            setting = record.name.removeprefix(f"{record.model} ")
            draws[setting, calibration, one.corpus][record.config["seed"]] = (
                [float(window.mean()) for window in windows],
                float(one.metrics["ppl_ratio"]),
            )
    return {
        place: Measured([seeds[n][0] for n in sorted(seeds)], [seeds[n][1] for n in sorted(seeds)])
        for place, seeds in draws.items()
    }


def table(found: Found) -> list[Cell]:
    """A cell for each setting, calibration and corpus."""
    cells = []
    for (setting, calibration, corpus), one in sorted(found.items()):
        klds = [fmean(draw) for draw in one.kld]
        ratio = math.exp(fmean(map(math.log, one.ppl_ratios)))
        figures = (ratio, fmean(klds), min(klds), max(klds))
        cells.append(Cell(setting, calibration, corpus, *(round(n, 6) for n in figures)))
    return cells


def compared(found: Found) -> list[Comparison]:
    """Every other calibration against a text's own, on that text."""
    places, figures, tails = [], [], []
    for (setting, calibration, corpus), other in sorted(found.items()):
        own = found.get((setting, corpus, corpus))
        if calibration == corpus or own is None:
            continue
        more = crossed(differences(other.kld, own.kld))
        reach, mean = more.half(), more.value
        share = mean / fmean(map(fmean, own.kld))
        places.append((setting, corpus, calibration))
        figures.append([round(n, 6) for n in (mean, mean - reach, mean + reach, share)])
        tails.append(more.p)
    return [
        Comparison(*place, *own, p=round(p, 5))
        for place, own, p in zip(places, figures, holm(tails), strict=True)
    ]


def differences(one: Draws, other: Draws) -> Draws:
    """One's figures less the other's, of the same draw and window."""
    return [
        [a - b for a, b in zip(left, right, strict=True)]
        for left, right in zip(one, other, strict=True)
    ]


def print_tables(cells: Sequence[Cell], comparisons: Sequence[Comparison]) -> None:
    """Markdown: what was measured, and what follows."""
    by_row: Mapping[tuple[str, str], dict[str, Cell]] = defaultdict(dict)
    for cell in cells:
        by_row[cell.setting, cell.calibration][cell.corpus] = cell
    corpora = sorted({cell.corpus for cell in cells})
    print(f"| setting | calibrated on | {' | '.join(f'KLD on {name}' for name in corpora)} |")
    print("|---" * (2 + len(corpora)) + "|")
    for (setting, calibration), row in by_row.items():
        shown = [_cell(row.get(name)) for name in corpora]
        print(f"| {setting} | {calibration} | {' | '.join(shown)} |")
    print("\n| on | setting | instead of its own | KLD more | in % | p | |")
    print("|---" * 7 + "|")
    for one in sorted(comparisons, key=lambda c: (c.corpus, c.other, c.setting)):
        print(
            f"| {one.corpus} | {one.setting} | {one.other} | {one.more:+.4f} ({one.low:+.4f} to "
            f"{one.high:+.4f}) | {100 * one.share:+.1f} | {one.p:.3f} | {one.verdict} |"
        )


def _cell(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell.kld:.4f} ({cell.least:.4f} to {cell.most:.4f}), ratio {cell.ppl_ratio:.3f}"


if __name__ == "__main__":
    main()
