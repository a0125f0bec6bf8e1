"""What GPTQ and AWQ checkpoints can hold, and what can serve them. Nothing heavy is imported."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from qsweep.base.errors import ConfigError, IncompatibleTrial
from qsweep.models.architecture import NO_EXPERTS
from qsweep.models.facts import CONV1D_TYPES, has_experts, read_config
from qsweep.models.source import ModelFacts

BITS = (2, 3, 4, 8)
Packing = Literal["gptq", "awq"]
Sym = bool | Literal["auto"] | None

# Group sizes that GPTQModel's portable kernel of each format runs.
_GROUP_SIZES = {"gptq": (16, 32, 64, 128, 256, 512, 1024), "awq": (16, 32, 64, 128)}
# Those of Marlin, through which vLLM serves both formats.
_MARLIN_GROUP_SIZES = (-1, 32, 64, 128)


def check_values(bits: int, group_size: int, sym: Sym) -> None:
    """Refuse values that no model could make sense of. Raises ConfigError."""
    if bits < 1:
        raise ConfigError(f"bits={bits}: must be at least 1")
    if group_size != -1 and group_size < 1:
        raise ConfigError(f"group_size={group_size}: must be -1 (one group per row) or positive")
    if sym not in (True, False, "auto", None):
        raise ConfigError(f"sym={sym}: must be true, false or auto")


def check_damp(damp_percent: float) -> None:
    """Refuse a damping that is no share. Raises ConfigError."""
    if not 0 < damp_percent < 1:
        raise ConfigError(f"quant.damp_percent={damp_percent}: must be between 0 and 1")


def resolve_sym(sym: Sym, auto: bool) -> bool:
    """``sym`` with auto (or None) replaced."""
    return sym if isinstance(sym, bool) else auto


def check_packing(
    method: str,
    packing: Packing,
    bits: int,
    group_size: int,
    model: ModelFacts,
    *,
    whole: bool = False,
    multiple: int = 1,
) -> None:
    """Refuse bits, group sizes and shapes that a checkpoint of that format cannot hold.

    A minority of linear layers that do not fit stay in 16 bits (:func:`kept_layers`); what most of
    the weights do not fit is refused.

    Args:
        method: What the message calls the quantizer.
        packing: How codes are packed.
        bits: Bits per code.
        group_size: Weights per scale, or -1.
        model: The model.
        whole: Whether every layer must fit, because the quantizer cannot be told to leave one out.
        multiple: What the quantizer wants group sizes to be a multiple of.

    Raises:
        IncompatibleTrial: With the layer and what would fit it.
    """
    if bits not in BITS:
        more = "; gguf has 5 and 6" if bits in (5, 6) else ""
        raise IncompatibleTrial(f"{method} writes 2, 3, 4 or 8 bits, not {bits}{more}")
    if not model.linears:
        raise IncompatibleTrial(f"{method}: no linear layers found in {model.name}")
    if has_experts(read_config(model.path)) if model.experts is None else model.experts:
        raise IncompatibleTrial(f"{method}: {model.name} is {NO_EXPERTS}")
    if packing == "awq" and model.model_type in CONV1D_TYPES:
        raise IncompatibleTrial(
            f"{method}: {model.model_type}'s layers are Conv1D, which AWQ does not handle; "
            "gptq and rtn do"
        )
    valid = _best_group_sizes(packing, multiple, model)
    kept = kept_layers(packing, group_size, model.linears)
    if kept and (whole or 2 * _weights(model, kept) >= _weights(model, model.linears)):
        _refuse(method, packing, group_size, model, valid, whole=whole)
    if group_size not in (-1, *_GROUP_SIZES[packing]):
        raise IncompatibleTrial(
            f"{method}: no kernel runs group_size={group_size}; for this model: {valid}"
        )


def kept_layers(
    packing: Packing, group_size: int, linears: Mapping[str, tuple[int, int]]
) -> list[str]:
    """The names of linear layers whose shape the format cannot hold, and that stay in 16 bits."""
    return [name for name, shape in linears.items() if not fits(packing, group_size, shape)]


def fits(packing: Packing, group_size: int, shape: tuple[int, int]) -> bool:
    """Whether a linear layer of (outputs, inputs) can be packed with that group size.

    >>> fits("gptq", 64, (128, 256)), fits("gptq", 64, (4, 256)), fits("gptq", 64, (128, 96))
    (True, False, False)
    """
    return _packs(packing, shape) and (group_size == -1 or shape[1] % group_size == 0)


def kept_settings(names: Sequence[str]) -> dict[str, Any]:
    """What a ``quantization_config`` says of linear layers that are not quantized.

    ``modules_to_not_convert`` is what transformers and vLLM read of AWQ, a ``dynamic`` rule that
    begins with a minus what GPTQModel and vLLM read of GPTQ. ``names`` may also be those of modules
    with all that is below them; in memory, a name may be longer at its begin.
    """
    if not names:
        return {}
    return {
        "modules_to_not_convert": list(names),
        "dynamic": {rf"-:^(.*\.)?{re.escape(name)}(\.|$)": {} for name in names},
    }


def runtimes(packing: Packing, bits: int, group_size: int, sym: bool) -> tuple[str, ...]:
    """What can serve such a checkpoint, by name.

    From the tables of GPTQModel 7.6 (``SUPPORTS_BITS`` and the like of its kernels), transformers 5
    and vLLM (its auto_gptq and auto_awq configurations, as of 2026). ``transformers`` reads both
    formats through GPTQModel, and GPTQ only with optimum installed as well.
    """
    names = ["gptqmodel", "transformers"]
    marlin = group_size in _MARLIN_GROUP_SIZES
    if packing == "gptq":
        if marlin and sym and bits in (4, 8):
            names.append("vllm")
        if bits == 4 and sym:
            names.append("exllamav2")
    elif bits == 4 and marlin and not sym:
        names.append("vllm")
    return tuple(names)


def _packs(packing: Packing, shape: tuple[int, int]) -> bool:
    # GPTQ packs words of 32 bits along both dimensions, AWQ along the outputs.
    outputs, inputs = shape
    return outputs % 32 == 0 and (packing == "awq" or inputs % 32 == 0)


def _weights(model: ModelFacts, names: Iterable[str]) -> int:
    return sum(math.prod(model.linears[name]) for name in names)


def _best_group_sizes(packing: Packing, multiple: int, model: ModelFacts) -> str:
    """The group sizes that leave the fewest weights in 16 bits, for a message."""
    sizes = (*(size for size in _GROUP_SIZES[packing] if size % multiple == 0), -1)
    left = {size: _weights(model, kept_layers(packing, size, model.linears)) for size in sizes}
    return ", ".join(str(size) for size, count in left.items() if count == min(left.values()))


def _refuse(
    method: str, packing: Packing, group_size: int, model: ModelFacts, valid: str, *, whole: bool
) -> None:
    odd = [name for name, shape in model.linears.items() if not _packs(packing, shape)]
    minority = 2 * _weights(model, odd) < _weights(model, model.linears)
    if odd and (whole or not minority):
        outputs, inputs = model.linears[odd[0]]
        words = "rows and columns" if packing == "gptq" else "rows"
        way_out = "; quant=rtn leaves such layers in 16 bits" if minority else ""
        raise IncompatibleTrial(
            f"{method} packs {words} by 32, but {odd[0]} is {outputs} x {inputs}{way_out}"
        )
    for layer, shape in model.linears.items():
        if layer not in odd and not fits(packing, group_size, shape):
            raise IncompatibleTrial(
                f"{method}: group_size={group_size} does not divide the {shape[1]} inputs of "
                f"{layer}; for this model: {valid}"
            )
