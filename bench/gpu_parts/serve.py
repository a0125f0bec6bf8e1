"""Serving: decode and prefill on the kernels that serve each format, beside what memory allows."""

import tempfile
from pathlib import Path
from typing import Any

from gpu_parts.ceiling import Ceiling, linear_weights, measure_ceiling
from gpu_parts.correctness import kernel_class
from gpu_parts.lab import Lab
from gpu_parts.models import make_model, save_model

_GROUP = 128


def run(lab: Lab) -> None:
    """Every format on both shapes."""
    ceiling = measure_ceiling(lab)
    for shape in ("llama-1b", "llama-8b") if lab.on_gpu else ("trial",):
        with tempfile.TemporaryDirectory() as folder:
            source: list[Path] = []
            with lab.step(shape, "writing the checkpoint", needs_s=60) as possible:
                if possible:
                    model = make_model(shape, lab.device)
                    source.append(save_model(model, Path(folder) / "source"))
                    del model
            for what in ("unquantized", "gptq 4", "awq 4", "gguf Q4_K_M") if source else ():
                if lab.quick and what == "awq 4":
                    continue
                with lab.step(shape, what, needs_s=60) as possible:
                    if possible:
                        _serve(lab, shape, what, source[0], Path(folder), ceiling)


def _serve(lab: Lab, shape: str, what: str, source: Path, folder: Path, ceiling: Ceiling) -> None:
    from qsweep.base.errors import IncompatibleTrial
    from qsweep.evaluate.speed import measure_speed

    out = folder / what.replace(" ", "-")
    out.mkdir()
    try:
        artifact = _artifact(what, source, out, lab.device)
    except IncompatibleTrial as error:
        lab.skip(shape, what, str(error))
        return
    quick = {"prefill_tokens": 64, "decode_tokens": 8, "repeats": 1} if lab.quick else {}
    found = measure_speed(artifact, source, lab.device, **quick)
    on_gpu = bool(found["speed_on_gpu"])
    if lab.on_gpu and not on_gpu:
        lab.skip(shape, what, "llama.cpp is built without CUDA")
        return
    more = {"kernel": _kernel(artifact, lab.device), "tokens": found["decode_tokens"]}
    lab.add(shape, f"{what}: decode", found["decode_tps"], "tokens/s", **more)
    lab.add(shape, f"{what}: prefill", found["prefill_tps"], "tokens/s")
    lab.add(shape, f"{what}: loading", found["load_s"], "s")
    lab.add(shape, f"{what}: peak memory", found["peak_memory_gb_speed"], "GB")
    _floors(lab, shape, what, artifact, found, source, ceiling)


def _floors(
    lab: Lab,
    shape: str,
    what: str,
    artifact: Any,
    found: dict[str, float],
    source: Path,
    ceiling: Ceiling,
) -> None:
    """A token reads all weights but the embedding once; a prompt is products of all linears."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source)
    embedding = 2 * config.hidden_size * config.vocab_size
    tied = config.tie_word_embeddings
    read = sum(f.stat().st_size for f in _weight_files(artifact.path))
    read -= 0 if tied or artifact.format == "gguf" else embedding
    most = ceiling.bytes / read
    share = 100 * found["decode_tps"] / most
    lab.add(shape, f"{what}: decode, most that memory allows", most, "tokens/s", bytes=read)
    lab.add(shape, f"{what}: decode, share of that", share, "%")
    flops = 2 * linear_weights(config) * found["prefill_tps"]
    lab.add(
        shape, f"{what}: prefill, share of the matmul ceiling", 100 * flops / ceiling.flops, "%"
    )


def _weight_files(path: Path) -> list[Path]:
    return [*path.glob("*.safetensors"), *path.glob("*.gguf")]


def _artifact(what: str, source: Path, out: Path, device: str) -> Any:
    """An artifact in the format; its codes are those of rounding to nearest, which is quick."""
    from qsweep.formats.hf import reference_artifact
    from qsweep.models.facts import read_facts
    from qsweep.models.source import SourceModel
    from qsweep.quantizers.gguf import GGUF
    from qsweep.quantizers.rtn import RTN

    facts = read_facts(source, source.name)
    model = SourceModel(facts, device)
    if what == "unquantized":
        return reference_artifact(facts)
    if what == "awq 4":
        return _rounded_awq(facts, out, device)
    quantizer = GGUF(bits=4) if what.startswith("gguf") else RTN(4, _GROUP, sym=True)
    quantizer.check(facts)
    return quantizer.quantize(model, None, out)


def _rounded_awq(facts: Any, out: Path, device: str) -> Any:
    import torch
    from safetensors import safe_open

    from qsweep.formats.awq import CONTAINER
    from qsweep.formats.encoder import PackedEncoder
    from qsweep.formats.numbers.rounding import round_to_grid
    from qsweep.models.facts import weight_files
    from qsweep.quantizers.native.writer import CheckpointWriter

    settings = {
        "quant_method": "awq",
        "format": "gemm",
        "checkpoint_format": "gemm",
        "version": "gemm",
        "bits": 4,
        "group_size": _GROUP,
        "zero_point": True,
        "lm_head": False,
        "pack_dtype": "int32",
    }
    encoder = PackedEncoder(CONTAINER, settings, sym=False)
    checkpoint = CheckpointWriter(out, facts.path, encoder)
    for file in weight_files(facts.path):
        with safe_open(file, framework="pt", device="cpu") as handle:
            for name in handle.keys():  # noqa: SIM118 - it is no mapping
                tensor, layer = handle.get_tensor(name), name.removesuffix(".weight")
                if layer in facts.linears and layer != name:
                    weight = tensor.to(device, torch.float32)
                    checkpoint.add_linear(layer, round_to_grid(weight, 4, _GROUP, sym=False))
                else:
                    checkpoint.add_plain(name, tensor)
    return checkpoint.finish(torch.nn.Module(), {})


def _kernel(artifact: Any, device: str) -> str:
    from qsweep.evaluate.speed import _load_gptqmodel
    from qsweep.formats.container import container

    runtime = container(artifact.format).timed_by
    if runtime == "gptqmodel":
        return kernel_class(_load_gptqmodel(artifact, device, False))
    return str(runtime)
