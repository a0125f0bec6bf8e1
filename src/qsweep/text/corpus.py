"""A text: what a configuration says of one."""

from dataclasses import dataclass
from typing import Literal

from qsweep.base.errors import ConfigError
from qsweep.base.names import check_label
from qsweep.base.schema import nearest

SOURCES = ("python", "chat", "file", "datasets", "pack")


@dataclass(frozen=True)
class CorpusConfig:
    """Where text comes from, and how much of it.

    Attributes:
        name: What results call it.
        source: ``python``: this installation's own text. ``chat``: conversations that were written
            for qsweep. ``file``: yours. ``datasets``: the hub's.
            ``pack``: only the token ids that a reference pack holds of it.
            ``package.module:function``: that function's, called without arguments.
        kind: For ``python``: prose, code, or both.
        split: Part of the data; for ``python``: train, calibration or test.
        path: For ``file``: a txt, jsonl, json, csv, tsv or parquet file, a folder of them, or a
            pattern; text may be compressed (gz, bz2, xz, zst).
        dataset: For ``datasets``: its repository, or a local folder.
        config: For ``datasets``: its configuration, such as a language.
        revision: For ``datasets``: commit, tag or branch.
        data_files: For ``datasets``: only these of its files.
        field: Column that holds a text, or a list of chat messages.
        max_documents: Only so many of the first documents.
        max_bytes: Only so many of the first bytes (UTF-8).
        assistant_only: ``field`` holds chat messages, and only what the assistant says is scored:
            conversations in the model's own chat template, each a window.
        new_tokens: What is measured is not the text, but so many tokens at most that the reference
            itself writes after the begin of each document (in place of each first answer).
    """

    name: str
    source: str
    kind: Literal["docs", "code", "all"] = "all"
    split: str = "test"
    path: str | None = None
    dataset: str | None = None
    config: str | None = None
    revision: str | None = None
    data_files: str | list[str] | None = None
    field: str = "text"
    max_documents: int | None = None
    max_bytes: int | None = None
    assistant_only: bool = False
    new_tokens: int | None = None

    @property
    def answers(self) -> bool:
        """Whether what is scored stands behind what is only read."""
        return self.assistant_only or self.new_tokens is not None

    def __post_init__(self) -> None:
        check_label(self.name, "name of a text")
        if self.source not in SOURCES and ":" not in self.source:
            raise ConfigError(
                f"{self.name}: source={self.source}: no such source{nearest(self.source, SOURCES)}"
                "; package.module:function is one, too"
            )
        if self.source == "file" and not self.path:
            raise ConfigError(f"{self.name}: source=file needs a path")
        if self.source == "datasets" and not self.dataset:
            raise ConfigError(f"{self.name}: source=datasets needs a dataset")
        if self.assistant_only and self.max_bytes is not None:
            raise ConfigError(
                f"{self.name}: max_bytes would cut a conversation in two; give max_documents instead"
            )
        for option in ("max_documents", "max_bytes", "new_tokens"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise ConfigError(f"{self.name}: {option}={value}: must be at least 1")
