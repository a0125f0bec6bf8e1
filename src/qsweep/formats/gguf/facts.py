"""What a GGUF file says of itself: of which model it is, who made it, and how.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (``general.*``), and what llama.cpp's
``quantize`` tool adds of an importance matrix (``quantize.imatrix.*``). All of it is a stranger's text.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qsweep.formats.gguf.header import printable
from qsweep.formats.gguf.reader import GGUFFile
from qsweep.formats.gguf.types import FILE_TYPES

_FILE_TYPES = {t.number: t.name for t in FILE_TYPES.values()}
_GUESSED = 1024
# A repository's name as its address has it: no query, no place inside it.
_HUB = re.compile(r"https?://(www\.)?huggingface\.co/(?P<id>[\w.-]+/[\w.-]+?)(\.git)?/?$")


@dataclass(frozen=True)
class BaseModel:
    """A model that a file says it was made from; ``repository`` is its name on the hub, if it has one."""

    name: str | None = None
    organization: str | None = None
    version: str | None = None
    repository: str | None = None


@dataclass(frozen=True)
class GGUFFacts:
    """What a file says of itself; None or empty where it says nothing.

    ``file_type`` is the mixture that it is named after, of which ``tensor_types``, the counts of its
    matrices' types, may be something else. ``imatrix`` is the text or file that its importance matrix
    was made from.
    """

    architecture: str
    name: str | None
    organization: str | None
    finetune: str | None
    size_label: str | None
    license: str | None
    quantized_by: str | None
    repository: str | None
    base_models: tuple[BaseModel, ...]
    file_type: str | None
    tensor_types: Mapping[str, int]
    imatrix: str | None

    def content(self) -> dict[str, Any]:
        """As plain values, without what the file does not say."""
        return {name: value for name, value in asdict(self).items() if value}


def read_gguf_facts(file: GGUFFile) -> GGUFFacts:
    """What a file says of itself, in one line each; see :class:`GGUFFacts`."""
    return GGUFFacts(
        architecture=printable(file.architecture),
        name=_text(file, "general.name"),
        organization=_text(file, "general.organization") or _text(file, "general.author"),
        finetune=_text(file, "general.finetune"),
        size_label=_text(file, "general.size_label"),
        license=_text(file, "general.license"),
        quantized_by=_text(file, "general.quantized_by"),
        repository=_repository(file, "general."),
        base_models=tuple(_base_models(file)),
        file_type=_file_type(file),
        tensor_types=dict(
            Counter(t.type.name for t in file.tensors.values() if len(t.shape) > 1).most_common()
        ),
        imatrix=_text(file, "quantize.imatrix.dataset") or _text(file, "quantize.imatrix.file"),
    )


def _base_models(file: GGUFFile) -> list[BaseModel]:
    count = file.metadata.get("general.base_model.count", 0)
    found = []
    # A merge has some, and a number without end is none.
    for number in range(min(count, 100) if isinstance(count, int) else 0):
        place = f"general.base_model.{number}."
        parts = {name: _text(file, place + name) for name in ("name", "organization", "version")}
        found.append(BaseModel(**parts, repository=_repository(file, place)))
    return found


def _repository(file: GGUFFile, place: str) -> str | None:
    for key in ("repo_url", "url"):
        if (found := _HUB.match(_text(file, place + key) or "")) is not None:
            return found["id"]
    return None


def _file_type(file: GGUFFile) -> str | None:
    number = file.metadata.get("general.file_type")
    if not isinstance(number, int):
        return None
    return _FILE_TYPES.get(number & ~_GUESSED)


def _text(file: GGUFFile, key: str) -> str | None:
    value = file.metadata.get(key)
    return printable(value) if isinstance(value, str) and value else None
