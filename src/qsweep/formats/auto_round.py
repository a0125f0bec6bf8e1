"""AutoRound's own checkpoints: other containers' layouts under a ``quant_method`` of its own.

``packing_format`` names the layout; ``bits``, ``group_size``, ``sym``, ``data_type`` and, for
activations, the same with ``act_`` say what the numbers are (auto-round 0.16,
``export/export_to_autoround/`` and ``inference/backend.py``). Here they are put into the words of the
container that reads the layout, so that nothing else has to know of AutoRound.
"""

from collections.abc import Mapping
from typing import Any

_METHODS = ("auto-round", "intel/auto-round")
# Layouts by container, with what that container calls them. GPTQ's zero points are stored less 1 by
# AutoGPTQ's packing alone; "auto_round" by itself is the other one.
_GPTQ = {"auto_gptq": "gptq", "gptq": "gptq", "": "gptq_v2", "gptqmodel": "gptq_v2"}
_AWQ = ("auto_awq", "awq")
_FP8 = ("fp8", "fp8_static")
_COMPRESSED = "llm_compressor"


def translated(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A ``quantization_config`` as the container that reads its layout wants it.

    Settings of other methods, and of a layout that nobody reads, stay as they are.
    """
    if settings.get("quant_method") not in _METHODS:
        return dict(settings)
    layout = str(settings.get("packing_format") or settings.get("backend") or "auto_gptq")
    layout = layout.removeprefix("auto_round").removeprefix(":")
    if layout in _GPTQ:
        return {**settings, "quant_method": "gptq", "checkpoint_format": _GPTQ[layout]}
    if layout in _AWQ:
        zero_point = settings.get("sym") is not True
        return {**settings, "quant_method": "awq", "version": "gemm", "zero_point": zero_point}
    if layout == "fp8" and settings.get("weight_block_size"):
        return {**settings, "quant_method": "fp8"}
    weights = _numbers(settings)
    if weights is None or layout not in (_COMPRESSED, *_FP8):
        return dict(settings)
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": _numbers(settings, True),
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "config_groups": {"group_0": group},
    }


def _numbers(settings: Mapping[str, Any], activations: bool = False) -> dict[str, Any] | None:
    # In compressed-tensors' words; None if they are not rounded, or not known.
    before = "act_" if activations else ""
    bits, kind = settings.get(f"{before}bits"), str(settings.get(f"{before}data_type") or "")
    size = settings.get(f"{before}group_size")
    if not isinstance(bits, int) or bits > 8:
        return None
    dynamic = activations and settings.get("act_dynamic") is not False
    found: dict[str, Any] = {
        "num_bits": bits,
        "type": "int" if kind.startswith("int") else "float",
        "symmetric": settings.get(f"{before}sym") is not False,
        "dynamic": dynamic,
    }
    if kind.startswith("mx"):
        return {**found, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
    if kind.startswith("nv"):
        dynamic = "local" if activations else False
        return {**found, "strategy": "tensor_group", "group_size": 16, "dynamic": dynamic}
    if not kind.startswith(("int", "fp", "float")):
        return None
    if isinstance(size, list):
        return {**found, "strategy": "block", "block_structure": size}
    if size == -1:
        return {**found, "strategy": "token" if dynamic else "tensor" if activations else "channel"}
    return {**found, "group_size": size} if size else {**found, "strategy": "tensor"}
