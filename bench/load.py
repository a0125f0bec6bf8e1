"""How fast each format becomes a dense model, beside reading its file and beside the unquantized one.

    python bench/load.py --json bench/results/load.json      a model with SmolLM2-135M's shape
    python bench/load.py --quick                              the embedded model
    python bench/load.py --model DIR --device cuda:0

Files are in the page cache. Every figure is the fastest of its rounds, which take turns.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

GROUP = 64


def main() -> None:
    """Make an artifact of each format, load them in turns, print the table."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        source = options.model or (_pocket() if options.quick else _smollm2(Path(folder)))
        rows = measure(source, Path(folder), options)
    print(f"{'':<24}{'s':>9}{'file GB/s':>11}{'M weights/s':>13}{'x unquantized':>15}")
    for row in rows:
        rates = f"{row['gb_per_s']:11.2f}{row['mweights_per_s']:13.0f}{row['ratio']:15.2f}"
        print(f"{row['what']:<24}{row['seconds']:9.3f}{rates}")
    if options.json:
        from gpu_parts.lab import stamp

        document = {"what": "loading as a dense model", **stamp(options.device), "rows": rows}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", type=Path, help="a checkpoint's directory")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="the embedded model")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count the processor's seconds, not the clock's: for a busy machine",
    )
    parser.add_argument("--json", type=Path, help="write the results there")
    return parser.parse_args()


def measure(source: Path, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the table."""
    import torch

    from qsweep.formats.dense import load_dense
    from qsweep.models.facts import read_facts

    facts = read_facts(source, source.name)
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    clock = time.process_time if options.processor_time else time.perf_counter

    def timed(run: Callable[[], Any]) -> float:
        started = clock()
        run()
        if options.device != "cpu":
            torch.cuda.synchronize(options.device)
        return clock() - started

    artifacts = dict(_artifacts(facts, folder, options.device))
    files = {what: _files(artifact.path) for what, artifact in artifacts.items()}
    best: dict[str, float] = {}
    # The first round pays for imports and for files that nothing has read yet.
    for number in range(options.rounds + 1):
        for what, artifact in artifacts.items():
            tasks: dict[str, Callable[[], Any]] = {
                what: lambda a=artifact: load_dense(a, source, dtype=dtype, device=options.device),
                f"reading it, {what}": lambda w=what: [_read(file) for file in files[w]],
            }
            for name, task in tasks.items():
                seconds = timed(task)
                if number:
                    best[name] = min(best.get(name, seconds), seconds)
    rows = []
    for what in artifacts:
        size = sum(file.stat().st_size for file in files[what])
        for name in (what, f"reading it, {what}"):
            rows.append(
                {
                    "what": name,
                    "seconds": best[name],
                    "bytes": size,
                    "gb_per_s": size / best[name] / 1e9,
                    "mweights_per_s": facts.parameters / best[name] / 1e6,
                    "ratio": best[name] / best["unquantized"],
                }
            )
    return rows


def _artifacts(facts: Any, folder: Path, device: str) -> Iterator[tuple[str, Any]]:
    from qsweep.base.errors import IncompatibleTrial
    from qsweep.formats.hf import reference_artifact
    from qsweep.models.source import SourceModel
    from qsweep.quantizers.gguf import GGUF
    from qsweep.quantizers.rtn import RTN

    yield "unquantized", reference_artifact(facts)
    packers = {"gptq, 3 bits": RTN(3, GROUP), "gptq, 4 bits": RTN(4, GROUP)}
    for what, quantizer in {**packers, "gguf, Q4_K_M": GGUF(bits=4)}.items():
        out = folder / what.replace(", ", "-")
        out.mkdir()
        try:
            quantizer.check(facts)
            yield what, quantizer.quantize(SourceModel(facts, device), None, out)
        except IncompatibleTrial as error:
            print(f"{what}: skipped, {error}")


def _files(path: Path) -> list[Path]:
    return [*path.glob("*.safetensors"), *path.glob("model.gguf")]


def _read(file: Path) -> None:
    with file.open("rb", buffering=0) as opened:
        while opened.read(1 << 24):
            pass


def _pocket() -> Path:
    from qsweep.models.tiny import MODEL_DIR

    return MODEL_DIR


def _smollm2(folder: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from evaluate import SMOLLM2
    from gpu_parts.models import save_model

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMOLLM2), dtype=torch.bfloat16)
    return save_model(model, folder / "source")


if __name__ == "__main__":
    main()
