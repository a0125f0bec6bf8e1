"""The native backend's quantizers: GPTQ and AWQ, alone or many in one pass over a model."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from qsweep.base.errors import ConfigError, IncompatibleTrial
from qsweep.base.progress import Progress, silent
from qsweep.base.version import __version__
from qsweep.formats.artifact import Artifact
from qsweep.formats.gptq import format_of
from qsweep.formats.numbers import NF4, Search
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.quantizers.checks import check_packing
from qsweep.quantizers.grouped import AWQOptions, GPTQOptions, GroupedOptions, packed_settings
from qsweep.quantizers.native.limits import COUPLED_OUTPUTS, LAYER_BYTES, SHARD_BYTES
from qsweep.quantizers.protocol import PassResult, SharedPass
from qsweep.text.calibration import CalibrationTokens

SEARCHES = get_args(Search)
# GPTQ's loop over columns takes as many together, which lie in one group.
_COLUMNS_AT_ONCE, _FEWEST_COLUMNS = 32, 16


@dataclass(frozen=True)
class _NativeQuantizer(GroupedOptions):
    """A quantizer by qsweep itself; one pass over a model serves all of them together.

    Attributes:
        unseen_experts: What experts are quantized for that no calibration token is sent to:
            ``nearest``: nothing, they are rounded to nearest; ``shared``: the mean of what goes into
            the experts beside them. It makes no difference that could be measured (docs/parity.md).
        revision: Raised whenever the same options give another result; quantizers/importance.py has
            a number of its own, for where the calibration text's way through the model changes.
    """

    unseen_experts: Literal["nearest", "shared"] = "nearest"

    backend: ClassVar[str] = "native"
    any_format: ClassVar[bool] = True
    takes_experts: ClassVar[bool] = True
    shows_experts_all_tokens: ClassVar[bool] = True
    takes_rules: ClassVar[bool] = True
    revision: ClassVar[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unseen_experts not in ("nearest", "shared"):
            raise ConfigError(
                f"quant.unseen_experts={self.unseen_experts}: must be nearest or shared"
            )

    def options(self) -> dict[str, Any]:
        """The effective options; of experts without tokens only where they are not rounded to nearest."""
        shared = {"unseen_experts": "shared"} if self.unseen_experts == "shared" else {}
        return super().options() | shared

    def version(self) -> str:
        """The version of qsweep, and the revision of this quantizer."""
        return f"{__version__}+{self.revision}{self.written_by}"

    def check_format(self) -> None:
        """See :meth:`GroupedOptions.check_format`; also scales that are quantized in turn."""
        super().check_format()
        if isinstance(self.format, NF4) and self.format.double_quant:
            raise IncompatibleTrial(
                f"{self.method} {self.format.name}: scales of 8 bits are made after rounding to nearest "
                "only (quant=rtn); format.double_quant=false"
            )

    @property
    def pass_name(self) -> str:
        """All configurations of this backend can be made together."""
        return self.backend

    def pass_bytes(self, model: ModelFacts, tokens: int) -> tuple[int, int]:
        """Host memory of a pass, and what this configuration adds."""
        options = self.options()
        # Weights and hidden states in float32; twice the states while a layer makes new ones.
        inputs = Counter(width for _, width in model.linears.values())
        states = 2 * 4 * tokens * (inputs.most_common(1)[0][0] if inputs else 0)
        widest = max(inputs, default=0)
        # A layer's activations twice: where it runs, and where configurations wait inside it.
        itself = 4 * model.parameters + states + 4 * 4 * widest**2 + 2 * LAYER_BYTES
        itself += _bytes_of_experts(model)
        if options.get("gptaq_alpha", 0) > 0:
            # What goes into one layer's stages: attention, its output and gate and up are narrow.
            itself += 4 * 4 * tokens * widest
        if options.get("gptq_output_hessian"):
            itself += _bytes_of_outputs(model, tokens)
        # Finished layers wait for their file to be full.
        waiting = min(model.parameters * (self.bits + 1) // 8, SHARD_BYTES)
        if self.format.smoothing is not None:
            # A layer of its own, twice, and its inputs' Gram matrices.
            waiting += 3 * 4 * 4 * widest**2
        if options.get("gptq_output_hessian"):
            # Of the layers at hand errors of two kinds, and factors.
            waiting += LAYER_BYTES // 2
        return itself, waiting + (states if options.get("sequential") else 0)

    def quantize(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        out: Path,
        progress: Progress = silent,
    ) -> Artifact:
        """Quantize one configuration; see :func:`quantize_grid`."""
        return quantize_grid(model, calibration, [(self, out)], progress)[0]

    def quantize_together(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        configurations: Sequence[tuple[SharedPass, Path]],
        progress: Progress = silent,
        *,
        importance: bool = False,
    ) -> PassResult:
        """See :func:`quantize_grid`."""
        from qsweep.quantizers.native.grid import run

        return run(model, calibration, configurations, progress, importance=importance)


@dataclass(frozen=True)
class NativeGPTQ(_NativeQuantizer, GPTQOptions):
    """GPTQ by qsweep itself.

    Attributes:
        scale_search: ``range``: a group's extremes; ``mse``: shrunk to the least |error|^2.4;
            ``loss``: to the least error weighted as GPTQ's own loss weighs a column.
        sequential: Let every stage see what quantizing the stages before made of its inputs; else
            all configurations share the unquantized model's statistics, which is quick and worse
            at few bits. ``auto`` does below 8 bits, where it tells (docs/parity.md).
        gptaq_alpha: How far weights are moved, before they are rounded, to make up for what
            quantizing the layers before did to their inputs (GPTAQ): 0 not at all, 1 all the way.
        gptq_output_hessian: Weigh errors of outputs by what the KL divergence feels of them, and
            pass errors on from output to output, too (``two_sided.py``); one walk backwards through the
            unquantized model finds that out for all configurations of a pass.

    >>> NativeGPTQ(bits=4, group_size=64).options()["sym"]
    True
    """

    scale_search: Search = "range"
    sequential: bool | Literal["auto"] = "auto"
    gptaq_alpha: float = 0.0
    gptq_output_hessian: bool = False

    revision: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale_search not in SEARCHES:
            raise ConfigError(
                f"quant.scale_search={self.scale_search}: must be one of {', '.join(SEARCHES)}"
            )
        if self.sequential != "auto" and not isinstance(self.sequential, bool):
            raise ConfigError(f"quant.sequential={self.sequential}: must be true, false or auto")
        if not 0 <= self.gptaq_alpha <= 1:
            raise ConfigError(f"quant.gptaq_alpha={self.gptaq_alpha}: must lie between 0 and 1")
        if not isinstance(self.gptq_output_hessian, bool):
            raise ConfigError(
                f"quant.gptq_output_hessian={self.gptq_output_hessian}: must be true or false"
            )

    def options(self) -> dict[str, Any]:
        """The effective options; the output's Hessian only where it is asked for.

        With one group per output, both orders are the same.
        """
        fewest = min(own.bits for own in (self, *self.by_rule.values()) if own is not None)
        sequential = fewest < 8 if self.sequential == "auto" else self.sequential
        options = super().options() | {
            "scale_search": self.format.searched(self.scale_search),
            "sequential": sequential,
            "gptaq_alpha": self.gptaq_alpha if sequential else 0.0,
        }
        if self.desc_act and self.group_size == -1:
            options |= {"desc_act": False, "act_group_aware": True}
        weighs = {"gptq_output_hessian": True} if self.gptq_output_hessian else {}
        return options | weighs

    def packed_settings(self) -> dict[str, Any]:
        """See :meth:`GroupedOptions.packed_settings`."""
        options = self.options()
        settings = packed_settings("gptq", format_of(self.symmetric), options) | {
            "desc_act": options["desc_act"],
            "sym": options["sym"],
            "true_sequential": options["sequential"],
        }
        for name in ("damp_percent", "act_group_aware", "gptaq_alpha"):
            settings["meta"][name] = options[name]
        if self.gptq_output_hessian:
            settings["meta"]["gptq_output_hessian"] = True
        return settings

    def check_format(self) -> None:
        """See :meth:`_NativeQuantizer.check_format`; outputs that share scales are rounded together."""
        super().check_format()
        shares = [own for own in self.every if own.format.rows != 1]
        if self.gptq_output_hessian and shares:
            raise IncompatibleTrial(
                f"gptq {shares[0].format.name}: quant.gptq_output_hessian=true rounds outputs one after "
                "another, and here they share a scale; quant.gptq_output_hessian=false"
            )

    def check_layers(self, model: ModelFacts) -> None:
        """See :meth:`GroupedOptions.check_layers`; also the solver's own bounds."""
        size, ours = self.group_size, self.holder == self.container.name
        if not ours:
            super().check_layers(model)
            self._check_order()
        multiple = _COLUMNS_AT_ONCE if ours else _FEWEST_COLUMNS
        if ours:
            check_packing(
                self.method,
                self.container,
                self.bits,
                size,
                model,
                multiple=multiple,
                experts=self.takes_experts,
            )
        if size % multiple and size != -1:
            # It writes GPTQ's own checkpoints alone, and knows some mixtures only.
            other = ", or quant.backend=gptqmodel" if ours and not model.experts else ""
            raise IncompatibleTrial(
                f"gptq: group_size={size}: the native backend solves {multiple} columns at a time; "
                f"take a multiple of {multiple}{other}"
            )

    def _check_order(self) -> None:
        if self.options()["desc_act"]:
            raise IncompatibleTrial(
                f"gptq {self.format.name}: no order across groups is written into {self.holder}; "
                "desc_act=false orders columns in a way that leaves none"
            )


@dataclass(frozen=True)
class NativeAWQ(_NativeQuantizer, AWQOptions):
    """AWQ by qsweep itself.

    Attributes:
        clip: Shrink the range of a group of weights where that lowers the loss.

    >>> NativeAWQ(bits=4, group_size=64).options()["sym"]
    False
    """

    clip: bool = True

    revision: ClassVar[int] = 4

    def options(self) -> dict[str, Any]:
        """The effective options."""
        return super().options() | {"clip": self.clip}

    def packed_settings(self) -> dict[str, Any]:
        """See :meth:`GroupedOptions.packed_settings`."""
        return packed_settings("awq", "gemm", self.options()) | {
            "desc_act": False,
            "version": "gemm",
            "zero_point": not self.symmetric,
        }


def _bytes_of_outputs(model: ModelFacts, tokens: int) -> int:
    """What the outputs' Hessians take, and the walk backwards that finds them."""
    hessians = sum(4 * rows * min(rows, COUPLED_OUTPUTS) for rows, _ in model.linears.values())
    widths = Counter(width for _, width in model.linears.values())
    width = widths.most_common(1)[0][0] if widths else 0
    # The hidden states before each layer, of which none has more than seven linear ones but mixtures,
    # whose experts count for more.
    layers = -(-len(model.linears) // 4)
    return hessians + 4 * tokens * width * layers


def _bytes_of_experts(model: ModelFacts) -> int:
    """What a layer's experts take beside their place in the model.

    Their Gram matrices, of the unquantized model and, as many as run side by side, of a configuration
    that walks through a copy of the layer; and that copy.
    """
    widths: dict[str, set[tuple[str, int]]] = {}
    weights: Counter[str] = Counter()
    for name, (rows, columns) in model.linears.items():
        expert, _, _ = name.rpartition(".")
        module, _, number = expert.rpartition(".")
        if number.isdecimal() and module.endswith("experts"):
            # An expert's first layers are given the same.
            widths.setdefault(module, set()).add((number, columns))
            weights[module] += rows * columns
    grams = max((sum(4 * c**2 for _, c in found) for found in widths.values()), default=0)
    return grams + min(grams, LAYER_BYTES) + 4 * max(weights.values(), default=0)


def quantize_grid(
    model: SourceModel,
    calibration: CalibrationTokens | None,
    configurations: Sequence[tuple[SharedPass, Path]],
    progress: Progress = silent,
) -> list[Artifact]:
    """Quantize every configuration into its directory with one pass over the model.

    A configuration's result does not depend on the others. ``details`` of each artifact tell its
    own seconds (``quantize_s``), those of the pass that all share (``shared_s``), and the loss of
    every linear layer (``loss``): the mean square error of its output, summed over outputs.

    Args:
        model: The unquantized model.
        calibration: Token ids; every configuration sees the same.
        configurations: Quantizers, and the empty directories that they write to.
        progress: Told of the decoder layers done.

    Raises:
        IncompatibleTrial: a configuration cannot exist for this model.
        TrialFailed: activations are not finite, or a matrix cannot be factorized; names the layer.
    """
    from qsweep.quantizers.native.grid import run

    return run(model, calibration, configurations, progress).artifacts
