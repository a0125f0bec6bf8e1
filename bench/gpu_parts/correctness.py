"""Whether what is computed on the device is right: against the CPU, and against serving kernels."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_parts.lab import Lab
from gpu_parts.models import MINIATURES, random_samples, random_windows
from miniatures import miniature

# Bounds, chosen beforehand. Perplexity in float32 on the device over that on the CPU.
PPL_RATIO = 1e-3
# The same for divergences from the reference: relative, and in nats for those near 0.
KLD_RELATIVE, KLD_ABSOLUTE = 1e-2, 1e-6
# Mean divergence of a serving kernel in half precision from the dense model, in nats. Rounding of
# activations alone is some 1e-3.
KERNEL_KLD = 5e-3

TESTS = Path(__file__).resolve().parents[2] / "tests"
_CONTEXT = 128
_QUICK = ("rtn 4", "native gptq 4", "gguf Q4_K_M")


@dataclass(frozen=True)
class Figures:
    """What the engine says of an artifact, with the reference measured in the same way."""

    ppl: float
    kld: float
    itself: float
    floor: float


def quantizers() -> dict[str, Callable[[], Any]]:
    """Every method and backend, at group sizes that all miniatures have."""
    from qsweep.quantizers.gguf import GGUF
    from qsweep.quantizers.gptqmodel import AWQ, GPTQ
    from qsweep.quantizers.native import NativeAWQ, NativeGPTQ
    from qsweep.quantizers.rtn import RTN

    return {
        "rtn 4": lambda: RTN(4, 64),
        "native gptq 4": lambda: NativeGPTQ(4, 64),
        "native gptq 3 desc_act": lambda: NativeGPTQ(3, 64, desc_act=True),
        "native awq 4": lambda: NativeAWQ(4, 64),
        "gptqmodel gptq 4": lambda: GPTQ(4, 64),
        "gptqmodel gptq 8 desc_act": lambda: GPTQ(8, 64, desc_act=True),
        "gptqmodel awq 4": lambda: AWQ(4, 64),
        "gguf Q4_K_M": lambda: GGUF(bits=4, imatrix=True),
    }


def quantize(name: str, source: Path, out: Path, device: str) -> Any:
    """An artifact made on the device. Raises IncompatibleTrial where it cannot be."""
    from qsweep.models.facts import read_facts
    from qsweep.models.source import SourceModel

    facts = read_facts(source, source.name)
    quantizer = quantizers()[name]()
    quantizer.check(facts)
    out.mkdir(parents=True)
    samples = random_samples(8, _CONTEXT, facts.vocab_size)
    return quantizer.quantize(SourceModel(facts, device), samples, out)


def figures(artifact: Any, source: Path, device: str, dtype: str, scratch: Path) -> Figures:
    """Measure an artifact and its reference on a device, in a dtype."""
    import torch

    from qsweep.evaluate import build_reference, measure, noise_floor, open_reference
    from qsweep.formats.dense import load_dense
    from qsweep.formats.hf import reference_artifact
    from qsweep.models.facts import read_facts

    facts = read_facts(source, source.name)
    windows = random_windows(4, _CONTEXT, facts.vocab_size)
    kind = getattr(torch, dtype)
    plain = load_dense(reference_artifact(facts), source, dtype=kind, device=device)
    with tempfile.TemporaryDirectory(dir=scratch) as cache:
        build_reference(plain, windows, Path(cache))
        reference = open_reference(Path(cache), source, device, kind)
        floor = noise_floor(plain, windows, reference)
        del plain
        found = measure(load_dense(artifact, source, dtype=kind, device=device), windows, reference)
    return Figures(
        found.metrics["ppl"],
        found.metrics["kld"],
        floor["kld"],
        max(floor["kld_floor_batch"], floor.get("kld_floor_dtype", 0.0)),
    )


def agree(cpu: Figures, device: Figures) -> bool:
    """Whether two measurements in float32 are the same within the bounds."""
    near = abs(device.kld - cpu.kld) <= KLD_ABSOLUTE + KLD_RELATIVE * abs(cpu.kld)
    return abs(device.ppl / cpu.ppl - 1) <= PPL_RATIO and near and device.itself == 0


def kernels(artifact: Any) -> Iterator[str]:
    """GPTQModel's backends that may serve an artifact on a GPU, by name."""
    names = {"gptq": ("GPTQ_TORCH", "GPTQ_TRITON", "GPTQ_EXLLAMA_V2", "GPTQ_MARLIN")}
    names["awq"] = ("AWQ_TORCH", "AWQ_GEMM_TRITON", "AWQ_EXLLAMA_V2", "AWQ_MARLIN")
    yield from names.get(artifact.format, ())


def served(artifact: Any, source: Path, device: str, backend: str) -> tuple[float, str]:
    """Mean divergence of GPTQModel's kernel from the dense model, and the kernel's class."""
    import gptqmodel
    import torch

    from qsweep.evaluate.metrics import kl_divergence
    from qsweep.formats.dense import load_dense
    from qsweep.models.facts import read_facts

    ids = random_windows(2, _CONTEXT, read_facts(source, source.name).vocab_size).ids.to(device)
    dense = load_dense(artifact, source, dtype=torch.float32, device=device)
    with torch.inference_mode():
        expected = dense(ids).logits.flatten(0, 1)
    model = gptqmodel.GPTQModel.load(
        str(artifact.path), device=device, backend=gptqmodel.BACKEND[backend]
    ).model.eval()
    model = model.float() if device == "cpu" else model
    with torch.inference_mode():
        own = model(ids, use_cache=False).logits.flatten(0, 1)
    return float(kl_divergence(expected, own).mean()), kernel_class(model)


def kernel_class(model: Any) -> str:
    """The classes of a model's quantized layers."""
    found = {type(m).__name__ for m in model.modules() if hasattr(m, "qweight")}
    return ", ".join(sorted(found)) or "none"


def run(lab: Lab) -> None:
    """All comparisons, then the tests marked ``gpu``."""
    with tempfile.TemporaryDirectory() as folder:
        models = list(_models(lab, Path(folder)))
        for model, source in models:
            for name in _QUICK if lab.quick else quantizers():
                with lab.step(model, name, needs_s=60) as possible:
                    if possible:
                        _compare(lab, model, source, name, Path(folder))
    _run_tests(lab)


def _models(lab: Lab, folder: Path) -> Iterator[tuple[str, Path]]:
    from qsweep.models.tiny import MODEL_DIR

    yield "pocket", MODEL_DIR
    for architecture in MINIATURES:
        if not lab.quick:
            settings = MINIATURES[architecture]
            yield architecture, miniature(architecture, folder / architecture, **settings)


def _compare(lab: Lab, model: str, source: Path, name: str, folder: Path) -> None:
    from qsweep.base.errors import IncompatibleTrial

    out = folder / f"{model} {name}"
    try:
        artifact = quantize(name, source, out, lab.device)
    except IncompatibleTrial as error:
        lab.skip(model, name, str(error))
        return
    cpu = figures(artifact, source, "cpu", "float32", folder)
    same = figures(artifact, source, lab.device, "float32", folder)
    ratio = same.ppl / cpu.ppl - 1
    more = {"ok": agree(cpu, same), "ppl_cpu": cpu.ppl, "kld_cpu": cpu.kld, "kld": same.kld}
    lab.add(model, f"{name}: perplexity in float32 off the CPU's", ratio, "", **more)
    half = figures(artifact, source, lab.device, "bfloat16", folder)
    lab.add(model, f"{name}: kld in bfloat16", half.kld, "nats", kld_float32=same.kld)
    lab.add(model, f"{name}: noise floor in bfloat16", half.floor, "nats")
    lab.add(model, f"{name}: itself in bfloat16", half.itself, "nats", ok=half.itself == 0)
    if model == "pocket":
        _serve(lab, artifact, source, name, folder)


def _serve(lab: Lab, artifact: Any, source: Path, name: str, folder: Path) -> None:
    if artifact.format == "gguf":
        from qsweep.evaluate.serving import kld_native
        from qsweep.formats.gguf.native import can_use_gpu

        if lab.on_gpu and not can_use_gpu():
            lab.skip("llama.cpp", name, "built without CUDA")
            return
        windows = random_windows(2, _CONTEXT, 4096)
        found = kld_native(artifact, source, windows, device=lab.device)["kld_native"]
        lab.add("llama.cpp", f"{name}: kld_native", found, "nats")
        return
    for backend in kernels(artifact):
        if not lab.on_gpu and not backend.endswith("TORCH"):
            lab.skip(backend, name, "no GPU")
            continue
        with lab.step(backend, name, needs_s=60) as possible:
            if possible:
                found, kind = served(artifact, source, lab.device, backend)
                what = f"{name}: kernel's divergence from dense"
                lab.add(backend, what, found, "nats", ok=found <= KERNEL_KLD, kernel=kind)


def _run_tests(lab: Lab) -> None:
    if importlib.util.find_spec("pytest") is None:
        lab.skip("tests", "tests marked gpu", "pytest is not installed")
        return
    with (
        lab.step("tests", "tests marked gpu", needs_s=30) as possible,
        tempfile.TemporaryDirectory() as folder,
    ):
        if not possible:
            return
        report = Path(folder) / "report.xml"
        where = [str(TESTS / "gpu")] if not lab.on_gpu or lab.quick else [str(TESTS)]
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}"]
        source = str(TESTS.parent / "src")
        environment = {**os.environ, "PYTHONPATH": source}
        limit = max(20.0, lab.left_s)
        subprocess.run(  # noqa: S603 - this very Python
            [*command, *where], cwd=TESTS.parent, env=environment, timeout=limit, check=False
        )
        for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - just written
            failure, skipped = case.find("failure"), case.find("skipped")
            failure = case.find("error") if failure is None else failure
            test = case.get("name", "")
            if skipped is not None:
                lab.skip("tests", test, skipped.get("message", ""))
            else:
                seconds = float(case.get("time", 0))
                lab.add("tests", test, seconds, "s", ok=failure is None)
