"""Text from files and from data sets: a string, or the messages of a chat, per document."""

import contextlib
import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.files import open_regular
from qsweep.base.schema import nearest
from qsweep.text.chats import Document, conversation
from qsweep.text.conversations import to_document
from qsweep.text.files import json_lines, kind_of, open_text, read_json, read_table, read_text

if TYPE_CHECKING:
    from qsweep.text.corpus import CorpusConfig

CONVERSATIONS_FILE = Path(__file__).with_name("conversations.jsonl")
# What a folder is searched for. A single file of any other name is read as plain text.
_SUFFIXES = (".txt", ".md", ".jsonl", ".ndjson", ".json", ".parquet")


def from_files(config: "CorpusConfig") -> list[Document]:
    """The documents of ``config.path``: a text file is one, every row of the others is one.

    Raises:
        ConfigError: Where something is missing or unreadable; one line with file and place.
    """
    documents = (one for path in file_paths(config) for one in _read(path, config))
    return list(islice(documents, config.max_documents))


def from_embedded(config: "CorpusConfig") -> list[Document]:
    """The conversations that were written for qsweep, as a file of the user's with the same lines."""
    return list(_read(CONVERSATIONS_FILE, replace(config, field="messages")))


def file_paths(config: "CorpusConfig") -> list[Path]:
    """The files that ``config.path`` means, in order. Raises ConfigError where there is none."""
    if "://" in str(config.path):
        raise ConfigError(
            f"{config.name}: {config.path}: is a URL; download it, and give the file's path"
        )
    given = Path(str(config.path)).expanduser()
    if given.is_dir():
        found = sorted(
            path
            for path in given.rglob("*")
            if path.is_file()
            and path.suffix.lower() in _SUFFIXES
            and not any(part.startswith(".") for part in path.relative_to(given).parts)
        )
        if not found:
            raise ConfigError(f"{config.name}: {given} holds no {', '.join(_SUFFIXES)} file")
        return found
    found = (
        [given]
        if given.exists()
        else sorted(Path(p) for p in glob.glob(str(given), recursive=True))
    )
    if given.exists() and not given.is_file():
        try:
            open_regular(given).close()
        except OSError as error:  # a pipe, a device
            raise ConfigError(f"{config.name}: {given}: {error}") from error
    found = [path for path in found if path.is_file()]
    if not found:
        raise ConfigError(f"{config.name}: {config.path}: no such file")
    return found


def from_datasets(config: "CorpusConfig") -> list[Document]:
    """The documents of a data set on the hub, in its cache, or in a local folder.

    Raises:
        ConfigError: There is no such split, configuration or field.
        QsweepError: It is not in the cache and the hub cannot be reached, or refuses.
    """
    dataset = str(config.dataset)
    if Path(dataset).exists():
        return _documents(config, dataset, streaming=False)
    if _hub_answers(config):
        # The first documents of a large set are had without the rest of it.
        return _documents(config, dataset, streaming=config.max_documents is not None)
    with _offline():
        try:
            return _documents(config, dataset, streaming=False)
        except _NotCached:
            # datasets only finds what it prepared itself; a snapshot that was fetched into the
            # hub's cache (hf download) can be read all the same.
            if (snapshot := _snapshot(config)) is None:
                raise
            return _documents(config, snapshot, streaming=False)


class _NotCached(QsweepError):
    """The hub is out of reach, and datasets has no copy of its own."""


def _documents(config: "CorpusConfig", dataset: str, streaming: bool) -> list[Document]:
    from datasets import load_dataset

    where = f"{config.name}: dataset {config.dataset}"
    try:
        rows = load_dataset(
            dataset,
            config.config,
            data_files=config.data_files,
            split=config.split,
            revision=None if Path(dataset).exists() else config.revision,
            streaming=streaming,
        )
        return [
            _document(row, config, f"{where}, row {number}")
            for number, row in enumerate(islice(rows, config.max_documents), 1)
        ]
    except QsweepError:
        raise
    except Exception as error:  # whatever datasets, the hub's client and its transport may raise
        raise _one_line_of(error, where, config) from error


def _hub_answers(config: "CorpusConfig") -> bool:
    # One question with a short patience, before libraries retry for half a minute.
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        HfApi().dataset_info(str(config.dataset), revision=config.revision, timeout=10)
    except HfHubHTTPError as error:
        raise _one_line_of(error, f"{config.name}: dataset {config.dataset}", config) from error
    except Exception:  # the transport's own kinds: no name, no route, no answer
        return False
    return True


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    import datasets.config
    from huggingface_hub import constants

    before = (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _one_line_of(error: Exception, where: str, config: "CorpusConfig") -> QsweepError:
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    first = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, GatedRepoError) or "gated" in first:
        return QsweepError(
            f"{where} is gated; accept its terms on the hub and log in (hf auth login)"
        )
    if isinstance(error, RepositoryNotFoundError):
        return QsweepError(f"{where}: the hub has no such data set (or it is private)")
    missing = (ConnectionError, DatasetNotFoundError, FileNotFoundError)
    if isinstance(error, missing) or "find cache" in first or "in the cache" in first:
        return _NotCached(
            f"{where} is not in the cache and the hub cannot be reached; check the network and "
            "HF_HUB_OFFLINE, or give a text of your own with corpus=file corpus.path=FILE"
        )
    if isinstance(error, ValueError):  # datasets says which splits or configurations there are
        split = f"no split {config.split!r}: " if "split" in first.lower() else ""
        return ConfigError(f"{where}: {split}{first}")
    return QsweepError(f"{where}: {type(error).__name__}: {first}")


def _snapshot(config: "CorpusConfig") -> str | None:
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(
            str(config.dataset),
            repo_type="dataset",
            revision=config.revision,
            local_files_only=True,
        )
    except (ValueError, OSError):  # LocalEntryNotFoundError is both
        return None


def _read(path: Path, config: "CorpusConfig") -> Iterator[Document]:
    kind = kind_of(path)
    if kind == "parquet":
        yield from _parquet(path, config)
    elif kind == "json lines":
        with open_text(path, newline="\n") as lines:
            for number, row in json_lines(lines, path):
                yield _document(row, config, f"{path}:{number}")
    elif kind in ("json", "table"):
        rows = read_json(path) if kind == "json" else read_table(path, config.field)
        for where, row in rows:
            yield _document(row, config, where)
    elif config.assistant_only:
        raise ConfigError(
            f"{path}: plain text, and assistant_only wants conversations: a jsonl, json or parquet "
            "file with a field of messages"
        )
    else:
        yield read_text(path)


def _parquet(path: Path, config: "CorpusConfig") -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    field = config.field
    try:
        open_regular(path).close()
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise ConfigError(f"{path}: {_no_field(field, names)}")
            number = 0
            for batch in file.iter_batches(columns=[field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield _document({field: value}, config, f"{path}, row {number}")
    except pyarrow.ArrowException as error:
        raise ConfigError(f"{path}: not a whole parquet file") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error


def _document(row: Any, config: "CorpusConfig", where: str) -> Document:
    if config.assistant_only:
        return to_document(_value(row, config.field, where), where)
    return _text(row, config.field, where)


def _value(row: Any, field: str, where: str) -> Any:
    if not isinstance(row, Mapping):
        raise ConfigError(f"{where}: neither a text nor an object with a field {field!r}")
    if field not in row:
        raise ConfigError(f"{where}: {_no_field(field, [str(name) for name in row])}")
    return row[field]


def _text(row: Any, field: str, where: str) -> Document:
    if isinstance(row, str):
        return row
    value = _value(row, field, where)
    if isinstance(value, list):
        return conversation(value, where)
    if not isinstance(value, str):
        raise ConfigError(f"{where}: field {field!r} holds no text but {type(value).__name__}")
    return value


def _no_field(field: str, names: Sequence[str]) -> str:
    return f"no field {field!r}{nearest(field, names)}"
