"""An artifact: the only thing that stands between quantizing and measuring.

A directory in a standard deployable format. The store seals it with a manifest, which carries what
is said of it here.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qsweep.base.files import write_bytes, write_json

__all__ = ["Artifact", "Size", "from_content", "to_content", "write_bytes", "write_json"]


@dataclass(frozen=True)
class Size:
    """What an artifact stores, counted from its files.

    ``weight_bytes`` are all bytes of the weight files. ``linear_bits`` are the stored bits of the
    quantized linear layers, scales, zeros and indices included, and ``linear_weights`` how many
    weights those stand for; ``total_bits`` and ``parameters`` are the same of every tensor.
    ``active_bytes`` are read for each token that is generated; None if nobody can tell them.
    """

    weight_bytes: int
    linear_bits: int
    linear_weights: int
    total_bits: int
    parameters: int
    active_bytes: int | None = None

    @property
    def size_gb(self) -> float:
        """Bytes of all weight files / 1e9."""
        return self.weight_bytes / 1e9

    @property
    def active_gb(self) -> float | None:
        """Bytes that are read for each token that is generated / 1e9."""
        return None if self.active_bytes is None else self.active_bytes / 1e9

    @property
    def bpw(self) -> float | None:
        """Stored bits per weight of the quantized linear layers; None if nobody can tell them."""
        return self.linear_bits / self.linear_weights if self.linear_weights else None

    @property
    def bpw_total(self) -> float:
        """Stored bits per parameter of the whole model."""
        return self.total_bits / max(self.parameters, 1)


@dataclass(frozen=True)
class Artifact:
    """A model on disk, quantized or not.

    ``format`` names its container (:mod:`qsweep.formats.container`). ``details`` holds what a
    backend wants to report: tensor types really used, loss per layer, library versions.
    ``runtimes`` names what can serve the artifact. ``origin`` is where its weights lie if somebody
    else made them: a directory, or a GGUF file; ``path`` then holds what qsweep keeps beside.
    """

    path: Path
    format: str
    size: Size
    runtimes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    origin: Path | None = None

    @property
    def files(self) -> Path:
        """Where its weights lie: a directory, or a GGUF file."""
        return self.origin or self.path

    @property
    def unexplained(self) -> str | None:
        """Why no dense model can be made of it, so that only its runtime runs it; None if one can."""
        return self.details.get("unexplained")


def to_content(artifact: Artifact) -> dict[str, Any]:
    """What a manifest says of an artifact."""
    return {
        "format": artifact.format,
        "size": asdict(artifact.size),
        "runtimes": list(artifact.runtimes),
        "details": artifact.details,
    }


def from_content(path: Path, content: dict[str, Any]) -> Artifact:
    """The artifact that a manifest describes."""
    return Artifact(
        path=path,
        format=content["format"],
        size=Size(**content["size"]),
        runtimes=tuple(content["runtimes"]),
        details=content["details"],
    )
