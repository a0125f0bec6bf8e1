"""Perplexity and divergence: tokens per second, share of the ceiling, memory, and where time goes."""

import tempfile
from pathlib import Path
from typing import Any

from gpu_parts.ceiling import Ceiling, Work, evaluation_work, measure_ceiling
from gpu_parts.lab import Lab
from gpu_parts.models import make_model, random_windows, save_model

# Windows of 2048 tokens; the goals of the 8B shape are those of the project.
_WINDOWS = {"llama-1b": 128, "llama-8b": 64, "trial": 4}
_SHARE_OF_CEILING, _DIVERGENCE_EXTRA, _EXTRA_GB = 0.60, 0.25, 1.0
_SHOWN_KERNELS = 12


def run(lab: Lab) -> None:
    """All figures of evaluating, for both shapes."""
    ceiling = measure_ceiling(lab)
    shapes = ("llama-1b", "llama-8b") if lab.on_gpu else ("trial",)
    for shape in shapes:
        with lab.step(shape, "evaluation", needs_s=90) as possible:
            if possible:
                _evaluate(lab, shape, ceiling)
    for shape in shapes:
        with lab.step(shape, "loading", needs_s=90) as possible:
            if possible:
                _load(lab, shape)


def _evaluate(lab: Lab, shape: str, ceiling: Ceiling) -> None:
    import torch

    from qsweep.evaluate import build_reference, measure, open_reference
    from qsweep.evaluate.engine import batch_size, open_engine

    model = make_model(shape, lab.device)
    config = model.config
    context = 2048 if lab.on_gpu else 128
    count = _WINDOWS[shape] // (4 if lab.quick and lab.on_gpu else 1)
    windows = random_windows(count, context, config.vocab_size)
    with torch.inference_mode():
        batch = batch_size(open_engine(model, windows.ids), context)
    lab.add(shape, "windows in a batch", batch, f"x {context} tokens")
    size = model.dtype.itemsize
    plain = evaluation_work(config, count, context, batch, size)
    double = evaluation_work(config, count, context, batch, size, heads=2)
    tokens = count * context

    alone = lab.time(lambda: measure(model, windows))
    _rate(lab, shape, "perplexity", tokens, alone, plain, ceiling)
    with lab.memory(shape, "perplexity: memory beyond the model"):
        measure(model, windows)
    with tempfile.TemporaryDirectory() as folder:
        source, cache = Path(folder) / "source", Path(folder) / "cache"
        save_head(model, source)
        cache.mkdir()
        building = lab.time(lambda: build_reference(model, windows, cache), rounds=1)
        _rate(lab, shape, "making the reference's cache", tokens, building, plain, ceiling)
        reference = open_reference(cache, source, lab.device, model.dtype)
        both = lab.time(lambda: measure(model, windows, reference))
        _rate(lab, shape, "divergence", tokens, both, double, ceiling)
        extra = both / alone - 1
        lab.add(shape, "divergence: time on top of perplexity", 100 * extra, "%")
        with lab.memory(shape, "divergence: memory beyond model and head"):
            found = measure(model, windows, reference)
        itself = found.metrics["kld"]
        lab.add(shape, "divergence from itself", itself, "nats", ok=abs(itself) < 1e-6)
        _waiting(lab, shape, model, windows, reference)
        if lab.on_gpu:
            _profile(lab, shape, model, windows.select(range(2 * batch)), reference)
        else:
            lab.skip(shape, "profile", "no GPU")
    if lab.on_gpu:
        _goals(lab, shape)


def save_head(model: Any, path: Path) -> None:
    """As much of a checkpoint as opening a reference reads: configuration and output head."""
    from safetensors.torch import save_file

    path.mkdir()
    model.config.save_pretrained(path)
    name = "model.embed_tokens.weight" if model.config.tie_word_embeddings else "lm_head.weight"
    save_file({name: model.get_output_embeddings().weight.detach()}, path / "model.safetensors")


def _rate(
    lab: Lab, shape: str, what: str, tokens: int, seconds: float, work: Work, ceiling: Ceiling
) -> None:
    lab.add(shape, what, tokens / seconds, "tokens/s", seconds=seconds, tokens=tokens)
    share = work.flops / seconds / ceiling.flops
    lab.add(shape, f"{what}: share of the matmul ceiling", 100 * share, "%", flops=work.flops)
    floor = work.floor_s(ceiling)
    more = {"floor_s": floor, "bytes": work.bytes}
    lab.add(shape, f"{what}: times its floor", seconds / floor, "x", **more)


def _waiting(lab: Lab, shape: str, model: Any, windows: Any, reference: Any) -> None:
    """Run with torch told to raise at any wait for the device between first and last window."""
    import torch

    from qsweep.evaluate import measure

    if not lab.on_gpu:
        lab.skip(shape, "waits for the device inside the loop", "no GPU")
        return

    def watch(_: str, done: float | None) -> None:
        torch.cuda.set_sync_debug_mode("error" if done is not None and done < 1 else "default")

    try:
        measure(model, windows, reference, watch)
        lab.add(shape, "waits for the device inside the loop", "none", "", ok=True)
    except RuntimeError as error:
        lab.add(shape, "waits for the device inside the loop", str(error)[:200], "", ok=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _profile(lab: Lab, shape: str, model: Any, windows: Any, reference: Any) -> None:
    """Time by kernel, of a perplexity and of a divergence."""
    from torch.profiler import ProfilerActivity, profile

    from qsweep.evaluate import measure
    from qsweep.text.windows import Windows

    part = reference.begin(windows)
    assert isinstance(windows, Windows)
    for what, cached in (("perplexity", None), ("divergence", part)):
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as watched:
            measure(model, windows, cached)
            lab.wait()
        events = [e for e in watched.key_averages() if e.self_device_time_total > 0]
        kernels = [e for e in events if str(e.device_type).endswith("CUDA")]
        kernels.sort(key=lambda e: -e.self_device_time_total)
        total = sum(e.self_device_time_total for e in kernels) or 1.0
        lab.add(shape, f"profile of {what}: kernels", total / 1e6, "s on the GPU")
        for kernel in kernels[:_SHOWN_KERNELS]:
            share = 100 * kernel.self_device_time_total / total
            lab.add(shape, f"  {kernel.key[:46]}", share, "%", calls=kernel.count, of=what)


def _goals(lab: Lab, shape: str) -> None:
    """The figures that have a goal, beside it."""
    found = {row["what"]: row["value"] for row in lab.rows if row["subject"] == shape}
    wanted = [
        ("perplexity: share of the matmul ceiling", 100 * _SHARE_OF_CEILING, 1),
        ("divergence: time on top of perplexity", 100 * _DIVERGENCE_EXTRA, -1),
        ("divergence: memory beyond model and head", _EXTRA_GB, -1),
    ]
    for what, goal, sign in wanted:
        reached = sign * (found[what] - goal) >= 0
        lab.add(
            shape, f"goal for {what}", goal, "reached" if reached else "missed", reached=reached
        )


def _load(lab: Lab, shape: str) -> None:
    """Loading a checkpoint and a packed artifact, beside reading their bytes."""
    import time

    import torch

    from qsweep.formats.dense import load_dense
    from qsweep.formats.hf import reference_artifact
    from qsweep.models.facts import read_facts
    from qsweep.models.source import SourceModel
    from qsweep.quantizers.rtn import RTN

    with tempfile.TemporaryDirectory() as folder:
        source = save_model(make_model(shape, lab.device), Path(folder) / "source")
        lab.tidy()
        facts = read_facts(source, shape)
        out = Path(folder) / "rtn"
        out.mkdir()
        started = time.perf_counter()
        packed = RTN(4, 128).quantize(SourceModel(facts, lab.device), None, out)
        lab.add(shape, "rounding to nearest, 4 bits", time.perf_counter() - started, "s")
        dtype = torch.bfloat16 if lab.on_gpu else torch.float32
        for what, artifact in (("checkpoint", reference_artifact(facts)), ("packed", packed)):

            def load(artifact: Any = artifact) -> None:
                load_dense(artifact, source, dtype=dtype, device=lab.device)
                lab.tidy()

            size = sum(f.stat().st_size for f in artifact.path.glob("*.safetensors"))
            reading = lab.time(lambda path=artifact.path: _read_all(path), rounds=1)
            taken = lab.time(load, rounds=1)
            lab.add(shape, f"loading, {what}", taken, "s", bytes=size)
            lab.add(shape, f"loading, {what}: of the file's bytes", size / taken / 1e9, "GB/s")
            lab.add(shape, f"reading that file alone, {what}", size / reading / 1e9, "GB/s")


def _read_all(path: Path) -> None:
    for file in path.glob("*.safetensors"):
        with file.open("rb", buffering=0) as opened:
            while opened.read(1 << 24):
                pass
