"""Quantizing: seconds and peak memory for one and for six configurations, beside the floor."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpu_parts.ceiling import Ceiling, calibration_work, measure_ceiling
from gpu_parts.lab import Lab
from gpu_parts.models import make_model, random_samples, save_model

# The libraries are slow: they get so many layers, and every figure of theirs says so.
_LIBRARY_LAYERS = 4
_SIX = ((3, 64), (4, 64), (8, 64), (3, 128), (4, 128), (8, 128))


def run(lab: Lab) -> None:
    """The native backend on whole models, the libraries on their first layers."""
    ceiling = measure_ceiling(lab)
    small, large = ("llama-1b", "llama-8b") if lab.on_gpu else ("trial", None)
    library = 1 if lab.quick else 3
    _shape(lab, small, None, _native(), ceiling)
    _shape(lab, small, _LIBRARY_LAYERS, _libraries()[:library], ceiling)
    if large is not None:
        _shape(lab, large, _LIBRARY_LAYERS, _native() + _libraries()[:library], ceiling)
        # The longest last: whatever time is left is its.
        _shape(lab, large, None, _native(), ceiling)


def _native() -> list[tuple[str, list[Any], bool]]:
    from qsweep.quantizers.native import NativeAWQ, NativeGPTQ

    return [
        ("native gptq, 1 configuration", [NativeGPTQ(4, 128)], False),
        ("native gptq, 6 configurations", [NativeGPTQ(*size) for size in _SIX], False),
        ("native awq, 6 configurations", [NativeAWQ(*size) for size in _SIX], False),
    ]


def _libraries() -> list[tuple[str, list[Any], bool]]:
    from qsweep.quantizers.gguf import GGUF
    from qsweep.quantizers.gptqmodel import AWQ, GPTQ

    return [
        ("gptqmodel gptq, 1 configuration", [GPTQ(4, 128)], True),
        ("gptqmodel awq, 1 configuration", [AWQ(4, 128)], True),
        ("gguf Q4_K_M with importance matrix", [GGUF(bits=4, imatrix=True)], True),
    ]


def _shape(
    lab: Lab,
    shape: str,
    layers: int | None,
    work: Sequence[tuple[str, list[Any], bool]],
    ceiling: Ceiling,
) -> None:
    subject = shape if layers is None else f"{shape}, first {layers} layers only"
    with tempfile.TemporaryDirectory() as folder:
        source: list[Path] = []
        with lab.step(subject, "writing the checkpoint", needs_s=30) as possible:
            if not possible:
                return
            model = make_model(shape, lab.device, layers)
            config = model.config
            source.append(save_model(model, Path(folder) / "source"))
            del model
        if not source:
            return
        for what, quantizers, _ in work:
            needs = 60 if shape != "llama-8b" or layers is not None else 150
            with lab.step(subject, what, needs_s=needs) as possible:
                if possible:
                    _measure(lab, subject, what, quantizers, source[0], config, ceiling)


def _measure(
    lab: Lab,
    subject: str,
    what: str,
    quantizers: list[Any],
    source: Path,
    config: Any,
    ceiling: Ceiling,
) -> None:
    from qsweep.base.errors import IncompatibleTrial
    from qsweep.base.memory import peak_memory, reset_peak_memory
    from qsweep.models.facts import read_facts
    from qsweep.models.source import SourceModel

    count, length = (128, 2048) if lab.on_gpu and not lab.quick else (16, 512)
    if not lab.on_gpu:
        count, length = 4, 64
    samples = random_samples(count, length, config.vocab_size)
    model = SourceModel(read_facts(source, subject), lab.device)
    for quantizer in quantizers:
        try:
            quantizer.check(model.facts)
        except IncompatibleTrial as error:
            lab.skip(subject, what, str(error))
            return
    run_all = _runner(quantizers, model, samples)
    reset_peak_memory(lab.device)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        details = run_all(Path(folder))
        lab.wait()
        seconds = time.perf_counter() - started
    tokens = count * length
    lab.add(subject, what, seconds, "s", tokens=tokens, **details)
    peak = peak_memory(lab.device)
    if lab.on_gpu:
        lab.add(subject, f"{what}: peak memory", peak["peak_memory_gb"], "GB")
    lab.add(subject, f"{what}: peak host memory so far", peak["peak_host_memory_gb"], "GB")
    work = calibration_work(config, tokens, 2 if lab.on_gpu else 4)
    floor = work.floor_s(ceiling)
    more = {"flops": work.flops, "bytes": work.bytes}
    lab.add(subject, f"{what}: floor of one calibration pass", floor, "s", **more)


def _runner(quantizers: list[Any], model: Any, samples: Any) -> Callable[[Path], dict[str, Any]]:
    from qsweep.quantizers.native import NativeAWQ, NativeGPTQ, quantize_grid

    def run_all(folder: Path) -> dict[str, Any]:
        pairs = [(quantizer, folder / str(n)) for n, quantizer in enumerate(quantizers)]
        for _, out in pairs:
            out.mkdir()
        if isinstance(quantizers[0], NativeAWQ | NativeGPTQ):
            made = quantize_grid(model, samples, pairs)
            shared = made[0].details["shared_s"]
            return {"shared_s": shared, "own_s": [a.details["quantize_s"] for a in made]}
        for quantizer, out in pairs:
            quantizer.quantize(model, samples, out)
        return {}

    return run_all
