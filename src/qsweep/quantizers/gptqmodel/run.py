"""One run of GPTQModel, from a source model to the artifact's directory."""

import importlib.metadata
import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ConfigError, IncompatibleTrial
from qsweep.base.progress import Progress
from qsweep.formats.artifact import Artifact
from qsweep.formats.encoder import LayerEncoders
from qsweep.formats.packed import PackedContainer, is_split
from qsweep.models.facts import read_tensors
from qsweep.models.roles import EXPERT
from qsweep.models.source import SourceModel
from qsweep.quantizers.gptqmodel.patches import transformers_as_it_was
from qsweep.quantizers.kept import kept_details
from qsweep.quantizers.serving import closed_to
from qsweep.text.calibration import CalibrationTokens

if TYPE_CHECKING:
    import torch

# Above this many parameters, finished layers go to disk meanwhile.
_OFFLOAD_PARAMETERS = 1_000_000_000
_BATCH_TOKENS = 2048
# What of GPTQModel's settings says how the weights were made, and nothing of the machine.
_META = ("quantizer", "damp_percent", "damp_auto_increment", "act_group_aware", "true_sequential")


@dataclass(frozen=True)
class Settings:
    """What GPTQModel is told.

    Attributes:
        options: Keyword arguments of its ``QuantizeConfig``.
        encoders: What its layers become, of which some may differ.
        kept: Why layers stay in 16 bits, by name.
        bits: The most that a code has.
    """

    options: dict[str, Any]
    encoders: LayerEncoders
    kept: Mapping[str, str]
    bits: int

    @property
    def differing(self) -> dict[str, Any]:
        """What its configuration says of layers that are not like most."""
        whole = self.encoders.settings(sorted(self.kept))
        return {k: whole[k] for k in ("modules_to_not_convert", "dynamic") if k in whole}


def quantize(
    container: PackedContainer,
    settings: Settings,
    model: SourceModel,
    calibration: CalibrationTokens | None,
    out: Path,
    progress: Progress,
) -> Artifact:
    """Quantize a model with GPTQModel.

    Args:
        container: What is written.
        settings: How.
        model: The unquantized model.
        calibration: The token ids that it may see.
        out: The artifact's empty directory.
        progress: Told of the layers done.

    Raises:
        ConfigError: Calibration text is missing, or GPTQModel cannot be told to use the device.
        IncompatibleTrial: It left experts of a mixture as they are.
    """
    from qsweep.formats.hf import restore_dtypes, write_frame

    if calibration is None or not calibration.samples:
        raise ConfigError(f"{container.name} needs calibration text, and got none")
    progress("import gptqmodel", None)
    _prepare_process(model.device)
    work = out / "work"
    dtype = _compute_dtype(model, settings.bits)
    try:
        with transformers_as_it_was(model.facts.model_type):
            written, details = _run(container, settings, model, dtype, calibration, work, progress)
        progress("write", None)
        restore_dtypes(model.path, work / "saved", out)
        write_frame(model.path, out, written)
        if model.facts.experts:
            _require_experts(settings, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    packed = [name.removesuffix(".qweight") for name in read_tensors(out) if ".qweight" in name]
    experts = [name for name in packed if EXPERT.search(name)]
    # Who made it loads it; it calls experts as transformers has them in memory.
    others = set(settings.encoders.runtimes) - set(container.loading_experts)
    closed = closed_to(model.facts, experts, container.name, others) - {"gptqmodel"}
    if is_split(model.path, out):
        closed.add("transformers")
    names = tuple(name for name in settings.encoders.runtimes if name not in closed)
    return Artifact(
        path=out,
        format=container.name,
        size=container.size(out),
        runtimes=names,
        details={
            "gptqmodel": importlib.metadata.version("gptqmodel"),
            "compute_dtype": str(dtype).removeprefix("torch."),
            **details,
        },
    )


def _require_experts(settings: Settings, out: Path) -> None:
    """Refuse a checkpoint with experts in 16 bits that nothing says are to be kept."""
    left = sorted(
        name
        for name, info in read_tensors(out).items()
        if "experts" in name.split(".") and name.removesuffix(".weight") not in settings.kept
        if len(info.shape) == 3 or (len(info.shape) == 2 and name.endswith(".weight"))
    )
    if left:
        raise IncompatibleTrial(
            f"gptqmodel {importlib.metadata.version('gptqmodel')} left {len(left)} tensors of experts "
            f"in 16 bits, {left[0]} first; quant.backend=native takes them apart by itself"
        )


def _prepare_process(device: str) -> None:
    # Read when gptqmodel is imported. With 2 cores or fewer its own pools do not fit into theirs.
    if (os.cpu_count() or 1) <= 2:
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    # It would compile a packer for a minute, with or without which the result is the same.
    os.environ.setdefault("GPTQMODEL_DISABLE_PACK_EXT", "1")
    if device not in ("cpu", "cuda", "cuda:0"):
        # Its device setting keeps no number.
        number = device.partition(":")[2]
        raise ConfigError(
            f"device={device}: GPTQModel takes the first visible GPU; "
            f"set CUDA_VISIBLE_DEVICES={number} and device=cuda:0"
        )


def _compute_dtype(model: SourceModel, bits: int) -> "torch.dtype":
    """float32 on a CPU; on CUDA the checkpoint's own, unless codes of 8 bits need a finer one.

    Packing divides the rounded weights by their scale again, which in bfloat16 (8 significant
    bits) can miss a code of 8 bits by one, and by 255 where it wraps.
    """
    import torch

    from qsweep.formats.hf import usual_dtype

    if model.device == "cpu" or bits > 4:
        return torch.float32
    return usual_dtype(read_tensors(model.path).values())


def _run(
    container: PackedContainer,
    settings: Settings,
    source: SourceModel,
    dtype: "torch.dtype",
    calibration: CalibrationTokens,
    work: Path,
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, Any]]:
    # Returns the quantization_config and what is worth reporting; the weights are in work/saved.
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.quantization.config import ExpertsRoutingBypass, MoEConfig

    from qsweep.models.facts import readable_directory
    from qsweep.quantizers.gptqmodel.patches import patched_awq

    progress("load", None)
    offload = source.facts.parameters > _OFFLOAD_PARAMETERS
    differing = settings.differing
    config = QuantizeConfig(
        **settings.options,
        dynamic=differing.get("dynamic"),
        quant_method=container.name,
        device=source.device.partition(":")[0],
        offload_to_disk=offload,
        offload_to_disk_path=str(work / "offload") if offload else None,
        compute_device_filter=lambda devices: devices[:1],
        auto_forward_data_parallel=False,
        moe=MoEConfig(routing=ExpertsRoutingBypass()) if calibration.all_experts else None,
    )
    model = GPTQModel.load(
        str(readable_directory(source.path, work / "source")),
        config,
        dtype=dtype,
        trust_remote_code=source.trust_remote_code,
    )
    layers = model.model.config.get_text_config().num_hidden_layers
    model.subset_callback = _Reporter(progress, layers)
    samples = [
        {"input_ids": list(ids), "attention_mask": [1] * len(ids)} for ids in calibration.samples
    ]
    # Short samples go together: many small products take longer than one.
    batch = max(1, _BATCH_TOKENS // max(len(ids) for ids in calibration.samples))
    with patched_awq() if container.name == "awq" else nullcontext():
        backend = BACKEND[f"{container.name.upper()}_TORCH"]
        log = model.quantize(samples, batch_size=batch, backend=backend)
    progress("pack", None)
    model.save(str(work / "saved"))
    written = model.quantize_config.to_dict()
    written["meta"] = {k: v for k, v in written.get("meta", {}).items() if k in _META}
    details = _log_details([entry for entries in log.values() for entry in entries])
    return written | differing, details | kept_details(settings.kept)


class _Reporter:
    """Tells the progress from GPTQModel's events; a layer has several subsets of modules."""

    def __init__(self, progress: Progress, layers: int):
        self._progress, self._layers = progress, layers

    def subset_event(
        self, *, stage: str, layer_idx: int, subset_index: int, subset_total: int, **_: Any
    ) -> None:
        done = layer_idx + (subset_index + (stage == "quant_complete")) / max(subset_total, 1)
        self._progress(f"layer {layer_idx + 1} of {self._layers}", min(done / self._layers, 1.0))


def _log_details(log: list[dict[str, Any]]) -> dict[str, Any]:
    losses: dict[str, float] = {}
    fallback, damps = [], []
    for entry in log:
        name = f"{entry.get('layer')}.{entry.get('module')}"
        try:
            losses[name] = float(entry.get("loss", ""))
        except (TypeError, ValueError):
            if entry.get("loss") not in (None, "not applicable"):
                fallback.append(name)
        if entry.get("damp") is not None:
            damps.append(float(entry["damp"]))
    details: dict[str, Any] = {"layer_loss": dict(sorted(losses.items()))}
    if fallback:
        details["rounded_layers"] = sorted(fallback)
    if damps:
        details["damp_percent_max"] = max(damps)
    return details
