"""A grid by the native backend's one pass, and the same grid by GPTQModel one by one.

    python bench/grid.py                     GPTQ and AWQ at 3, 4 and 8 bits on the embedded model
    python bench/grid.py --model DIR         on another one
    python bench/grid.py --configurations 24 the native backend's larger grid as well, as it is
                                             and with sequential=false
    python bench/grid.py --against FILE      GPTQModel's seconds from a parity table (bench/parity.py)
    python bench/grid.py --one-width         GPTQModel at 4 bits only; its total is three times that
    python bench/grid.py --quick             less calibration text, GPTQ only

Imports are not counted, and huge pages serve both sides as they serve a sweep's jobs. Both sides get
the same calibration samples and the same threads, in turn.
Seconds are told by the wall clock and of the processor: the latter do not depend on what else runs.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from origin import Clock, write
from qsweep.launch.local.client import HUGE_PAGES
from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.models.tiny import MODEL_DIR
from qsweep.quantizers.gptqmodel import AWQ, GPTQ
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ, quantize_grid
from qsweep.text.calibration import CalibrationTokens
from qsweep.text.corpora import calibration_samples, load_documents
from qsweep.text.corpus import CorpusConfig

SIX = ((3, 64), (4, 64), (8, 64))
TWENTY_FOUR = tuple((bits, size) for bits in (2, 3, 4, 8) for size in (-1, 32, 64))


def main() -> None:
    """Run the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--configurations", type=int, choices=(6, 24), default=6)
    parser.add_argument("--native-only", action="store_true")
    known = parser.add_mutually_exclusive_group()
    known.add_argument("--against", type=Path, help="a parity table of the same model and machine")
    known.add_argument("--one-width", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ |= HUGE_PAGES | os.environ
    model = SourceModel(read_facts(arguments.model, arguments.model.name), arguments.device)
    samples = _calibration(arguments.model, *((4, 128) if arguments.quick else (16, 512)))
    methods = ("gptq",) if arguments.quick else ("gptq", "awq")
    measured = _measured_before(arguments.against) if arguments.against else None
    _warm_up(model, arguments.native_only or measured is not None)
    rows = [_native(model, samples, methods, SIX)]
    if arguments.configurations == 24:
        rows.append(_native(model, samples, methods, TWENTY_FOUR))
        rows.append(_native(model, samples, methods, TWENTY_FOUR, sequential=False))
    if not arguments.native_only:
        widths = tuple(size for size in SIX if size[0] == 4) if arguments.one_width else SIX
        rows += _with_total(measured or _one_by_one(model, samples, methods, widths), widths)
    _print(rows)
    if arguments.json:
        write(arguments.json, "one pass for a grid against GPTQModel one by one", rows)


def _native(
    model: SourceModel,
    samples: CalibrationTokens,
    methods: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    *,
    sequential: bool | Literal["auto"] = "auto",
) -> dict[str, Any]:
    quantizers: list[NativeAWQ | NativeGPTQ] = []
    if "gptq" in methods:
        quantizers += [NativeGPTQ(bits, size, sequential=sequential) for bits, size in sizes]
    if "awq" in methods:
        quantizers += [NativeAWQ(bits, size) for bits, size in sizes]
    with tempfile.TemporaryDirectory() as folder:
        pairs = []
        for number, quantizer in enumerate(quantizers):
            out = Path(folder) / str(number)
            out.mkdir()
            pairs.append((quantizer, out))
        clock = Clock()
        artifacts = quantize_grid(model, samples, pairs)
        spent = clock.read()
    return {
        "what": f"native, {len(quantizers)} configurations"
        + ("" if sequential == "auto" else f", sequential={sequential}"),
        **spent,
        "shared_s": artifacts[0].details["shared_s"],
        "configurations_s": [artifact.details["quantize_s"] for artifact in artifacts],
    }


def _one_by_one(
    model: SourceModel,
    samples: CalibrationTokens,
    methods: Sequence[str],
    sizes: Sequence[tuple[int, int]],
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for method in methods:
        for bits, size in sizes:
            quantizer = GPTQ(bits, size) if method == "gptq" else AWQ(bits, size)
            with tempfile.TemporaryDirectory() as folder:
                clock = Clock()
                quantizer.quantize(model, samples, Path(folder))
                rows.append({"what": f"gptqmodel {method} {bits} bits", **clock.read()})
    return rows


def _measured_before(file: Path) -> list[dict[str, Any]]:
    # The settings that both backends take by default, with as much calibration text as here.
    content = json.loads(file.read_text(encoding="utf-8"))
    if (content["settings"]["samples"], content["settings"]["length"]) != (16, 512):
        raise SystemExit(f"{file}: not made with 16 samples of 512 tokens")
    rows = []
    for method, rest in (("gptq", "group-aware sym"), ("awq", "plain asym")):
        for bits, size in SIX:
            name = f"{method} {bits} bits g{size} {rest}"
            found = content["rows"].get(name, {}).get("gptqmodel", {})
            if "cpu_s" not in found:
                raise SystemExit(f"{file}: GPTQModel's seconds for {name!r} are missing")
            spent = {key: found[key] for key in ("seconds", "cpu_s")}
            rows.append({"what": f"gptqmodel {method} {bits} bits", **spent})
    return rows


def _with_total(
    rows: list[dict[str, Any]], sizes: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
    # Its time depends little on the width (bench/results/grid-pocket.json).
    times = len(SIX) // len(sizes)
    total = {name: times * sum(row[name] for row in rows) for name in ("seconds", "cpu_s")}
    counted = f"{times} x {len(rows)}" if times > 1 else f"{len(rows)}"
    return [*rows, {"what": f"gptqmodel, {counted} configurations", **total}]


def _warm_up(model: SourceModel, native_only: bool) -> None:
    tokens = CalibrationTokens([[1] * 32] * 2)
    with tempfile.TemporaryDirectory() as folder:
        NativeGPTQ(8, -1).quantize(model, tokens, Path(folder))
    if not native_only:
        import gptqmodel  # noqa: F401 - only its import is wanted


def _calibration(model: Path, count: int, length: int) -> CalibrationTokens:
    from transformers import AutoTokenizer

    documents = load_documents(CorpusConfig("python", "python", split="calibration"))
    return calibration_samples(documents, AutoTokenizer.from_pretrained(model), count, length, 0)


def _print(rows: Sequence[dict[str, Any]]) -> None:
    first = rows[0]
    print(f"{'':42} {'seconds':>9} {'x native':>9} {'cpu s':>9} {'x native':>9}")
    for row in rows:
        cells = [f"{row[k]:9.1f} {row[k] / first[k]:9.2f}" for k in ("seconds", "cpu_s")]
        print(f"{row['what']:42} {' '.join(cells)}")


if __name__ == "__main__":
    main()
