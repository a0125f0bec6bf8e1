"""GPTQ and AWQ through GPTQModel, on CPU and CUDA: a second opinion, as the library gives it."""

import importlib.metadata
import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from qsweep.base.errors import BackendUnavailable, IncompatibleTrial
from qsweep.base.progress import Progress, silent
from qsweep.formats.artifact import Artifact
from qsweep.formats.gptq import format_of
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.quantizers.grouped import AWQOptions, GPTQOptions, GroupedOptions
from qsweep.text.calibration import CalibrationTokens

# Raised when what is done beside GPTQModel's own work changes an artifact.
_REVISION = 2
# Models whose inputs its AWQ scales without what comes before making up for it, so that they are
# broken before anything is rounded: by the norm behind the attention instead of the one before the
# MLP (Gemma, as in https://github.com/casper-hansen/AutoAWQ/issues/529), through a GELU (GPT-NeoX,
# Phi), or with no norm at all in its description of the model (Phi-3).
UNSCALABLE = frozenset(("gemma2", "gemma3", "gemma3_text", "gpt_neox", "phi", "phi3"))


@dataclass(frozen=True)
class _GPTQModelQuantizer(GroupedOptions, ABC):
    """A quantizer of GPTQModel's; fields have its names."""

    backend: ClassVar[str] = "gptqmodel"
    shows_experts_all_tokens: ClassVar[bool] = True
    takes_experts: ClassVar[bool] = True
    takes_rules: ClassVar[bool] = True

    def version(self) -> str:
        """GPTQModel's version and the revision of this module."""
        try:
            return f"{importlib.metadata.version('gptqmodel')}+{_REVISION}"
        except importlib.metadata.PackageNotFoundError:
            return "missing"

    def check(self, model: ModelFacts) -> None:
        """Refuse what the format cannot hold, and a missing library. Raises IncompatibleTrial."""
        super().check(model)
        # Before a library is asked for that could not do it either.
        if self.method == "awq" and model.model_type in UNSCALABLE:
            raise IncompatibleTrial(
                f"gptqmodel's awq scales layers of {model.model_type} that nothing before makes up "
                "for, which breaks the model; quant.backend=native finds out what does"
            )
        self._require_backend()
        self._require_definition(model)

    def _require_definition(self, model: ModelFacts) -> None:
        from qsweep.quantizers.gptqmodel.families import FAILING, NEEDED, defined_types

        kind, library = model.model_type, f"gptqmodel {self.version().partition('+')[0]}"
        if not model.experts:  # of dense models it guesses the layers by their names
            return
        if kind not in defined_types():
            raise IncompatibleTrial(
                f"{library} has no definition of {kind} and would leave its experts in 16 bits; "
                "quant.backend=native needs none"
            )
        if kind in FAILING:
            raise IncompatibleTrial(
                f"{library}, given {kind}, {FAILING[kind]}; quant.backend=native quantizes it"
            )
        package = NEEDED.get(kind, "")
        if package and importlib.util.find_spec(package.replace("-", "_")) is None:
            raise BackendUnavailable(
                f"{library}, given {kind}, needs {package}: pip install {package}"
            )

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of GPTQModel's ``QuantizeConfig``, but for what differs layer by layer."""

    def packed_settings(self) -> dict[str, Any]:
        """See :meth:`GroupedOptions.packed_settings`."""
        return self.settings()

    def quantize(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        out: Path,
        progress: Progress = silent,
    ) -> Artifact:
        """Write a GPTQ checkpoint (an asymmetric one in version 2), or AWQ's in GEMM layout."""
        self._require_backend()
        from qsweep.quantizers.gptqmodel.run import Settings, quantize

        config = Settings(
            self.plain.settings(),
            self.encoders(model.facts),
            self.kept(model.facts),
            max(own.bits for own in self.every),
        )
        return quantize(self.container, config, model, calibration, out, progress)

    def _require_backend(self) -> None:
        if self.version() == "missing":
            raise BackendUnavailable('gptqmodel is not installed: pip install "qsweep[gptqmodel]"')


@dataclass(frozen=True)
class GPTQ(_GPTQModelQuantizer, GPTQOptions):
    """GPTQ: each column's rounding error is made up for by the columns not rounded yet.

    >>> GPTQ(bits=3, desc_act=True).options()["act_group_aware"]
    False
    """

    def options(self) -> dict[str, Any]:
        """The effective options: a single group has nothing to order."""
        options = super().options()
        return options | {"act_group_aware": options["act_group_aware"] and self.group_size != -1}

    def settings(self) -> dict[str, Any]:
        """See the base class."""
        return {**self.options(), "format": format_of(self.symmetric)}


@dataclass(frozen=True)
class AWQ(_GPTQModelQuantizer, AWQOptions):
    """AWQ: input channels with strong activations are scaled up before rounding."""

    def settings(self) -> dict[str, Any]:
        """See the base class."""
        return {**self.options(), "desc_act": False, "format": "gemm"}
