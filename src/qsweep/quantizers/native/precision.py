"""Which matrix products are computed in bfloat16, where an x86 CPU has instructions for it.

They are about twice as fast as float32's. They are used where their rounding averages out: on the
calibration text's way through the model, and in losses that AWQ compares (``quick_output_loss``).
"""

from typing import Any

import torch
from torch import nn


def multiplies_bfloat16(device: str) -> bool:
    """Whether this is an x86 CPU with instructions for bfloat16."""
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device == "cpu" and bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def calibration_dtype(model: nn.Module, device: str, *, exact: bool = False) -> str:
    """What the linear layers multiply the calibration text in: bfloat16, or the model's own dtype.

    Args:
        model: The model.
        device: Where it runs.
        exact: Whether it does not run in bfloat16.
    """
    if multiplies_bfloat16(device) and not exact:
        return "bfloat16"
    return str(next(model.parameters()).dtype).removeprefix("torch.")
