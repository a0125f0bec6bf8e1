"""The native backend's quantizers: GPTQ and AWQ, alone or many in one pass over a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from qsweep.base.progress import Progress, silent
from qsweep.formats.artifact import Artifact
from qsweep.models.source import SourceModel
from qsweep.quantizers.native.options import AWQOptions, GPTQOptions, NativeOptions
from qsweep.quantizers.protocol import PassResult, SharedPass
from qsweep.text.calibration import CalibrationTokens


class _InOnePass:
    """Quantizers that one pass over the model serves together."""

    def quantize(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        out: Path,
        progress: Progress = silent,
    ) -> Artifact:
        """Quantize one configuration; see :func:`quantize_grid`."""
        own = cast(NativeOptions, self)
        return quantize_grid(model, calibration, [(own, out)], progress)[0]

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

        own = cast(Sequence[tuple[NativeOptions, Path]], configurations)
        return run(model, calibration, own, progress, importance=importance)


@dataclass(frozen=True)
class NativeGPTQ(_InOnePass, GPTQOptions):
    """GPTQ by qsweep itself.

    >>> NativeGPTQ(bits=4, group_size=64).options()["sym"]
    True
    """


@dataclass(frozen=True)
class NativeAWQ(_InOnePass, AWQOptions):
    """AWQ by qsweep itself.

    >>> NativeAWQ(bits=4, group_size=64).options()["sym"]
    False
    """


def quantize_grid(
    model: SourceModel,
    calibration: CalibrationTokens | None,
    configurations: Sequence[tuple[NativeOptions, Path]],
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
