"""The model as it is: the reference that every quantized one is compared with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from qsweep.formats.artifact import Artifact, Size
from qsweep.quantizers import CalibrationTokens, ModelFacts, Progress, SourceModel, silent

RUNTIMES = ("transformers", "vllm")


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


def reference_artifact(facts: ModelFacts) -> Artifact:
    """The unquantized model as an artifact, whose path is the model's own directory.

    Its ``bpw`` is that of the linear layers inside the decoder, like a quantized artifact's.

    Raises:
        ConfigError: The weight files are no longer there.
    """
    from qsweep.models.facts import distinct_weights, read_config, read_tensors, weight_files

    tensors = distinct_weights(read_tensors(facts.path), read_config(facts.path))
    linears = [tensors[f"{name}.weight"] for name in facts.linears]
    size = Size(
        weight_bytes=sum(file.stat().st_size for file in weight_files(facts.path)),
        linear_bits=sum(info.bits for info in linears),
        linear_weights=sum(info.count for info in linears),
        total_bits=sum(info.bits for info in tensors.values()),
        parameters=sum(info.count for info in tensors.values()),
    )
    return Artifact(facts.path, "hf", size, RUNTIMES)
