"""A model larger than memory: reference, one GPTQ pass and evaluation, layer by layer, and whole.

    python bench/streaming.py --quick                 a model of 0.36 GB within 1.25 GB
    python bench/streaming.py                         3 billion weights (6 GB) within 2.5 GB
    python bench/streaming.py --only limited --memory-gb 3
    python bench/streaming.py --model DIR --json bench/results/streaming.json

A model with random weights is written shard by shard. Then each contender, a process of its own, runs
it over a few windows, quantizes it by GPTQ in four configurations in one pass, and measures each of
these against the reference: *limited* with ``model.stream=true`` inside a control group that holds its
memory, *streamed* the same without a limit, *whole* with the model in memory. Before each the model's
files are dropped from the page cache. Contenders must come to the same figures and the same files.
Control groups, of version 1 or 2, have to be writable: root in most containers.
"""

import argparse
import gc
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from origin import Clock, write

CONTENDERS = ("limited", "streamed", "whole")
# Bits and group sizes; they share the statistics of the unquantized model.
CONFIGURATIONS = ((4, 128), (4, 64), (3, 128), (3, 64))
BIG = {"hidden_size": 3072, "intermediate_size": 4096, "num_hidden_layers": 40}
SMALL = {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 14}
_GROUPS = Path("/sys/fs/cgroup")


def main() -> None:
    """Run the contenders and print the table."""
    options = _parse()
    if options.worker:
        _work(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or _make_model(
            Path(folder) / "model", SMALL if options.quick else BIG
        )
        rows = []
        for contender in options.only or ["limited", "whole"]:
            rows.append(_run(contender, model, options))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    _print(rows)
    if options.json:
        write(options.json, "a model larger than memory, layer by layer and whole", rows)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small model, less text")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--model", type=Path, help="a checkpoint of one's own")
    parser.add_argument("--only", action="append", choices=CONTENDERS)
    parser.add_argument("--memory-gb", type=float, help="of the control group (2.5; quick: 1.25)")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--length", type=int, default=512, help="tokens of a window or sample")
    parser.add_argument("--measured", type=int, default=1, help="configurations that are measured")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_gb is None:
        options.memory_gb = 1.25 if options.quick else 2.5
    return options


def _make_model(path: Path, shape: dict[str, int]) -> Path:
    """A Llama with random weights in bfloat16, one shard per layer."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    from qsweep.models.tiny import MODEL_DIR

    path.mkdir(parents=True)
    vocabulary, generator = 32000, torch.Generator().manual_seed(0)
    heads = shape["hidden_size"] // 128
    config = LlamaConfig(
        vocab_size=vocabulary,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        **shape,
    )
    config.save_pretrained(path)
    for file in MODEL_DIR.glob("tokenizer*"):
        (path / file.name).write_bytes(file.read_bytes())

    def matrix(rows: int, columns: int) -> torch.Tensor:
        # As large as keeps states about as large as they are.
        values = torch.randn(rows, columns, generator=generator, dtype=torch.float32)
        return values.mul_(columns**-0.5).bfloat16()

    width, inner = shape["hidden_size"], shape["intermediate_size"]
    places: dict[str, str] = {}

    def save(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, path / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, name))

    for index in range(shape["num_hidden_layers"]):
        own = {f"self_attn.{part}_proj.weight": matrix(width, width) for part in "qkvo"}
        own |= {f"mlp.{part}_proj.weight": matrix(inner, width) for part in ("gate", "up")}
        own |= {"mlp.down_proj.weight": matrix(width, inner)}
        norms = ("input_layernorm", "post_attention_layernorm")
        own |= {f"{norm}.weight": torch.ones(width).bfloat16() for norm in norms}
        tensors = {f"model.layers.{index}.{part}": tensor for part, tensor in own.items()}
        save(f"model-{index:05}.safetensors", tensors)
    outside = {
        "model.embed_tokens.weight": matrix(vocabulary, width),
        "model.norm.weight": torch.ones(width).bfloat16(),
    }
    save("model-outside.safetensors", outside)
    index_file = {"metadata": {}, "weight_map": places}
    (path / "model.safetensors.index.json").write_text(json.dumps(index_file), encoding="utf-8")
    return path


def _run(contender: str, model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One contender in a process of its own, which prints its row."""
    for file in model.glob("*.safetensors"):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [sys.executable, __file__, "--worker", contender, "--model", str(model)]
    for name in ("windows", "samples", "length", "measured"):
        command += [f"--{name}", str(getattr(options, name))]
    limit = int(options.memory_gb * 1e9) if contender == "limited" else None
    with _group(limit) as group:
        environment = os.environ | ({"QSWEEP_BENCH_GROUP": str(group)} if group else {})
        done = subprocess.run(  # noqa: S603 - this very file
            command, env=environment, stdout=subprocess.PIPE, check=False
        )
        if done.returncode:
            raise SystemExit(f"{contender}: ended with {done.returncode}")
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if group is not None:
            row |= {"limit_gb": options.memory_gb, "group_peak_gb": _group_peak(group)}
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    return {"what": contender, "model_gb": round(size / 1e9, 3), **row}


@contextmanager
def _group(limit: int | None) -> Iterator[Path | None]:
    """A control group with so much memory, and nothing of it afterwards."""
    if limit is None:
        yield None
        return
    old = (_GROUPS / "memory").is_dir()
    group = (_GROUPS / "memory" if old else _GROUPS) / f"qsweep-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(limit))
        yield group
    finally:
        group.rmdir()


def _group_peak(group: Path) -> float:
    for name in ("memory.max_usage_in_bytes", "memory.peak"):
        if (group / name).exists():
            return round(int((group / name).read_text()) / 1e9, 3)
    return float("nan")


class _Peaks:
    """Looks at what the process holds, ten times a second: its own memory, and mapped files."""

    def __init__(self) -> None:
        self._found: dict[str, int] = {}
        threading.Thread(target=self._watch, daemon=True).start()

    def take(self) -> dict[str, float]:
        """The highest values since the last call, in GB."""
        found, self._found = self._found, {}
        return {name: round(value / 1e6, 3) for name, value in found.items()}

    def _watch(self) -> None:
        while True:
            for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
                name, _, value = line.partition(":")
                if name in ("VmRSS", "RssAnon", "RssFile"):
                    self._found[name] = max(self._found.get(name, 0), int(value.split()[0]))
            time.sleep(0.1)


def _work(options: argparse.Namespace) -> None:
    """What a contender does; prints its row."""
    if group := os.environ.get("QSWEEP_BENCH_GROUP"):
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    import torch

    from qsweep.evaluate import build_reference, measure, open_reference
    from qsweep.formats.dense import load_dense
    from qsweep.formats.hf import reference_artifact
    from qsweep.models.facts import read_facts
    from qsweep.models.source import SourceModel
    from qsweep.quantizers.native import NativeGPTQ, quantize_grid
    from qsweep.text.calibration import CalibrationTokens
    from qsweep.text.windows import Preset, Windows

    stream = options.worker != "whole"
    facts = read_facts(options.model, options.model.name)
    generator = torch.Generator().manual_seed(1)

    def tokens(count: int) -> torch.Tensor:
        shape = count, options.length
        return torch.randint(0, facts.vocab_size, shape, generator=generator)

    ids, samples = tokens(options.windows), tokens(options.samples).tolist()
    full = torch.full((options.windows,), options.length)
    windows = Windows(ids, torch.ones_like(full), full, Preset("gptq", options.length), "none")
    peaks, row = _Peaks(), {"torch_threads": torch.get_num_threads()}
    digest = hashlib.sha256()

    def load(artifact: Any) -> Any:
        return load_dense(artifact, facts.path, dtype=torch.float32, device="cpu", stream=stream)

    @contextmanager
    def step(name: str) -> Iterator[None]:
        clock = Clock()
        yield
        gc.collect()
        row.update({f"{name}_{what}": value for what, value in clock.read().items()})
        row.update({f"{name}_{what}_gb": value for what, value in peaks.take().items()})
        told = {key: value for key, value in row.items() if key.startswith(name)}
        print(json.dumps(told), file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "reference"
        cache.mkdir()
        with step("reference"):
            build_reference(load(reference_artifact(facts)), windows, cache)
        pairs = []
        for bits, size in CONFIGURATIONS:
            out = Path(folder) / f"{bits}-{size}"
            out.mkdir()
            pairs.append((NativeGPTQ(bits=bits, group_size=size, sequential=False), out))
        source = SourceModel(facts, "cpu", stream=stream)
        with step("pass"):
            artifacts = quantize_grid(source, CalibrationTokens(samples), pairs)
        for file in sorted(file for _, out in pairs for file in out.glob("*.safetensors")):
            with file.open("rb") as stored:
                while piece := stored.read(1 << 24):
                    digest.update(piece)
        peaks.take()
        with step("evaluate"):
            found = []
            for artifact in artifacts[: options.measured]:
                opened = open_reference(cache, facts.path, "cpu", torch.float32)
                found.append(measure(load(artifact), windows, opened).metrics)
        digest.update(json.dumps(found, sort_keys=True).encode())
    row |= {"kld": [round(metrics["kld"], 6) for metrics in found], "sha256": digest.hexdigest()}
    print(json.dumps(row), flush=True)


def _print(rows: list[dict[str, Any]]) -> None:
    steps = {"reference": "reference", "pass": "pass of four", "evaluate": "measured"}
    print(f"{'':9}" + "".join(f"{f'{title}, s (CPU)':>26}" for title in steps.values()), end="")
    print(f"{'resident':>12}{'anonymous':>12}")
    for row in rows:
        cells = (f"{row[f'{name}_seconds']:.1f} ({row[f'{name}_cpu_s']:.1f})" for name in steps)
        peaks = (max(row[f"{name}_{of}_gb"] for name in steps) for of in ("VmRSS", "RssAnon"))
        print(f"{row['what']:9}" + "".join(f"{cell:>26}" for cell in cells), end="")
        print("".join(f"{peak:>9.2f} GB" for peak in peaks))
    print("same files and figures:", "yes" if len({row["sha256"] for row in rows}) == 1 else "NO")


if __name__ == "__main__":
    main()
