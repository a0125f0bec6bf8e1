"""Is the native backend as good as GPTQModel at equal settings? Paired by window, Holm-corrected.

    python bench/parity.py --json bench/results/parity.json           the whole table
    python bench/parity.py --json FILE --quick                        a few rows
    python bench/parity.py --json FILE --model DIR --bits 3 4 --groups 64

Every finished row is written at once; the same command again goes on where it stopped. For each
row, d_w is the difference of the mean NLL of window w, native minus GPTQModel: a row is worse if
the one-sided t-test of mean d > 0 stays below 5 % after Holm's correction over all rows.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qsweep.corpora import CorpusConfig, calibration_samples, load_documents
from qsweep.environment import environment
from qsweep.files import write_json
from qsweep.model_facts import read_facts
from qsweep.pocket import MODEL_DIR
from qsweep.quantizers import CalibrationTokens, SourceModel
from qsweep.quantizers.gptqmodel import AWQ, GPTQ
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ, quantize_grid

ORDERS = ("plain", "group-aware", "desc_act")
# Rows whose native half is quantized by one pass.
_PASS = 6


@dataclass(frozen=True)
class Row:
    """One setting of both backends."""

    method: str
    bits: int
    group_size: int
    order: str
    sym: bool

    @property
    def key(self) -> str:
        """The row's name in the file of results."""
        symmetry = "sym" if self.sym else "asym"
        return f"{self.method} {self.bits} bits g{self.group_size} {self.order} {symmetry}"

    def native(self) -> NativeGPTQ | NativeAWQ:
        """This setting by qsweep."""
        if self.method == "awq":
            return NativeAWQ(self.bits, self.group_size, self.sym)
        return NativeGPTQ(self.bits, self.group_size, **self._order())

    def gptqmodel(self) -> GPTQ | AWQ:
        """This setting by GPTQModel."""
        if self.method == "awq":
            return AWQ(self.bits, self.group_size, self.sym)
        return GPTQ(self.bits, self.group_size, **self._order())

    def _order(self) -> dict[str, Any]:
        return {
            "desc_act": self.order == "desc_act",
            "act_group_aware": self.order == "group-aware",
            "sym": self.sym,
        }


def main() -> None:
    """Fill the file of results, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4, 8])
    parser.add_argument("--groups", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--methods", nargs="+", default=["gptq", "awq"])
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--limit", type=int, help="at most so many new rows")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    wanted = list(rows(arguments.methods, arguments.bits, arguments.groups))
    if arguments.quick:
        wanted = [row for row in wanted if (row.bits, row.group_size, row.sym) == (4, 64, True)][:2]
    content = _open(arguments.json, arguments)
    missing = [row for row in wanted if row.key not in content["rows"]][: arguments.limit]
    if missing:
        _fill(missing, content, arguments)
    print_table(content["rows"])


def rows(methods: Sequence[str], bits: Sequence[int], groups: Sequence[int]) -> Iterator[Row]:
    """All settings; AWQ knows no order of columns."""
    for method in methods:
        for width in bits:
            for size in groups:
                for order in ORDERS if method == "gptq" else ("plain",):
                    for sym in (True, False):
                        yield Row(method, width, size, order, sym)


def _fill(missing: Sequence[Row], content: dict[str, Any], arguments: argparse.Namespace) -> None:
    model = SourceModel(read_facts(arguments.model, arguments.model.name), arguments.device)
    bench = _Bench(model, arguments)
    for start in range(0, len(missing), _PASS):
        part = missing[start : start + _PASS]
        with tempfile.TemporaryDirectory() as folder:
            pairs = []
            for number, row in enumerate(part):
                out = Path(folder) / str(number)
                out.mkdir()
                pairs.append((row.native(), out))
            artifacts = quantize_grid(model, bench.samples, pairs)
            native = [bench.measure(artifact) for artifact in artifacts]
        for row, measured in zip(part, native, strict=True):
            with tempfile.TemporaryDirectory() as folder:
                artifact = row.gptqmodel().quantize(model, bench.samples, Path(folder))
                other = bench.measure(artifact)
            content["rows"][row.key] = {**asdict(row), "native": measured, "gptqmodel": other}
            write_json(arguments.json, content)
            print(f"{row.key}: {measured['ppl_ratio']:.4f} {other['ppl_ratio']:.4f}", flush=True)


class _Bench:
    """The text, the windows and the reference that every row is measured with."""

    def __init__(self, model: SourceModel, arguments: argparse.Namespace):
        from transformers import AutoTokenizer

        from qsweep.evaluators import Keep, measure, open_reference, save_reference
        from qsweep.quantizers.none import reference_artifact
        from qsweep.windows import PRESETS, make_windows

        tokenizer = AutoTokenizer.from_pretrained(model.path)
        calibration = load_documents(CorpusConfig("python", "python", split="calibration"))
        self.samples: CalibrationTokens = calibration_samples(
            calibration, tokenizer, arguments.samples, arguments.length, 0
        )
        length = min(model.facts.max_length, arguments.length)
        preset = PRESETS["gptq"].override(context=length, max_windows=arguments.windows)
        test = load_documents(CorpusConfig("python", "python", split="test"))
        self._windows = make_windows(test, tokenizer, preset, length, model.facts.model_type)
        self._model = model
        reference = self._load(reference_artifact(model.facts))
        keep = Keep()
        self._reference = measure(reference, self._windows, keep=keep)
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        save_reference(keep.states, keep.body, self._windows, folder)
        self._states = open_reference(folder, model.path, model.device, reference.dtype)

    def measure(self, artifact: Any) -> dict[str, Any]:
        """Ratio and divergence with their intervals, and the mean NLL of each window."""
        from qsweep.evaluators import compare, measure

        measured = measure(self._load(artifact), self._windows, self._states)
        metrics = measured.metrics | compare(measured, self._reference)
        names = ("ppl_ratio", "ppl_ratio_low", "ppl_ratio_high", "kld", "kld_stderr")
        means = measured.arrays["window_nll"] / measured.arrays["window_tokens"]
        return {name: metrics[name] for name in names} | {"window_nll": means.tolist()}

    def _load(self, artifact: Any) -> Any:
        import torch

        from qsweep.dense import load_dense

        dtype = torch.float32 if self._model.device == "cpu" else torch.bfloat16
        return load_dense(artifact, self._model.path, dtype=dtype, device=self._model.device)


def print_table(results: dict[str, Any]) -> None:
    """The rows with their corrected p-values, and the pooled log-ratio."""
    from scipy.stats import t

    names = list(results)
    means, tails = [], []
    for name in names:
        pair = zip(
            results[name]["native"]["window_nll"],
            results[name]["gptqmodel"]["window_nll"],
            strict=True,
        )
        difference = [ours - theirs for ours, theirs in pair]
        count = len(difference)
        mean = math.fsum(difference) / count
        spread = math.sqrt(math.fsum((d - mean) ** 2 for d in difference) / (count - 1) / count)
        means.append(mean)
        tails.append(float(t.sf(mean / spread, count - 1)) if spread else 1.0)
    corrected = holm(tails)
    print(
        f"{'':36} {'native':>8} {'gptqmodel':>9} {'kld':>8} {'kld':>8} {'ratio':>8} {'p worse':>8}"
    )
    for name, mean, p in zip(names, means, corrected, strict=True):
        ours, theirs = results[name]["native"], results[name]["gptqmodel"]
        mark = "  WORSE" if p < 0.05 else ""
        print(
            f"{name:36} {ours['ppl_ratio']:8.4f} {theirs['ppl_ratio']:9.4f} {ours['kld']:8.4f} "
            f"{theirs['kld']:8.4f} {math.exp(mean):8.4f} {p:8.3f}{mark}"
        )
    if means:
        pooled = math.fsum(means) / len(means)
        print(f"pooled log-ratio {pooled:+.5f} over {len(means)} rows (0 or less is wanted)")


def holm(tails: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values, in their order (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(tails)), key=lambda i: tails[i])
    corrected, largest = [0.0] * len(tails), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(tails) - rank) * tails[index]))
        corrected[index] = largest
    return corrected


def _open(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    settings = {name: getattr(arguments, name) for name in ("windows", "samples", "length")}
    settings |= {"model": arguments.model.name, "device": arguments.device}
    if path.exists():
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["settings"] != settings:
            raise SystemExit(f"{path}: made with {content['settings']}; give another --json")
        return content
    path.parent.mkdir(parents=True, exist_ok=True)
    known = environment()
    return {
        "what": "native against GPTQModel at equal settings",
        "machine": {key: known[key] for key in ("cpu", "cpu_cores", "memory_gb", "gpus")},
        "versions": known["packages"],
        "commit": known["git_commit"],
        "settings": settings,
        "rows": {},
    }


if __name__ == "__main__":
    main()
