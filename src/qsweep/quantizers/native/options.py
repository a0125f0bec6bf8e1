"""The native backend's options, and what they refuse before any work."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from qsweep.base.errors import ConfigError, IncompatibleTrial
from qsweep.base.version import __version__
from qsweep.models.source import ModelFacts
from qsweep.quantizers.native.limits import LAYER_BYTES, SHARD_BYTES
from qsweep.quantizers.packed import Sym, check_damp, check_packing, check_values, resolve_sym

SEARCHES = ("range", "mse", "loss")
# Raised whenever the same options give another result; quantizers/importance.py has a number of its
# own, for where the calibration text's way through the model changes.
_REVISIONS = {"gptq": 3, "awq": 4}
# GPTQ's loop over columns takes as many together, which lie in one group.
_COLUMNS_AT_ONCE = 32


@dataclass(frozen=True)
class GPTQOptions:
    """The options of GPTQ by qsweep itself.

    Attributes:
        bits: As many as a checkpoint can hold: 2, 3, 4 or 8.
        group_size: Weights per scale; -1 for one scale per output.
        desc_act: Round the columns with the most active inputs first, across groups.
        act_group_aware: The same within groups, and group by group; off where ``desc_act`` is on.
        sym: Fix the zero point in the middle; ``auto`` does.
        damp_percent: Share of the mean diagonal that is added to the Gram matrix.
        scale_search: ``range``: a group's extremes; ``mse``: shrunk to the least |error|^2.4;
            ``loss``: to the least error weighted as GPTQ's own loss weighs a column.
        sequential: Let every stage see what quantizing the stages before made of its inputs; else
            all configurations share the unquantized model's statistics, which is quick and worse
            at few bits. ``auto`` does below 8 bits, where it tells (docs/parity.md).
        gptaq_alpha: How far weights are moved, before they are rounded, to make up for what
            quantizing the layers before did to their inputs (GPTAQ): 0 not at all, 1 all the way.

    >>> GPTQOptions(bits=4, group_size=64).options()["sym"]
    True
    """

    bits: int = 4
    group_size: int = 128
    desc_act: bool = False
    act_group_aware: bool = True
    sym: Sym = "auto"
    damp_percent: float = 0.05
    scale_search: str = "range"
    sequential: bool | Literal["auto"] = "auto"
    gptaq_alpha: float = 0.0

    method: ClassVar[str] = "gptq"
    backend: ClassVar[str] = "native"
    uses_calibration: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_values(self.bits, self.group_size, self.sym)
        check_damp(self.damp_percent)
        if self.scale_search not in SEARCHES:
            raise ConfigError(
                f"quant.scale_search={self.scale_search}: must be one of {', '.join(SEARCHES)}"
            )
        if self.sequential != "auto" and not isinstance(self.sequential, bool):
            raise ConfigError(f"quant.sequential={self.sequential}: must be true, false or auto")
        if not 0 <= self.gptaq_alpha <= 1:
            raise ConfigError(f"quant.gptaq_alpha={self.gptaq_alpha}: must lie between 0 and 1")

    def options(self) -> dict[str, Any]:
        """The effective options. With one group per output, both orders are the same."""
        one_group = self.group_size == -1
        sequential = self.bits < 8 if self.sequential == "auto" else self.sequential
        return {
            "bits": self.bits,
            "group_size": self.group_size,
            "desc_act": self.desc_act and not one_group,
            "act_group_aware": (self.act_group_aware and not self.desc_act)
            or (self.desc_act and one_group),
            "sym": resolve_sym(self.sym, auto=True),
            "damp_percent": self.damp_percent,
            "scale_search": self.scale_search,
            "sequential": sequential,
            "gptaq_alpha": self.gptaq_alpha if sequential else 0.0,
        }

    def version(self) -> str:
        """The version of qsweep, and the revision of this quantizer."""
        return f"{__version__}+{_REVISIONS[self.method]}"

    def check(self, model: ModelFacts) -> None:
        """Refuse what a GPTQ checkpoint cannot hold. Raises IncompatibleTrial."""
        check_packing(
            self.method, "gptq", self.bits, self.group_size, model, multiple=_COLUMNS_AT_ONCE
        )
        if self.group_size % _COLUMNS_AT_ONCE and self.group_size != -1:
            raise IncompatibleTrial(
                f"gptq: group_size={self.group_size}: the native backend solves {_COLUMNS_AT_ONCE} "
                f"columns at a time; take a multiple of {_COLUMNS_AT_ONCE}, or "
                "quant.backend=gptqmodel"
            )

    @property
    def pass_name(self) -> str:
        """All configurations of this backend can be made together."""
        return "native"

    def pass_bytes(self, model: ModelFacts, tokens: int) -> tuple[int, int]:
        """Host memory of a pass, and what this configuration adds."""
        options = self.options()
        walks, compares = options["sequential"], options["gptaq_alpha"] > 0
        return _pass_bytes(model, tokens, self.bits, walks=walks, compares=compares)


@dataclass(frozen=True)
class AWQOptions:
    """The options of AWQ by qsweep itself.

    Attributes:
        bits: As many as a checkpoint can hold: 2, 3, 4 or 8.
        group_size: Weights per scale; -1 for one scale per output.
        sym: Fix the zero point in the middle; ``auto`` does not.
        clip: Shrink the range of a group of weights where that lowers the loss.

    >>> AWQOptions(bits=4, group_size=64).options()["sym"]
    False
    """

    bits: int = 4
    group_size: int = 128
    sym: Sym = "auto"
    clip: bool = True

    method: ClassVar[str] = "awq"
    backend: ClassVar[str] = "native"
    uses_calibration: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_values(self.bits, self.group_size, self.sym)

    def options(self) -> dict[str, Any]:
        """The effective options."""
        return {
            "bits": self.bits,
            "group_size": self.group_size,
            "sym": resolve_sym(self.sym, auto=False),
            "clip": self.clip,
        }

    def version(self) -> str:
        """The version of qsweep, and the revision of this quantizer."""
        return f"{__version__}+{_REVISIONS[self.method]}"

    def check(self, model: ModelFacts) -> None:
        """Refuse what an AWQ checkpoint cannot hold. Raises IncompatibleTrial."""
        check_packing(self.method, "awq", self.bits, self.group_size, model)

    @property
    def pass_name(self) -> str:
        """All configurations of this backend can be made together."""
        return "native"

    def pass_bytes(self, model: ModelFacts, tokens: int) -> tuple[int, int]:
        """Host memory of a pass, and what this configuration adds."""
        return _pass_bytes(model, tokens, self.bits)


NativeOptions = GPTQOptions | AWQOptions


def _pass_bytes(
    model: ModelFacts, tokens: int, bits: int, *, walks: bool = False, compares: bool = False
) -> tuple[int, int]:
    # Weights and hidden states in float32; twice the states while a layer makes new ones of them.
    inputs = Counter(width for _, width in model.linears.values())
    states = 2 * 4 * tokens * (inputs.most_common(1)[0][0] if inputs else 0)
    widest = max(inputs, default=0)
    # A layer's activations twice: where it runs, and where configurations wait inside it.
    itself = 4 * model.parameters + states + 4 * 4 * widest**2 + 2 * LAYER_BYTES
    if compares:
        # What goes into one layer's stages: attention, its output and gate and up are narrow.
        itself += 4 * 4 * tokens * widest
    # Finished layers wait for their file to be full.
    waiting = min(model.parameters * (bits + 1) // 8, SHARD_BYTES)
    return itself, waiting + (states if walks else 0)
