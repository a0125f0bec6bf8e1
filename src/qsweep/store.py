"""The content-addressed store: every step's result under the hash of what determined it.

An entry is a directory that appears whole or not at all: it is made beside its place, sealed with a
manifest of its files, flushed to disk and renamed. Two sweeps that want the same entry wait for one
another on a lock; a killed maker leaves only a temporary directory, which the next one sweeps away.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from qsweep.config import key_of
from qsweep.errors import ArtifactCorrupt, QsweepError
from qsweep.files import FileStamp, sha256_of, stamp_of, sync_tree, verify, write_json
from qsweep.locks import FileLock

Kind = Literal[
    "artifacts", "importances", "references", "measurements", "tasks", "timings", "models", "texts"
]
MANIFEST = "manifest.json"
# A disk with less room than this is full, bytes.
_LEAST_ROOM = 1 << 20
# How a directory is made: called with an empty one, returns what the manifest says beside files.
Make = Callable[[Path], dict[str, Any]]
# The same for several at once, by key.
MakeAll = Callable[[Mapping[str, Path]], Mapping[str, dict[str, Any]]]


@dataclass(frozen=True)
class Entry:
    """A finished entry: its directory, and what its maker said of it."""

    path: Path
    content: dict[str, Any]


class Store:
    """Entries by kind and key below one folder."""

    def __init__(self, root: Path):
        self.root = root

    def path(self, kind: Kind, key: str) -> Path:
        """Where an entry is or would be."""
        return self.root / kind / key

    def find(self, kind: Kind, key: str, *, full: bool = False) -> Entry | None:
        """The entry, if it is there and its files are what was written.

        The quick check looks at sizes and time stamps; ``full`` hashes every file. A damaged entry
        counts as absent.
        """
        path = self.path(kind, key)
        try:
            return open_entry(path, full=full)
        except ArtifactCorrupt:
            return None

    def remove(self, kind: Kind, key: str) -> None:
        """Delete an entry, if it is there."""
        with FileLock(self.root / "locks" / f"{kind}-{key}.lock"):
            _remove(self.path(kind, key))

    def build(
        self, kind: Kind, identity: dict[str, Any], make: Make, *, full: bool = True
    ) -> tuple[Entry, bool]:
        """The entry that ``identity`` determines, made now if it is absent or damaged.

        Returns the entry and whether it was made now. ``make`` gets an empty directory; whatever it
        raises leaves the store as it was.
        """

        def make_one(folders: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
            return {key: make(folder) for key, folder in folders.items()}

        return self.build_all(kind, [identity], make_one, full=full)[key_of(identity)]

    def build_all(
        self,
        kind: Kind,
        identities: Sequence[dict[str, Any]],
        make: MakeAll,
        *,
        full: bool = True,
    ) -> dict[str, tuple[Entry, bool]]:
        """Entries that are made together, by key; see :meth:`build`.

        ``make`` gets empty directories for those that are absent or damaged, and is not called if
        none is; whatever it raises leaves the store as it was.
        """
        wanted = {key_of(identity): identity for identity in identities}
        (self.root / kind).mkdir(parents=True, exist_ok=True)
        with ExitStack() as locks:
            # In one order everywhere, so that two who want the same never wait for each other.
            for key in sorted(wanted):
                locks.enter_context(FileLock(self.root / "locks" / f"{kind}-{key}.lock"))
            found = {key: self.find(kind, key, full=full) for key in wanted}
            absent = {
                key: self.path(kind, f".{key}.tmp") for key, entry in found.items() if entry is None
            }
            try:
                for temporary in absent.values():
                    _remove(temporary)
                    temporary.mkdir()
                contents = make(absent) if absent else {}
                for key, temporary in absent.items():
                    seal(temporary, wanted[key], contents[key])
                    sync_tree(temporary)
                    _remove(self.path(kind, key))
                    temporary.rename(self.path(kind, key))
            except Exception as error:
                if is_disk_full(error):
                    raise QsweepError(disk_full(self.root)) from error
                raise
            finally:
                for temporary in absent.values():
                    _remove(temporary)
            return {
                key: (entry or open_entry(self.path(kind, key)), entry is None)
                for key, entry in found.items()
            }


def seal(path: Path, identity: dict[str, Any], content: dict[str, Any]) -> None:
    """Write the manifest of a finished directory: identity, content, every file's stamp."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != MANIFEST)
    stamps = {str(p.relative_to(path)): asdict(stamp_of(p)) for p in files}
    write_json(
        path / MANIFEST, {"version": 1, "identity": identity, "content": content, "files": stamps}
    )


def open_entry(path: Path, *, full: bool = False) -> Entry:
    """Read a sealed directory and check its files against its manifest.

    Raises:
        ArtifactCorrupt: names the first file that is missing, truncated or edited.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        stamps = {name: FileStamp(**stamp) for name, stamp in manifest["files"].items()}
        content = manifest["content"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactCorrupt(f"{path}: no readable {MANIFEST} ({error})") from error
    for name, stamp in stamps.items():
        verify(path / name, stamp, full=full)
    return Entry(path, content)


def file_hash(store: Store, path: Path) -> str:
    """SHA-256 of a file, remembered by its path, size and time stamp."""
    real = path.resolve()
    stat = real.stat()
    key = key_of([str(real), stat.st_size, stat.st_mtime_ns])
    cached = store.root / "hashes" / key
    try:
        return cached.read_text(encoding="ascii")
    except OSError:
        digest = sha256_of(real)
        write_json_text(cached, digest)
        return digest


def write_json_text(path: Path, text: str) -> None:
    """Write a short text atomically."""
    from qsweep.files import write_bytes

    write_bytes(path, text.encode())


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says so; safetensors' and others' only say it in words."""
    number = error.errno if isinstance(error, OSError) else None
    return number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


def disk_full(path: Path) -> str:
    """The line for a full disk."""
    return f"no space left on the disk of {path}: free some, or move results with outputs_dir=DIR"


def check_writable(path: Path) -> None:
    """Raise one clear line if nothing can be written below ``path``."""
    from qsweep.errors import ConfigError

    probe = path / f".probe-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(bytes(_LEAST_ROOM))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        if is_disk_full(error):
            raise ConfigError(disk_full(path)) from error
        raise ConfigError(
            f"outputs_dir={path}: cannot be written ({error.strerror}); choose another"
        ) from error


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
