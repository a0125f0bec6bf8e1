"""What quantizers refuse of a model before anything is loaded: what a checkpoint cannot hold of it.

Nothing heavy is imported.
"""

import math
from collections.abc import Iterable
from typing import Protocol

from qsweep.base.errors import IncompatibleTrial
from qsweep.formats.numbers import NumberFormat
from qsweep.formats.packed import PackedContainer
from qsweep.formats.packing import BITS
from qsweep.models.facts import CONV1D_TYPES, has_experts, read_config
from qsweep.models.source import ModelFacts


class Grouped(Protocol):
    """What is looked at of a quantizer's options, which are named as a ``GroupedOptions``' are."""

    @property
    def method(self) -> str:
        """Its name."""

    @property
    def format(self) -> NumberFormat:
        """What codes mean."""

    @property
    def bits(self) -> int:
        """Bits per code."""

    @property
    def group_size(self) -> int:
        """Weights per scale, or -1."""

    @property
    def holder(self) -> str:
        """The container that is written."""

    @property
    def takes_experts(self) -> bool:
        """Whether experts of a mixture are quantized."""

    def fits(self, shape: tuple[int, int]) -> bool:
        """Whether a linear layer of (outputs, inputs) can be quantized."""


def check_packing(
    method: str,
    container: PackedContainer,
    bits: int,
    group_size: int,
    model: ModelFacts,
    *,
    whole: bool = False,
    multiple: int = 1,
    experts: bool = False,
) -> None:
    """Refuse bits, group sizes and shapes that a checkpoint of that format cannot hold.

    A minority of linear layers that do not fit stay in 16 bits
    (:meth:`~qsweep.formats.packed.PackedContainer.kept_layers`); what most of the weights do not
    fit is refused.

    Args:
        method: What the message calls the quantizer.
        container: How codes are packed.
        bits: Bits per code.
        group_size: Weights per scale, or -1.
        model: The model.
        whole: Whether every layer must fit, because the quantizer cannot be told to leave one out.
        multiple: What the quantizer wants group sizes to be a multiple of.
        experts: Whether the quantizer takes mixtures of experts.

    Raises:
        IncompatibleTrial: With the layer and what would fit it.
    """
    if bits not in BITS:
        more = "; gguf has 5 and 6" if bits in (5, 6) else ""
        raise IncompatibleTrial(f"{method} writes 2, 3, 4 or 8 bits, not {bits}{more}")
    _require_linears(method, model, experts=experts)
    if model.model_type in CONV1D_TYPES and not container.holds_conv1d:
        raise IncompatibleTrial(
            f"{method}: {model.model_type}'s layers are Conv1D, which AWQ does not handle; "
            "gptq and rtn do"
        )
    valid = _best_group_sizes(container, multiple, model)
    kept = container.kept_layers(group_size, model.linears)
    if kept and (whole or 2 * _weights(model, kept) >= _weights(model, model.linears)):
        _refuse(method, container, group_size, model, valid, whole=whole)
    if group_size not in (-1, *container.group_sizes):
        raise IncompatibleTrial(
            f"{method}: no kernel runs group_size={group_size}; for this model: {valid}"
        )


def check_held(quantizer: Grouped, model: ModelFacts) -> None:
    """Refuse what a container other than GPTQ's and AWQ's cannot hold.

    Raises:
        IncompatibleTrial: With the layer and what would fit it.
    """
    method, name = f"{quantizer.method} {quantizer.format.name}", quantizer.holder
    _require_linears(method, model, experts=quantizer.takes_experts)
    if name == "compressed-tensors" and model.model_type in CONV1D_TYPES:
        raise IncompatibleTrial(
            f"{method}: {model.model_type}'s layers are Conv1D, which compressed-tensors does not hold"
        )
    if name == "gguf":
        from qsweep.quantizers.conversion.artifact import require_converter

        require_converter(model)
    if quantizer.format.bits is None and quantizer.bits not in BITS:
        raise IncompatibleTrial(
            f"{method}: {name} is written in 2, 3, 4 or 8 bits, not {quantizer.bits}"
        )
    kept = [layer for layer, shape in model.linears.items() if not quantizer.fits(shape)]
    if 2 * _weights(model, kept) >= _weights(model, model.linears):
        inputs = model.linears[kept[0]][1]
        raise IncompatibleTrial(
            f"{method}: groups of {quantizer.group_size} do not divide the {inputs} inputs of {kept[0]}"
        )


def _require_linears(method: str, model: ModelFacts, *, experts: bool) -> None:
    if not model.linears:
        raise IncompatibleTrial(f"{method}: no linear layers found in {model.name}")
    # What nobody can do is said before what this one cannot: it must not name another.
    if model.unread_experts:
        raise IncompatibleTrial(
            f"{method}: {model.name} stores experts as {model.unread_experts[0]}, a layout that "
            "qsweep does not take apart, so most of its weights would stay in 16 bits"
        )
    mixture = has_experts(read_config(model.path)) if model.experts is None else model.experts
    if mixture and not experts:
        raise IncompatibleTrial(
            f"{method}: {model.name} is a mixture of experts, which this quantizer leaves out; "
            "gptq, awq and rtn with quant.backend=native quantize most of them"
        )


def _weights(model: ModelFacts, names: Iterable[str]) -> int:
    return sum(math.prod(model.linears[name]) for name in names)


def _best_group_sizes(container: PackedContainer, multiple: int, model: ModelFacts) -> str:
    """The group sizes that leave the fewest weights in 16 bits, for a message."""
    sizes = (*(size for size in container.group_sizes if size % multiple == 0), -1)
    left = {size: _weights(model, container.kept_layers(size, model.linears)) for size in sizes}
    return ", ".join(str(size) for size, count in left.items() if count == min(left.values()))


def _refuse(
    method: str,
    container: PackedContainer,
    group_size: int,
    model: ModelFacts,
    valid: str,
    *,
    whole: bool,
) -> None:
    odd = [name for name, shape in model.linears.items() if not container.packs(shape)]
    minority = 2 * _weights(model, odd) < _weights(model, model.linears)
    if odd and (whole or not minority):
        outputs, inputs = model.linears[odd[0]]
        way_out = "; quant=rtn leaves such layers in 16 bits" if minority else ""
        raise IncompatibleTrial(
            f"{method} packs {container.packed_sides} by 32, but {odd[0]} is {outputs} x {inputs}"
            f"{way_out}"
        )
    for layer, shape in model.linears.items():
        if layer not in odd and not container.fits(group_size, shape):
            raise IncompatibleTrial(
                f"{method}: group_size={group_size} does not divide the {shape[1]} inputs of "
                f"{layer}; for this model: {valid}"
            )
