"""What a quantizer is. Each backend is one file beside this one and one YAML in ``conf/quant``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from qsweep.base.progress import Progress, silent
from qsweep.formats.artifact import Artifact
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.text.calibration import CalibrationTokens

if TYPE_CHECKING:
    import torch


class Quantizer(Protocol):
    """A method with its options. Implementations are frozen dataclasses whose fields are options.

    The constructor checks values (raising :class:`~qsweep.base.errors.ConfigError`), and looks at
    nothing else. Heavy libraries are imported inside :meth:`quantize`.
    """

    method: ClassVar[str]
    """As in ``quant=``: none, rtn, gptq, awq, gguf."""
    backend: ClassVar[str]
    """The library that does the work: qsweep, gptqmodel, llama.cpp."""

    @property
    def uses_calibration(self) -> bool:
        """Whether the result depends on calibration text."""

    def options(self) -> dict[str, Any]:
        """The *effective* options: what determines the result, and nothing that is ignored.

        Two quantizers with equal options (and equal backend) are the same trial. The standard
        names ``bits``, ``group_size``, ``desc_act``, ``sym`` and ``type`` fill the report's columns.
        """

    def version(self) -> str:
        """The version of the backend, part of the artifact's key. No heavy import."""

    def check(self, model: ModelFacts) -> None:
        """Refuse what cannot exist, in milliseconds.

        Raises :class:`~qsweep.base.errors.IncompatibleTrial` (or its subclass
        :class:`~qsweep.base.errors.BackendUnavailable`) with the reason.
        """

    def quantize(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        out: Path,
        progress: Progress = silent,
    ) -> Artifact:
        """Quantize a model into a directory, in a standard format.

        Args:
            model: The unquantized model.
            calibration: Token ids; None where :attr:`uses_calibration` is false.
            out: An empty directory, which the caller seals and moves into the store.
            progress: Told of the steps.

        Returns:
            The artifact with its size counted.
        """


@runtime_checkable
class ImportanceUser(Quantizer, Protocol):
    """What a quantizer offers beside, if it may want an importance matrix of the calibration text.

    It is measured once for all trials of a model and a text, and given to :meth:`quantize`.
    """

    @property
    def uses_importance(self) -> bool:
        """Whether it wants one, with its options."""


@runtime_checkable
class ActivationQuantizer(Quantizer, Protocol):
    """What a quantizer offers beside, if its artifacts may have quantized activations."""

    @property
    def quantizes_activations(self) -> bool:
        """Whether they are to be served with quantized activations, with its options."""


def quantizes_activations(quant: Quantizer) -> bool:
    """Whether what a quantizer makes is to be served with quantized activations."""
    return isinstance(quant, ActivationQuantizer) and quant.quantizes_activations


@runtime_checkable
class ExpertFeeder(Quantizer, Protocol):
    """What a quantizer offers beside, if it can show every expert of a mixture all of the text."""

    @property
    def shows_experts_all_tokens(self) -> bool:
        """Whether it heeds ``all_experts`` of :class:`CalibrationTokens`."""


def shows_experts_all_tokens(quant: Quantizer) -> bool:
    """Whether a quantizer can gather statistics of every token in every expert."""
    return isinstance(quant, ExpertFeeder) and quant.shows_experts_all_tokens


@dataclass(frozen=True)
class PassResult:
    """What came of one pass over a model.

    Attributes:
        artifacts: One for each configuration, in their order.
        importance: The calibration text's importance matrix, as in :class:`CalibrationTokens`; None
            if the pass had no need to see the unquantized model's inputs.
        shared_s: Seconds that were spent for all together.
        coverage: Of a mixture of experts, what else belongs into details of what is made of the
            importance matrix: ``expert_coverage``.
    """

    artifacts: list[Artifact]
    importance: "Mapping[str, torch.Tensor] | None"
    shared_s: float
    coverage: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class SharedPass(Quantizer, Protocol):
    """What a quantizer offers beside, if one pass over a model can make several configurations.

    What a configuration becomes must not depend on the others, bit by bit: it goes into the store
    under the same key as if it had been made alone. ``details`` of each artifact tell what was
    spent for it alone, ``quantize_s``, and what all share, ``shared_s``.
    """

    @property
    def pass_name(self) -> str | None:
        """Quantizers of equal ``pass_name`` can be made together; None: this one is made alone."""

    def pass_bytes(self, model: ModelFacts, tokens: int) -> tuple[int, int]:
        """Host memory that a pass takes by itself, and what this configuration adds to it.

        ``tokens`` is the length of the calibration text.
        """

    def quantize_together(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        configurations: "Sequence[tuple[SharedPass, Path]]",
        progress: Progress = silent,
        *,
        importance: bool = False,
    ) -> PassResult:
        """Quantize each configuration into its empty directory; this one is among them.

        Args:
            model: The unquantized model.
            calibration: Token ids.
            configurations: Quantizers and their directories.
            progress: Told of the steps.
            importance: Whether the calibration text's importance matrix is wanted, too.
        """
