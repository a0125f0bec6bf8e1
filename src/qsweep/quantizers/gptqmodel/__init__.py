"""GPTQ and AWQ through GPTQModel, on CPU and CUDA.

GPTQ: Frantar et al. 2022, https://arxiv.org/abs/2210.17323. AWQ: Lin et al. 2023,
https://arxiv.org/abs/2306.00978.
"""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from qsweep.base.errors import BackendUnavailable
from qsweep.base.progress import Progress, silent
from qsweep.formats.artifact import Artifact
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.quantizers.packed import (
    Sym,
    check_damp,
    check_packing,
    check_values,
    resolve_sym,
)
from qsweep.text.calibration import CalibrationTokens

# Raised when what is done beside GPTQModel's own work changes an artifact.
_REVISION = 1


@dataclass(frozen=True)
class GPTQ:
    """GPTQ: each column's rounding error is made up for by the columns not rounded yet.

    Fields have GPTQModel's names. ``sym`` auto means true. ``act_group_aware`` orders columns by
    their activation without a permutation at run time; ``desc_act``, which needs one, excludes it,
    and a single group has nothing to order.

    >>> GPTQ(bits=3, desc_act=True).options()["act_group_aware"]
    False
    """

    bits: int = 4
    group_size: int = 128
    desc_act: bool = False
    act_group_aware: bool = True
    sym: Sym = None
    damp_percent: float = 0.05

    method: ClassVar[str] = "gptq"
    backend: ClassVar[str] = "gptqmodel"
    uses_calibration: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_values(self.bits, self.group_size, self.sym)
        check_damp(self.damp_percent)

    def options(self) -> dict[str, Any]:
        """The effective options."""
        return {
            "bits": self.bits,
            "group_size": self.group_size,
            "desc_act": self.desc_act,
            "act_group_aware": (
                self.act_group_aware and not self.desc_act and self.group_size != -1
            ),
            "sym": resolve_sym(self.sym, auto=True),
            "damp_percent": self.damp_percent,
        }

    def version(self) -> str:
        """GPTQModel's version and the revision of this module."""
        return _version()

    def check(self, model: ModelFacts) -> None:
        """Refuse what the format cannot hold, and a missing library. Raises IncompatibleTrial."""
        check_packing(self.method, "gptq", self.bits, self.group_size, model)
        _require_backend()

    def quantize(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        out: Path,
        progress: Progress = silent,
    ) -> Artifact:
        """Write a GPTQ checkpoint; asymmetric ones in version 2, which stores every zero point."""
        options = self.options()
        _require_backend()
        from qsweep.quantizers.gptqmodel.run import quantize

        # Version 1 stores zero points less 1, and loaders disagree on what becomes of 0.
        options["format"] = "gptq" if options["sym"] else "gptq_v2"
        return quantize("gptq", options, model, calibration, out, progress)


@dataclass(frozen=True)
class AWQ:
    """AWQ: input channels with strong activations are scaled up before rounding.

    Fields have GPTQModel's names. ``sym`` auto means false.
    """

    bits: int = 4
    group_size: int = 128
    sym: Sym = None

    method: ClassVar[str] = "awq"
    backend: ClassVar[str] = "gptqmodel"
    uses_calibration: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_values(self.bits, self.group_size, self.sym)

    def options(self) -> dict[str, Any]:
        """The effective options."""
        return {
            "bits": self.bits,
            "group_size": self.group_size,
            "sym": resolve_sym(self.sym, auto=False),
        }

    def version(self) -> str:
        """GPTQModel's version and the revision of this module."""
        return _version()

    def check(self, model: ModelFacts) -> None:
        """Refuse what the format cannot hold, and a missing library. Raises IncompatibleTrial."""
        check_packing(self.method, "awq", self.bits, self.group_size, model)
        _require_backend()

    def quantize(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        out: Path,
        progress: Progress = silent,
    ) -> Artifact:
        """Write an AWQ checkpoint in GEMM layout."""
        options = {**self.options(), "desc_act": False, "format": "gemm"}
        _require_backend()
        from qsweep.quantizers.gptqmodel.run import quantize

        return quantize("awq", options, model, calibration, out, progress)


def _version() -> str:
    try:
        return f"{importlib.metadata.version('gptqmodel')}+{_REVISION}"
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _require_backend() -> None:
    if _version() == "missing":
        raise BackendUnavailable('gptqmodel is not installed: pip install "qsweep[gptqmodel]"')
