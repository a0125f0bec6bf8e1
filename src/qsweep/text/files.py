"""Text files as people have them: encodings, compression, one JSON value per line."""

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

from qsweep.base.errors import ConfigError
from qsweep.base.files import open_regular
from qsweep.base.schema import nearest

Kind = Literal["text", "json lines", "json", "table", "parquet"]
_KINDS: dict[str, Kind] = {
    ".jsonl": "json lines",
    ".ndjson": "json lines",
    ".json": "json",
    ".csv": "table",
    ".tsv": "table",
    ".parquet": "parquet",
}
# Longer marks first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_REPLACEMENT = "\ufffd"
_LONGEST_FIELD = 2**31 - 1
_DELIMITERS = (",", ";", "\t", "|")


def _zstd(file: IO[bytes]) -> IO[bytes]:
    import pyarrow

    return pyarrow.CompressedInputStream(file, "zstd")


_COMPRESSED: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zstd,
}


def kind_of(path: Path) -> Kind:
    """How a file is read, by its name, in any case: ``a.JSONL`` and ``a.jsonl.gz`` hold JSON Lines."""
    suffix = path.suffix.lower()
    if suffix in _COMPRESSED:
        suffix = path.with_suffix("").suffix.lower()
        return "text" if suffix == ".parquet" else _KINDS.get(suffix, "text")
    return _KINDS.get(suffix, "text")


@contextlib.contextmanager
def open_text(
    path: Path, newline: str | None = None, content: bytes | None = None
) -> Iterator[IO[str]]:
    """A regular file as text: decompressed by its name, UTF-8 unless its mark says otherwise.

    Args:
        path: The file.
        newline: As for :func:`open`.
        content: Its bytes, if they have been read already.

    Raises:
        ConfigError: It is missing, no regular file, damaged, or in another encoding; also where that
            is found while reading.
    """
    unpack = _COMPRESSED.get(path.suffix.lower())
    try:
        with contextlib.ExitStack() as stack:
            source = open_regular(path) if content is None else io.BytesIO(content)
            raw: Any = stack.enter_context(source)
            if unpack is not None:
                raw = stack.enter_context(unpack(raw))
            with decode_stream(raw, newline) as text:
                yield text
    except UnicodeDecodeError as error:
        place = f"byte {error.start}" if unpack is None else "once decompressed"
        raise ConfigError(f"{path}: not UTF-8 text ({place}); convert it") from error
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise ConfigError(f"{path}: not a whole {path.suffix} file ({error})") from error
    except OSError as error:
        if unpack is not None and error.errno is None:
            raise ConfigError(f"{path}: not a whole {path.suffix} file ({error})") from error
        raise ConfigError(f"{path}: {error.strerror or error}") from error


def decode_stream(raw: IO[bytes], newline: str | None = None) -> IO[str]:
    """Bytes as text: UTF-8, with or without a byte order mark, UTF-16 or UTF-32 with one."""
    buffered: Any = raw if hasattr(raw, "peek") else io.BufferedReader(raw)  # type: ignore[arg-type]
    begin = buffered.peek(4)[:4]
    encoding = next((name for mark, name in _MARKS if begin.startswith(mark)), "utf-8-sig")
    return io.TextIOWrapper(buffered, encoding=encoding, newline=newline)


def read_text(path: Path) -> str:
    """A whole file as one text, line ends as newlines.

    Raises:
        ConfigError: See :func:`open_text`; or it holds NUL bytes, as binary files do.
    """
    with open_text(path) as file:
        text = file.read()
    if "\0" in text:
        raise ConfigError(
            f"{path}: holds NUL bytes, so it is no text, or UTF-16 without a byte order mark; "
            "convert it to UTF-8"
        )
    return text


def json_lines(lines: Iterable[str], path: Path) -> Iterator[tuple[int, Any]]:
    """The values of a JSON Lines file with the numbers of their lines, blank lines left out.

    Args:
        lines: As they end at line feeds and nowhere else: a string may hold U+2028 or a form feed.
        path: For messages.

    Raises:
        ConfigError: A line is not JSON.
    """
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, parse_json(line, f"{path}:{number}")


def parse_json(text: str, where: str) -> Any:
    """A JSON value. Raises ConfigError that begins with ``where``."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON ({getattr(error, 'msg', error)})") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply") from error


def read_json(path: Path) -> list[tuple[str, Any]]:
    """The rows of a JSON file, each with its place: a list's items, a single value, or one per line.

    Raises:
        ConfigError: See :func:`open_text`; or it is not JSON.
    """
    with open_text(path, newline="\n") as file:
        text = file.read()
    try:
        rows = json.loads(text)
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply") from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # another value after the first: JSON Lines by another name
            return [(f"{path}:{n}", row) for n, row in json_lines(text.split("\n"), path)]
        raise ConfigError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
    rows = rows if isinstance(rows, list) else [rows]
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows, 1)]


def read_table(path: Path, field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a CSV or TSV file with a header, each with its place.

    Args:
        path: The file.
        field: A column that it must have; tells what parts the columns.

    Raises:
        ConfigError: See :func:`open_text`; or there is no such column.
    """
    csv.field_size_limit(min(sys.maxsize, _LONGEST_FIELD))
    with open_text(path, newline="") as file:
        try:
            first = file.readline()
            headers = {mark: next(csv.reader([first], delimiter=mark), []) for mark in _DELIMITERS}
            mark, names = max(headers.items(), key=lambda item: (field in item[1], len(item[1])))
            if field not in names:
                raise ConfigError(f"{path}: no column {field!r}{nearest(field, names)}")
            for number, row in enumerate(csv.reader(file, delimiter=mark), 1):
                if row:
                    yield f"{path}, row {number}", dict(zip(names, row, strict=False))
        except csv.Error as error:
            raise ConfigError(f"{path}: not a table ({error})") from error


def lone_surrogates(text: str) -> int:
    """Halves of characters in a text: JSON can write them, no encoding has them."""
    return len(_SURROGATE.findall(text))


def without_surrogates(text: str) -> str:
    """A text whose lone surrogates are U+FFFD, as every decoder would have made them."""
    return _SURROGATE.sub(_REPLACEMENT, text)
