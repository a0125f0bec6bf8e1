"""How large an artifact will be, before it is made: enough to refuse what is out of reach. Pure."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from qsweep.formats.numbers import Int
from qsweep.models.config import read_config
from qsweep.models.facts import distinct_weights, read_tensors
from qsweep.models.source import ModelFacts
from qsweep.quantizers.grouped import GroupedOptions
from qsweep.quantizers.protocol import Quantizer

UNSURE = 0.05
"""How far from the truth an estimate may be, as a share."""

# Of a group: its scale; a zero point has as many bits as a code.
_SCALE_BITS = 16


class Estimate(NamedTuple):
    """What an artifact will store: bytes of its weight files, and bits per quantized weight."""

    bytes: float
    bpw: float


def estimate(quant: Quantizer, facts: ModelFacts) -> Estimate | None:
    """What a candidate's artifact will store; None of formats for which nobody has counted.

    Args:
        quant: The candidate.
        facts: The model.
    """
    if not isinstance(quant, GroupedOptions) or quant.holder not in ("gptq", "compressed-tensors"):
        return None
    layers = quant.quantized(facts)
    if not layers or not all(isinstance(own.format, Int) for own in layers.values()):
        return None
    shapes = facts.all_linears
    bits = sum(_bits(own, shapes[name]) for name, own in layers.items())
    weights = sum(math.prod(shapes[name]) for name in layers)
    stored = distinct_weights(read_tensors(facts.path), read_config(facts.path))
    # What is not quantized stays as it is.
    whole = sum(info.bits for info in stored.values())
    each = whole / sum(info.count for info in stored.values())
    own = (stored.get(f"{name}.weight") for name in layers)
    # Experts may lie in stacks.
    rest = whole - sum(
        each * math.prod(shapes[name]) if info is None else info.bits
        for name, info in zip(layers, own, strict=True)
    )
    return Estimate((bits + rest) / 8, bits / weights)


def reach(found: Sequence[Estimate], kind: str, beside: int = 0) -> tuple[float, float]:
    """The smallest and the largest budget of a kind that mixes of candidates may have.

    Args:
        found: What the candidates store.
        kind: See :data:`~qsweep.search.budget.settings.KINDS`.
        beside: Bytes that are needed beside the weights.
    """
    if kind == "bpw":
        values = [one.bpw for one in found]
    else:
        values = [(one.bytes + beside) / 1e9 for one in found]
    return min(values), max(values)


def _bits(own: GroupedOptions, shape: tuple[int, int]) -> float:
    rows, columns = shape
    groups = 1 if own.group_size == -1 else -(-columns // own.group_size)
    of_group = _SCALE_BITS + (0 if own.symmetric and own.holder != "gptq" else own.bits)
    # GPTQ tells the group of each column.
    order = 32 * columns if own.holder == "gptq" else 0
    return rows * (columns * own.bits + groups * of_group) + order
