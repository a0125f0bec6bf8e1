"""Is the native backend as good as GPTQModel at equal settings? Paired by window, Holm-corrected.

    python bench/parity.py --json bench/results/parity.json           the whole table
    python bench/parity.py --json FILE --quick                        a few rows
    python bench/parity.py --json FILE --model smollm2-135m --bits 3 4 --groups 64

Every finished measurement is written at once; the same command again goes on where it stopped, and
measures anew what another version of a backend made. For each row, d_w is the difference of the
mean NLL of window w, native minus GPTQModel: a row is worse if the one-sided t-test of mean d > 0
stays below 5 % after Holm's correction over all rows. The same is asked of native minus round to
nearest at the same bits, group size and symmetry.

With --seeds 0 1 2 a row is measured with several draws of the calibration text: its interval and p are
those of qsweep's own pooled rows then, over windows and draws (``qsweep.evaluate.draws``).

--methods gptaq measures ``quant=gptaq``, which GPTQModel has no equal of here, against round to
nearest. --intervals prints each row's perplexity over that of the others, with its interval.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from origin import Clock, origin
from qsweep.base.errors import IncompatibleTrial
from qsweep.base.files import write_bytes
from qsweep.evaluate.draws import Estimate, estimate
from qsweep.evaluate.pairs import holm
from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.models.tiny import MODEL_DIR
from qsweep.quantizers.gptqmodel import AWQ, GPTQ
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ, quantize_grid
from qsweep.quantizers.rtn import RTN
from qsweep.text.corpora import calibration_samples, load_documents
from qsweep.text.corpus import CorpusConfig

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))

from smollm2 import materialise  # noqa: E402

ORDERS = ("plain", "group-aware", "desc_act")
SIDES = ("native", "rtn", "gptqmodel")
METHODS = ("gptq", "awq", "gptaq")
# What conf/quant/gptaq.yaml adds to GPTQ.
GPTAQ: dict[str, Any] = {"scale_search": "loss", "gptaq_alpha": 0.5}
# Rows whose native half is quantized by one pass.
_PASS = 6
# Between the name of a row and the seed of its calibration text, where that is not 0.
_SEED = " seed "


@dataclass(frozen=True)
class Row:
    """One setting of both backends."""

    method: str
    bits: int
    group_size: int
    order: str
    sym: bool
    seed: int = 0

    @property
    def key(self) -> str:
        """The row's name in the file of results."""
        symmetry = "sym" if self.sym else "asym"
        name = f"{self.method} {self.bits} bits g{self.group_size} {self.order} {symmetry}"
        return f"{name}{_SEED}{self.seed}" if self.seed else name

    def native(self) -> NativeGPTQ | NativeAWQ:
        """This setting by qsweep."""
        if self.method == "awq":
            return NativeAWQ(self.bits, self.group_size, self.sym)
        more = GPTAQ if self.method == "gptaq" else {}
        return NativeGPTQ(self.bits, self.group_size, **self._order(), **more)

    def gptqmodel(self) -> GPTQ | AWQ | None:
        """This setting by GPTQModel; None where it has none."""
        if self.method == "gptaq":
            return None
        if self.method == "awq":
            return AWQ(self.bits, self.group_size, self.sym)
        return GPTQ(self.bits, self.group_size, **self._order())

    def rtn(self) -> RTN:
        """What both must beat."""
        return RTN(self.bits, self.group_size, self.sym)

    def _order(self) -> dict[str, Any]:
        return {
            "desc_act": self.order == "desc_act",
            "act_group_aware": self.order == "group-aware",
            "sym": self.sym,
        }


def main() -> None:
    """Fill the file of results, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_bench_arguments(parser)
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4, 8])
    parser.add_argument("--groups", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--methods", nargs="+", default=["gptq", "awq"], choices=METHODS)
    parser.add_argument("--orders", nargs="+", default=ORDERS, choices=ORDERS)
    parser.add_argument("--sym", nargs="+", default=["on", "off"], choices=["on", "off"])
    parser.add_argument("--sides", nargs="*", default=SIDES, choices=SIDES, help="what to measure")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of calibration text")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--intervals", action="store_true", help="print ratios with intervals")
    arguments = parser.parse_args()
    wanted = [
        replace(row, seed=seed)
        for seed in arguments.seeds
        for row in rows(arguments.methods, arguments.bits, arguments.groups)
        if ("on" if row.sym else "off") in arguments.sym
        if row.method == "awq" or row.order in arguments.orders
    ]
    if arguments.quick:
        wanted = [row for row in wanted if (row.bits, row.group_size, row.sym) == (4, 64, True)][:2]
    content = _open(arguments.json, arguments)
    _fill(wanted, content, arguments)
    if arguments.intervals:
        print_intervals(content["rows"])
    else:
        print_table(content["rows"])


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    """What a :class:`Bench` is made of, and the file of results."""
    parser.add_argument("--model", default="pocket", help="pocket, smollm2-135m, or a directory")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--json", type=Path, required=True)


def rows(methods: Sequence[str], bits: Sequence[int], groups: Sequence[int]) -> Iterator[Row]:
    """All settings; AWQ knows no order of columns."""
    for method in methods:
        for width in bits:
            for size in groups:
                for order in ORDERS if method != "awq" else ("plain",):
                    for sym in (True, False):
                        yield Row(method, width, size, order, sym)


def _fill(wanted: Sequence[Row], content: dict[str, Any], arguments: argparse.Namespace) -> None:
    def missing(side: str) -> list[Row]:
        return [row for row in wanted if not _stands(content["rows"], row, side)]

    if not any(missing(side) for side in arguments.sides):
        return
    path = model_directory(arguments.model)
    model = SourceModel(read_facts(path, arguments.model), arguments.device)
    bench = Bench(model, arguments)

    def keep(row: Row, side: str, measured: dict[str, Any]) -> None:
        measured["version"] = getattr(row, side)().version()
        content["rows"].setdefault(row.key, {})[side] = measured
        _write(arguments.json, content)
        print(f"{row.key}, {side}: {measured['ppl_ratio']:.4f}", flush=True)

    if "rtn" in arguments.sides:
        done: dict[str, dict[str, Any]] = {}
        for row in missing("rtn"):
            same = repr(row.rtn())
            if same not in done:
                done[same] = bench.alone(row.rtn())
            keep(row, "rtn", dict(done[same]))
    if "native" in arguments.sides:
        for seed in arguments.seeds:
            todo = [row for row in missing("native") if row.seed == seed]
            for start in range(0, len(todo), _PASS):
                part = todo[start : start + _PASS]
                measured = bench.together([row.native() for row in part], seed)
                for row, one in zip(part, measured, strict=True):
                    keep(row, "native", one)
    if "gptqmodel" in arguments.sides:
        for row in missing("gptqmodel"):
            quantizer = row.gptqmodel()
            assert quantizer is not None
            try:
                quantizer.check(model.facts)
            except IncompatibleTrial as error:
                print(f"{row.key}, gptqmodel: {error}", flush=True)
                continue
            keep(row, "gptqmodel", bench.alone(quantizer, row.seed))


def _stands(results: dict[str, Any], row: Row, side: str) -> bool:
    if (quantizer := getattr(row, side)()) is None:
        return True
    found = results.get(row.key, {}).get(side)
    return bool(found) and found["version"] == quantizer.version()


def model_directory(model: str) -> Path:
    """Where a model lies: the embedded one, SmolLM2 out of its package, or a directory."""
    if model == "pocket":
        return MODEL_DIR
    if model != "smollm2-135m":
        return Path(model)
    path = Path("outputs/models/smollm2-135m")
    if not path.is_dir():
        materialise(path)
    return path


class Bench:
    """The text, the windows and the reference that every row is measured with."""

    def __init__(self, model: SourceModel, arguments: argparse.Namespace):
        from transformers import AutoTokenizer

        from qsweep.evaluate import build_reference, open_reference, reference_measurement
        from qsweep.formats.hf import reference_artifact
        from qsweep.text.windows import PRESETS, make_windows

        tokenizer = AutoTokenizer.from_pretrained(model.path)
        calibration = load_documents(CorpusConfig("python", "python", split="calibration"))
        # By seed, each drawn once.
        self._samples = cache(
            partial(
                calibration_samples, calibration, tokenizer, arguments.samples, arguments.length
            )
        )
        length = min(model.facts.max_length, arguments.length)
        preset = PRESETS["paper"].override(context=length, max_windows=arguments.windows)
        test = load_documents(CorpusConfig("python", "python", split="test"))
        self._windows = make_windows(test, tokenizer, preset, length, model.facts.model_type)
        self._model = model
        reference = self._load(reference_artifact(model.facts))
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        build_reference(reference, self._windows, folder)
        self._reference = reference_measurement(folder, self._windows)
        self._states = open_reference(folder, model.path, model.device, reference.dtype)

    def alone(self, quantizer: Any, seed: int = 0) -> dict[str, Any]:
        """What one quantizer makes of the model, measured, and how long it took."""
        with tempfile.TemporaryDirectory() as folder:
            samples = self._samples(seed)
            clock = Clock()
            artifact = quantizer.quantize(self._model, samples, Path(folder))
            spent = clock.read()
            return self._measure(artifact) | spent

    def together(self, quantizers: Sequence[Any], seed: int = 0) -> list[dict[str, Any]]:
        """What one pass makes of the model for each of the native quantizers, measured."""
        with tempfile.TemporaryDirectory() as folder:
            outs = [Path(folder) / str(number) for number in range(len(quantizers))]
            for out in outs:
                out.mkdir()
            pairs = list(zip(quantizers, outs, strict=True))
            made = quantize_grid(self._model, self._samples(seed), pairs)
            return [self._measure(one) for one in made]

    def _measure(self, artifact: Any) -> dict[str, Any]:
        """Ratio and divergence with their intervals, and the mean NLL and KLD of each window."""
        from qsweep.evaluate import compare

        measured = self._measured(artifact)
        metrics = measured.metrics | compare(measured, self._reference)
        names = ("ppl_ratio", "ppl_ratio_low", "ppl_ratio_high", "kld", "kld_stderr")
        counts = measured.arrays["window_tokens"]
        means = measured.arrays["window_nll"] / counts
        divergences = measured.arrays["token_kld"].double().split(counts.tolist())
        return {name: round(metrics[name], 6) for name in names} | {
            "window_nll": [round(mean, 6) for mean in means.tolist()],
            "window_kld": [round(float(one.mean()), 7) for one in divergences],
        }

    def _measured(self, artifact: Any) -> Any:
        from qsweep.evaluate import measure

        return measure(self._load(artifact), self._windows, self._states)

    def _load(self, artifact: Any) -> Any:
        import torch

        from qsweep.formats.dense import load_dense

        dtype = torch.float32 if self._model.device == "cpu" else torch.bfloat16
        return load_dense(artifact, self._model.path, dtype=dtype, device=self._model.device)


def print_table(results: dict[str, Any]) -> None:
    """The rows with their corrected p-values, and the pooled log-ratio."""
    mean, worse = _compared(results, "gptqmodel")
    _, below = _compared(results, "rtn")
    done = {name: row for name, row in results.items() if {"native", "gptqmodel"} <= row.keys()}
    print(f"{'':30} {'ppl ratio':^25}  {'KLD':^24}  {'against GPTQModel':^18}")
    sides = f"{'native':>8} {'GPTQModel':>9}"
    print(f"{'':30} {sides} {'RTN':>7} {sides} {'RTN':>7} {'ratio':>8} {'p worse':>8}")
    for name, row in done.items():
        cells = [
            f"{row[side][figure]:{width}.4f}" if side in row else " " * width
            for figure in ("ppl_ratio", "kld")
            for side, width in (("native", 8), ("gptqmodel", 9), ("rtn", 7))
        ]
        if name not in mean:  # another draw of a row
            print(f"{name:30} {' '.join(cells)}")
            continue
        mark = "  WORSE" if worse[name] < 0.05 else ""
        mark += "  BELOW RTN" if below.get(name, 1) < 0.05 else ""
        print(f"{name:30} {' '.join(cells)} {math.exp(mean[name]):8.4f} {worse[name]:8.3f}{mark}")
    if mean:
        pooled = math.fsum(mean.values()) / len(mean)
        print(
            f"{len(mean)} rows; pooled log-ratio {pooled:+.5f} (0 or less is wanted); significantly "
            f"worse than GPTQModel: {sum(p < 0.05 for p in worse.values())}, than RTN: "
            f"{sum(p < 0.05 for p in below.values())} of {len(below)}"
        )


def print_intervals(results: dict[str, Any]) -> None:
    """What native's figures are beside each other side's, with 95 % intervals, in Markdown.

    They are perplexity over the other's, and KLD less the other's where windows' KLD is in the file.
    """
    others = [side for side in SIDES if side != "native"]
    ratios = {side: _draws(results, side) for side in others}
    added = {side: _draws(results, side, "window_kld") for side in others}
    columns = [f"{figure} {side}" for side in others for figure in ("ppl over", "KLD less")]
    print(f"| | KLD of {', '.join(SIDES)} | {' | '.join(columns)} |")
    print("|---" * (2 + len(columns)) + "|")
    for name in dict.fromkeys(name for side in others for name in ratios[side]):
        row = results.get(name, {})  # without the first draw: none
        cells = [", ".join(f"{row[side]['kld']:.4f}" for side in SIDES if side in row)]
        for side in others:
            cells += [
                _interval(ratios[side].get(name), math.exp, ""),
                _interval(added[side].get(name), float, "+"),
            ]
        print(f"| {name} | {' | '.join(cells)} |")


def _interval(
    draws: Sequence[Sequence[float]] | None, shown: Callable[[float], float], sign: str
) -> str:
    if draws is None:
        return ""
    found = crossed(draws)
    reach = found.half()
    low, middle, high = (f"{shown(found.value + step):{sign}.4f}" for step in (-reach, 0, reach))
    return f"{middle} ({low} to {high})"


def _compared(results: dict[str, Any], side: str) -> tuple[dict[str, float], dict[str, float]]:
    # By row: the mean of native's NLL less the other side's, and Holm's p for "it is above 0".
    found = {name: crossed(drawn) for name, drawn in _draws(results, side).items()}
    tails = [one.p / 2 if one.value > 0 else 1 - one.p / 2 for one in found.values()]
    means = {name: one.value for name, one in found.items()}
    return means, dict(zip(found, holm(tails), strict=True))


def _draws(
    results: dict[str, Any], side: str, figure: str = "window_nll"
) -> dict[str, list[list[float]]]:
    # By row: for each draw of the text, native's figure less the other side's by window.
    draws: dict[str, list[list[float]]] = {}
    for name, row in results.items():
        pair = [row[one] for one in ("native", side) if figure in row.get(one, {})]
        if len(pair) == 2:
            difference = _differences(*pair, figure)
            draws.setdefault(name.partition(_SEED)[0], []).append(difference)
    return draws


def crossed(draws: Sequence[Sequence[float]]) -> Estimate:
    """A figure of windows alike, by draw and window."""
    windows = np.asarray(draws, np.float64)
    return estimate(windows, np.ones(windows.shape[1]))  # means over tokens, of windows alike


def paired(
    one: dict[str, Any], other: dict[str, Any], figure: str = "window_nll"
) -> tuple[float, float, int]:
    """Mean, standard error and number of the differences of the windows' mean NLL, or KLD."""
    return _mean_error(_differences(one, other, figure))


def _differences(
    one: dict[str, Any], other: dict[str, Any], figure: str = "window_nll"
) -> list[float]:
    pairs = zip(one[figure], other[figure], strict=True)
    return [ours - theirs for ours, theirs in pairs]


def _mean_error(values: Sequence[float]) -> tuple[float, float, int]:
    count = len(values)
    mean = math.fsum(values) / count
    squares = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(squares / (count - 1) / count), count


def _open(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    settings = {name: getattr(arguments, name) for name in ("windows", "samples", "length")}
    settings |= {"model": Path(arguments.model).name, "device": arguments.device}
    if path.exists():
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["settings"] != settings:
            raise SystemExit(f"{path}: made with {content['settings']}; give another --json")
        return content
    path.parent.mkdir(parents=True, exist_ok=True)
    return {
        "what": "native against GPTQModel at equal settings",
        **origin(),
        "settings": settings,
        "rows": {},
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    # One line per measurement, so that a difference between two files can be read.
    head = {key: value for key, value in content.items() if key != "rows"}
    lines = [
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(f"   {json.dumps(side)}: {json.dumps(row[side])}" for side in sorted(row))
        + "\n  }"
        for name, row in content["rows"].items()
    ]
    text = json.dumps(head, indent=1).removesuffix("\n}")
    text += ',\n "rows": {\n' + ",\n".join(lines) + "\n }\n}\n"
    write_bytes(path, text.encode())


if __name__ == "__main__":
    main()
