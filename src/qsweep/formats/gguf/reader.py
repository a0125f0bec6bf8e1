"""A GGUF file, in one part or several: its metadata, and where each tensor lies.

A vocabulary of 128k tokens and its merges are read in a fraction of a second, and tensor data only
when it is asked for. llama.cpp's ``gguf-split`` cuts a file into parts ``NAME-00001-of-0000N.gguf``,
of which the first has all the metadata; any of them stands for the whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qsweep.base.errors import ArtifactCorrupt, ConfigError
from qsweep.formats.artifact_files import gguf_models, parts_of, split_of
from qsweep.formats.gguf.header import GGUFTensor, Header, printable, read_header

if TYPE_CHECKING:
    import torch

__all__ = ["GGUFFile", "GGUFTensor", "find_file", "read_gguf"]

MODEL_FILE = "model.gguf"
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"


@dataclass(frozen=True)
class GGUFFile:
    """The header of a file: metadata by key, tensors by name, in the file's order.

    ``path`` is the file, or the first of its parts, and ``parts`` are all files.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]
    parts: tuple[Path, ...] = field(default=())

    @property
    def architecture(self) -> str:
        """As llama.cpp calls it; empty where the file does not say."""
        found = self.metadata.get("general.architecture")
        return found if isinstance(found, str) else ""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.parts or (self.path,))

    def setting(self, name: str) -> Any:
        """The metadata value ``name`` of the file's architecture; None where there is none."""
        return self.metadata.get(f"{self.architecture}.{name}")

    def bytes_of(self, name: str, *, writable: bool = False) -> "torch.Tensor":
        """A tensor's bytes, uint8 [nbytes], mapped from the file rather than read.

        What is written to ``writable`` ones goes into the file.
        """
        import numpy
        import torch

        info = self.tensors[name]
        mode: Literal["r+", "c"] = "r+" if writable else "c"
        mapped = numpy.memmap(info.path, numpy.uint8, mode, info.offset, (info.nbytes,))
        return torch.from_numpy(mapped)


def read_gguf(path: Path) -> GGUFFile:
    """Read a file's header, and those of its other parts.

    Raises:
        ArtifactCorrupt: it is not a GGUF file, is truncated or damaged, holds a tensor type unknown
            here, or its parts are not all there or not those of one file.
    """
    header = read_header(path)
    count = header.metadata.get(_COUNT, 1)
    if not isinstance(count, int) or count <= 1:
        return GGUFFile(path, header.metadata, header.tensors, (path,))
    paths = _sister_files(path, count)
    headers = [header if part == path else read_header(part) for part in paths]
    return _joined(paths, headers)


def find_file(path: Path) -> Path:
    """The GGUF model at ``path``, a file or a directory: the file, or the first of its parts.

    Raises:
        ConfigError: a directory holds none, or several; they are named.
    """
    if not path.is_dir():
        return path
    if (path / MODEL_FILE).is_file():
        return path / MODEL_FILE
    found = gguf_models(path.glob("*.gguf"))
    if not found:
        raise ConfigError(f"{path}: no GGUF file of a model in it")
    if len(found) > 1:
        listed = ", ".join(file.name for file in found[:4]) + (", …" if len(found) > 4 else "")
        raise ConfigError(f"{path}: {len(found)} GGUF models in it; name one file ({listed})")
    return found[0]


def _sister_files(path: Path, count: int) -> list[Path]:
    number, named = split_of(path) or (0, 0)
    if named != count or not 1 <= number <= count:
        raise ArtifactCorrupt(
            f"{path}: says that it is one of {count} parts, which are found by their names: call "
            f"it NAME-00001-of-{count:05}.gguf, by its number"
        )
    return parts_of(path)


def _joined(paths: list[Path], headers: list[Header]) -> GGUFFile:
    """One file of the parts, if they are those of one."""
    first, count = headers[0].metadata, len(paths)
    tensors: dict[str, GGUFTensor] = {}
    for number, (path, header) in enumerate(zip(paths, headers, strict=True)):
        for key, expected in (
            (_COUNT, count), (_NUMBER, number), (_TENSORS, first.get(_TENSORS)),
            # What a later part repeats must be what the first one says.
            *((key, first.get(key)) for key in header.metadata if key.startswith("general.")),
        ):  # fmt: skip
            if (found := header.metadata.get(key)) != expected:
                raise ArtifactCorrupt(
                    f"{path}: no part of {paths[0].name}: its "
                    + printable(f"{key} is {found!r}, not {expected!r}")
                )
        if twice := next((name for name in header.tensors if name in tensors), None):
            raise ArtifactCorrupt(
                f"{path}: no part of {paths[0].name}: {printable(twice)} lies in {tensors[twice].path.name} too"
            )
        tensors |= header.tensors
    total = first.get(_TENSORS)
    if total is not None and total != len(tensors):
        raise ArtifactCorrupt(
            f"{paths[0]}: its {count} parts hold {len(tensors)} tensors, and it says {total}"
        )
    return GGUFFile(paths[0], first, tensors, tuple(paths))
