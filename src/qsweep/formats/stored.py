"""How each weight of an artifact is stored, which is what sizes are counted from."""

from collections.abc import Iterable
from dataclasses import dataclass

from qsweep.formats.active import active_bytes
from qsweep.formats.artifact import Size


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the model as an artifact stores it.

    Attributes:
        name: The dense tensor's name, as the checkpoint calls it, or the file where nobody else does.
        type: What it is stored as, in the format's own words: ``BF16``, ``int4 g128``, ``Q4_K``.
        weights: How many weights it stands for.
        bits: All bits stored for it: of codes, scales, zero points, indices.
        quantized: Whether it is codes rather than numbers.
        linear: Whether ``bpw`` counts it.
    """

    name: str
    type: str
    weights: int
    bits: int
    quantized: bool
    linear: bool

    @property
    def bpw(self) -> float:
        """Stored bits per weight."""
        return self.bits / max(self.weights, 1)


def size_of(
    tensors: Iterable[StoredTensor], weight_bytes: int, chosen: float | None = None
) -> Size:
    """What an artifact of these tensors stores.

    Args:
        tensors: All of them.
        weight_bytes: Of the files that hold them.
        chosen: The share of its experts that a token is sent to, if it has some and that is known.
    """
    all_of_them = list(tensors)
    linear = [tensor for tensor in all_of_them if tensor.linear]
    return Size(
        weight_bytes=weight_bytes,
        linear_bits=sum(tensor.bits for tensor in linear),
        linear_weights=sum(tensor.weights for tensor in linear),
        total_bits=sum(tensor.bits for tensor in all_of_them),
        parameters=sum(tensor.weights for tensor in all_of_them),
        active_bytes=active_bytes({t.name: t.bits for t in all_of_them}, chosen),
    )
