"""How much memory there is for activations, and how much a decoder layer takes."""

import torch
from torch import nn

from qsweep.base.memory import available_bytes
from qsweep.quantizers.native.graph import linears_of, raw_weight
from qsweep.quantizers.native.limits import LAYER_BYTES


def budget(device: torch.device) -> int:
    """Bytes that activations may take on a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // 4
    return LAYER_BYTES


def free_budget(device: torch.device) -> int:
    """The same, on a host that has little free memory no more than half of that.

    Only for what does not decide in which shapes anything is computed.
    """
    room = budget(device)
    return room if device.type == "cuda" else max(min(room, available_bytes() // 2), 1)


class Room:
    """What there is room for from layer to layer: no more than there has been so far.

    What a control group can drop is known late, and seems to be more right after files were written:
    a layer that takes what there was no room for before is killed for it.
    """

    def __init__(self) -> None:
        self._free: int | None = None
        self._ahead = True

    def free(self, device: torch.device) -> int:
        """:func:`free_budget`, the least so far."""
        now = free_budget(device)
        self._free = now if self._free is None else min(self._free, now)
        return self._free

    def reads_ahead(self, layer: nn.Module) -> bool:
        """Whether the next decoder layer may be in memory while one is quantized, as with all before.

        It is as large; statistics, a configuration's weights, codes and factors, and what is packed of
        them take up to four times that besides. Reading it later takes a small part of the time.
        """
        size = sum(each.numel() * each.element_size() for each in layer.parameters())
        self._ahead = self._ahead and available_bytes() >= 6 * size
        return self._ahead


def activation_bytes(layer: nn.Module, tokens: int) -> int:
    """Bytes of a decoder layer's activations while so many tokens go through it."""
    # A gated feed-forward block holds about four tensors of its width at a time; attention scores
    # are not materialized by PyTorch's fused attention.
    weights = [raw_weight(linear) for linear in linears_of(layer).values()]
    widest = max((max(w.shape) for w in weights), default=1)
    return 4 * widest * next(layer.parameters()).element_size() * tokens
