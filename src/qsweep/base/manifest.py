"""An entry's manifest: what it is, what its maker says of it and a stamp of each file, under a seal.

Nothing here keeps a secret: whoever means to deceive can seal again. What it finds is what happens:
a restored backup, a tidied folder, an editor, a disk.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qsweep.base.errors import ArtifactCorrupt
from qsweep.base.files import FileStamp, read_json, read_regular, stamp_of, verify, write_bytes
from qsweep.base.typed_json import convert

MANIFEST = "manifest.json"
# 1 had neither seal nor kind.
_VERSION = 2


@dataclass(frozen=True)
class Entry:
    """A finished entry: its directory, what its maker said of it, and whether a seal protects that."""

    path: Path
    content: dict[str, Any]
    sealed: bool = True


@dataclass(frozen=True)
class Manifest:
    """What is written beside an entry's files, ``files`` by their names below it."""

    version: int
    identity: Any
    content: Any
    files: dict[str, FileStamp]
    kind: str | None = None
    seal: str | None = None


def seal(path: Path, identity: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Write the manifest of a finished directory, which lies in the folder of its kind.

    Raises:
        ArtifactCorrupt: it holds something that is no regular file.
    """
    try:
        stamps = {name: asdict(stamp_of(path / name)) for name in _files(path)}
    except OSError as error:
        raise ArtifactCorrupt(f"{path}: {error.strerror or error}") from error
    body = {
        "version": _VERSION,
        "kind": path.parent.name,
        "identity": identity,
        "content": content,
        "files": stamps,
    }
    _write(path / MANIFEST, body)


def reseal(path: Path) -> None:
    """Put an entry of version 1, which was verified in full, under a seal as well.

    It keeps its date. Whatever happens meanwhile, one manifest or the other is in its place.
    """
    manifest = read_json(path / MANIFEST)
    found = (path / MANIFEST).stat()
    # Beside the entry: what a kill leaves behind must not be an extra file in it.
    aside = path.with_name(f".{path.name}.manifest.tmp")
    try:
        _write(aside, {**manifest, "version": _VERSION, "kind": path.parent.name})
        os.utime(aside, ns=(found.st_atime_ns, found.st_mtime_ns))
        aside.replace(path / MANIFEST)
    finally:
        aside.unlink(missing_ok=True)


def open_entry(path: Path, *, full: bool = False) -> Entry:
    """Read a sealed directory; check that it belongs where it lies, and its files.

    The quick check looks at files' sizes and time stamps; ``full`` hashes their contents.

    Raises:
        ArtifactCorrupt: says which file is missing, truncated, edited or one too many, or whose
            entry it is.
    """
    manifest = read_manifest(path)
    if extra := set(_files(path)) - manifest.files.keys():
        raise ArtifactCorrupt(f"{path}: {min(extra)} is no part of it")
    for name, stamp in manifest.files.items():
        verify(path / name, stamp, full=full)
    return Entry(path, manifest.content, manifest.seal is not None)


def read_manifest(path: Path) -> Manifest:
    """The manifest of the entry in a directory. Raises ArtifactCorrupt: it is not what was written."""
    try:
        content = read_regular(path / MANIFEST)
    except OSError as error:
        raise ArtifactCorrupt(f"{path}: no readable {MANIFEST} ({error})") from error
    return parse_manifest(content, path.parent.name, path.name, str(path))


def parse_manifest(content: bytes, kind: str, key: str, where: str) -> Manifest:
    """The manifest of an entry, as it was written.

    Args:
        content: The bytes of its file.
        kind: Of the entry that it has to be of.
        key: The same.
        where: What messages name.

    Raises:
        ArtifactCorrupt: It is not what was written, or of another entry.
    """
    try:
        written = json.loads(content.decode("utf-8"))
        manifest = convert(Manifest, written, unknown="ignore")
    except (ValueError, RecursionError) as error:
        raise ArtifactCorrupt(f"{where}: no readable {MANIFEST} ({error})") from error
    sealed = manifest.seal is not None or manifest.version != 1
    # Of what was written, names in their order, not of what was understood.
    body = {name: value for name, value in written.items() if name != "seal"}
    if sealed and manifest.seal != _hash(body):
        raise ArtifactCorrupt(f"{where}: {MANIFEST} is not what was written")
    manifest = replace(manifest, identity=written["identity"], content=written["content"])
    if (own := _hash(manifest.identity)[:32]) != key:
        raise ArtifactCorrupt(f"{where}: is another entry, {own}")
    if manifest.kind not in (None, kind):
        raise ArtifactCorrupt(f"{where}: is an entry of {manifest.kind}")
    return manifest


def _write(file: Path, body: dict[str, Any]) -> None:
    # Names in the order that keys are made by; read back once, so that the seal is of what a reader
    # will see (tuples are lists then, and names of numbers text).
    body = json.loads(json.dumps(body, sort_keys=True))
    write_bytes(file, (json.dumps({**body, "seal": _hash(body)}, indent=1) + "\n").encode())


def _hash(parsed: Any) -> str:
    """Of an identity as a manifest holds it, this begins with its key: see ``config.key_of``.

    Names stay in the order in which they were written. Sorted again, "10" would come before "2".
    """
    return hashlib.sha256(json.dumps(parsed, separators=(",", ":")).encode()).hexdigest()


def _files(path: Path) -> list[str]:
    """All that lies below a directory and is none, its own manifest left out; relative names."""
    found = []
    for folder, below, names in os.walk(path):
        links = [name for name in below if (Path(folder) / name).is_symlink()]
        found += [str((Path(folder) / name).relative_to(path)) for name in (*names, *links)]
    return sorted(name for name in found if name != MANIFEST)
