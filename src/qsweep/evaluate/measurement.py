"""What measuring a model leaves behind: numbers, per-token arrays, and facts about how."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt
from qsweep.base.files import read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

# Raised whenever a change may move a number; it is part of every measurement's key.
PROTOCOL_VERSION = 1

_NUMBERS, _ARRAYS = "measurement.json", "arrays.safetensors"


@dataclass
class WindowScores:
    """One model on one set of windows.

    Attributes:
        metrics: Numbers by name; one that cannot be told (the standard error over a single window)
            is left out.
        facts: How they were measured: preset, context, windows, tokens_scored, bos, fingerprint,
            dtype, device_type, protocol, noise_floor and more.
        arrays: On the CPU. ``window_nll`` float64 and ``window_tokens`` int64 [windows], sums and
            counts; ``token_nll`` float32 [tokens]; ``token_position`` int32 [tokens], where each
            stands in its window, where the counts do not tell it; with a reference also
            ``token_kld`` float32, ``token_top1`` uint8 and, of the reference, its highest
            probability ``reference_confidence`` and (not in older ones) its entropy in nats
            ``reference_entropy``, float32 [tokens].
    """

    metrics: dict[str, Any]
    arrays: dict[str, "Tensor"] = field(repr=False)
    facts: dict[str, Any]


def save_measurement(measurement: WindowScores, directory: Path) -> None:
    """Write a measurement into an existing directory."""
    from safetensors.torch import save_file

    save_file(
        {name: array.contiguous() for name, array in measurement.arrays.items()},
        directory / _ARRAYS,
    )
    write_json(directory / _NUMBERS, {"metrics": measurement.metrics, "facts": measurement.facts})


def read_measurement(directory: Path) -> WindowScores:
    """Read what :func:`save_measurement` wrote.

    Raises:
        ArtifactCorrupt: Something is missing or unreadable.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        numbers = read_json(directory / _NUMBERS)
        arrays = load_file(directory / _ARRAYS)
        return WindowScores(dict(numbers["metrics"]), arrays, dict(numbers["facts"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ArtifactCorrupt(f"{directory}: not a measurement ({error})") from error
