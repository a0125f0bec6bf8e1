"""What quantizers whose libraries work in environments of their own do alike."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from qsweep.base.errors import IncompatibleTrial
from qsweep.base.progress import Progress, silent
from qsweep.formats.artifact import Artifact
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.quantizers.checks import check_packing
from qsweep.quantizers.environments.choice import EnvChoice
from qsweep.quantizers.grouped import GroupedOptions
from qsweep.quantizers.isolated.run import REVISION, Recipe, quantize
from qsweep.text.calibration import CalibrationTokens


@dataclass(frozen=True)
class IsolatedQuantizer(GroupedOptions):
    """A quantizer of packed checkpoints whose library has an environment of its own.

    Attributes:
        env: Which environment.
        label: What messages call it.
        recipe: Which worker, and what it saves.
        model_types: The types of models that the library knows; empty: it finds its way by itself.
    """

    env: EnvChoice = field(default_factory=EnvChoice)

    label: ClassVar[str]
    recipe: ClassVar[Recipe]
    model_types: ClassVar[frozenset[str]] = frozenset()

    def version(self) -> str:
        """Versions of the environment, and the revision of what is done around it."""
        return f"{self.env.version(self.recipe.environment)}+{REVISION}"

    def check(self, model: ModelFacts) -> None:
        """Refuse what the format cannot hold or the library cannot do, and a missing environment.

        Raises:
            IncompatibleTrial: With the reason.
        """
        self.check_format()
        # What no backend can do is said before what this one cannot: it must not name another.
        bits = self.packed_bits
        check_packing(self.label, self.container, bits, self.group_size, model, whole=True)
        self.refuse(model)
        if self.model_types and model.model_type not in self.model_types:
            raise IncompatibleTrial(
                f"{self.label} does not know {model.model_type}; "
                "quant.backend=native or gptqmodel may"
            )
        self.env.require(self.recipe.environment)

    @property
    def packed_bits(self) -> int:
        """The bits that the format is asked about; :meth:`refuse` judges the others."""
        return 4

    def refuse(self, model: ModelFacts) -> None:
        """Refuse what this library alone cannot do. Raises IncompatibleTrial."""

    def recipe_used(self) -> Recipe:
        """The recipe with these options."""
        return self.recipe

    def worker_options(self, model: ModelFacts) -> dict[str, Any]:
        """What the worker is told."""
        return self.options()

    def quantize(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        out: Path,
        progress: Progress = silent,
    ) -> Artifact:
        """Write a checkpoint of the format that the recipe names."""
        return quantize(
            self.recipe_used(), self.env, self.worker_options(model.facts), model, calibration, out,
            progress, self.runtimes,
        )  # fmt: skip
