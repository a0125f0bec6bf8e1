"""The model as it is: the reference that every quantized one is compared with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from qsweep.base.progress import Progress, silent
from qsweep.formats.artifact import Artifact
from qsweep.formats.hf import reference_artifact
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.text.calibration import CalibrationTokens


@dataclass(frozen=True)
class Unquantized:
    """No quantization. Its artifact is the source directory itself; nothing is written."""

    method: ClassVar[str] = "none"
    backend: ClassVar[str] = "qsweep"
    uses_calibration: ClassVar[bool] = False

    def options(self) -> dict[str, Any]:
        """None."""
        return {}

    def version(self) -> str:
        """A constant: only the model's own content counts."""
        return "1"

    def check(self, model: ModelFacts) -> None:
        """Any model will do."""

    def quantize(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        out: Path,
        progress: Progress = silent,
    ) -> Artifact:
        """Refer to the source; ``out`` stays empty."""
        return reference_artifact(model.facts)
