"""What GPTQ and AWQ checkpoints can hold, and what can serve them. Nothing heavy is imported."""

from typing import Literal

from qsweep.errors import ConfigError, IncompatibleTrial
from qsweep.model_facts import CONV1D_TYPES, has_experts, read_config
from qsweep.quantizers import ModelFacts

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
        raise ConfigError(f"damp_percent={damp_percent}: must be between 0 and 1")


def resolve_sym(sym: Sym, auto: bool) -> bool:
    """``sym`` with auto (or None) replaced."""
    return sym if isinstance(sym, bool) else auto


def check_packing(
    method: str, packing: Packing, bits: int, group_size: int, model: ModelFacts
) -> None:
    """Refuse bits, group sizes and shapes that a checkpoint of that format cannot hold.

    Raises:
        IncompatibleTrial: With the layer and what would fit it.
    """
    if bits not in BITS:
        more = "; gguf has 5 and 6" if bits in (5, 6) else ""
        raise IncompatibleTrial(f"{method} writes 2, 3, 4 or 8 bits, not {bits}{more}")
    if not model.linears:
        raise IncompatibleTrial(f"{method}: no linear layers found in {model.name}")
    if has_experts(read_config(model.path)):
        raise IncompatibleTrial(
            f"{method}: {model.name} is a mixture of experts, which qsweep does not quantize yet"
        )
    if packing == "awq" and model.model_type in CONV1D_TYPES:
        raise IncompatibleTrial(
            f"{method}: {model.model_type}'s layers are Conv1D, which AWQ does not handle; "
            "gptq and rtn do"
        )
    if group_size != -1:
        _check_group_size(method, packing, group_size, model)
    # GPTQ packs words of 32 bits along both dimensions, AWQ along the outputs.
    for layer, (outputs, inputs) in model.linears.items():
        if outputs % 32 or (packing == "gptq" and inputs % 32):
            raise IncompatibleTrial(
                f"{method} packs rows and columns by 32, but {layer} is {outputs} x {inputs}"
            )


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


def _check_group_size(method: str, packing: Packing, group_size: int, model: ModelFacts) -> None:
    sizes = _GROUP_SIZES[packing]
    fitting = [s for s in sizes if not any(i % s for _, i in model.linears.values())]
    valid = ", ".join(map(str, [*fitting, -1]))
    for layer, (_, inputs) in model.linears.items():
        if inputs % group_size:
            raise IncompatibleTrial(
                f"{method}: group_size={group_size} does not divide the {inputs} inputs of {layer};"
                f" for this model: {valid}"
            )
    if group_size not in sizes:
        raise IncompatibleTrial(
            f"{method}: no kernel runs group_size={group_size}; for this model: {valid}"
        )
