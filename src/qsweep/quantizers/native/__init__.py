"""qsweep's own GPTQ and AWQ: one pass over the model quantizes every configuration of a grid.

``walk.py`` runs a model layer by layer, ``stats.py`` gathers what goes into its linear layers,
``gptq.py`` and ``awq.py`` are the methods on plain matrices, ``fold.py`` finds where AWQ's scales
can go, ``writer.py`` writes checkpoints, and ``grid.py`` brings them together. Only ``options.py``
can be imported without torch.
"""

from collections.abc import Sequence
from pathlib import Path

from qsweep.formats.artifact import Artifact
from qsweep.quantizers import CalibrationTokens, Progress, SourceModel, silent
from qsweep.quantizers.native.options import NativeAWQ, NativeGPTQ, NativeQuantizer

__all__ = ["NativeAWQ", "NativeGPTQ", "NativeQuantizer", "quantize_grid"]


def quantize_grid(
    model: SourceModel,
    calibration: CalibrationTokens | None,
    configurations: Sequence[tuple[NativeQuantizer, Path]],
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
