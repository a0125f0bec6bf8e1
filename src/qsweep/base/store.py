"""The content-addressed store: every step's result under the hash of what determined it.

An entry is a directory that appears whole or not at all: it is made beside its place, sealed with a
manifest of its files, flushed to disk and renamed (:mod:`qsweep.base.publish`). Two sweeps that want
the same entry wait for one another on a lock, which only saves work: where a file system has no
locks both make it, in temporary directories of their own, and one's is kept. A killed maker leaves
only its temporary directory, which the next one, or the next start (:mod:`qsweep.base.cleanup`),
sweeps away.

What is in its place but not what was written there counts as absent, and a line says so. The quick
check (the manifest, sizes and time stamps of files) is for whether something is there; whoever
calculates with an entry's files asks for the full one, which hashes them.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Self

from qsweep.base.console import say
from qsweep.base.disk import DiskFull, disk_full, has_no_room, is_disk_full
from qsweep.base.entry_contents import contradiction, problem
from qsweep.base.errors import ArtifactCorrupt, ConfigError, QsweepError
from qsweep.base.files import read_json, sync_tree, write_json
from qsweep.base.keys import key_of
from qsweep.base.locks import FileLock
from qsweep.base.manifest import MANIFEST, Entry, open_entry, reseal, seal
from qsweep.base.names import absolute_path
from qsweep.base.owners import is_dead, temporaries, temporary
from qsweep.base.publish import delete, publish, withdraw
from qsweep.base.remote import Remote
from qsweep.base.remote_settings import RemoteSettings

__all__ = ["MANIFEST", "Entry", "Kind", "Store", "disk_full", "is_disk_full",
           "open_entry", "seal"]  # fmt: skip

Kind = Literal[
    "artifacts", "importances", "references", "measurements", "tensors", "tasks", "timings",
    "sensitivities", "models", "texts", "packs",
]  # fmt: skip
_ALONE = RemoteSettings()
# How a directory is made: called with an empty one, returns what the manifest says beside files.
Make = Callable[[Path], dict[str, Any]]
# The same for several at once, by key.
MakeAll = Callable[[Mapping[str, Path]], Mapping[str, dict[str, Any]]]
# Where the store of this machine lies, if not below outputs_dir.
ROOT_VARIABLE = "QSWEEP_STORE"
# Begins what names a file of the store, or of this package, wherever that lies.
_IN_STORE, _IN_PACKAGE = "store:", "qsweep:"
_PACKAGE = Path(__file__).resolve().parents[1]
# Where the last sweep's remote copy lies.
_REMOTE = "remote.json"
# How long one waits for another that may be fetching the same, seconds.
_FETCH_S = 300.0


class Store:
    """Entries by kind and key below one folder.

    Where a remote copy is shared, what is absent here is fetched from there, and what was made or
    found here is sent there (:mod:`qsweep.base.remote`).

    Args:
        root: The folder.
        settings: Where a copy of it lies that other machines share, if there is one.
    """

    def __init__(self, root: Path, settings: RemoteSettings = _ALONE):
        self.root = root
        self.settings = settings
        self._reported: set[str] = set()
        self._hashed: dict[Path, set[tuple[Any, ...]]] = {}

    @classmethod
    def below(cls, outputs: Path, settings: RemoteSettings | None = None) -> Self:
        """The store of an outputs folder; ``QSWEEP_STORE`` puts it elsewhere.

        Its remote copy is by default the one of the last sweep that had one (:meth:`remember`).
        """
        root = _own_root() or outputs / "store"
        return cls(root, _remembered(root) if settings is None else settings)

    @classmethod
    def at(cls, address: Mapping[str, Any]) -> Self:
        """The store that a job was given the address of, on the node that runs it.

        ``QSWEEP_STORE`` there names the node's own folder, where it does not see that of the sweep.

        Raises:
            ConfigError: what is made in that folder would never get to the sweep.
        """
        there, own = Path(address["root"]), _own_root()
        if own is not None and own != there and address["remote"] is None:
            raise ConfigError(
                f"{ROOT_VARIABLE}={own}: the sweep's store is {there}, and nobody there would see what "
                "is made here; give the sweep store.remote=URL, or leave the store where it is"
            )
        return cls(own or there, RemoteSettings(address["remote"], address["push"]))

    @property
    def address(self) -> dict[str, Any]:
        """What :meth:`at` makes the same store of, in JSON."""
        return {"root": str(self.root), **self.settings.address}

    @cached_property
    def remote(self) -> Remote | None:
        """The copy that machines share."""
        url = self.settings.remote
        return None if url is None else Remote(url, self.root, push=self.settings.push)

    def remember(self) -> None:
        """Note where the remote copy lies, for commands that are not told."""
        if self.settings.remote is not None and self.settings != _remembered(self.root):
            write_json(self.root / _REMOTE, self.settings.address)

    def planning(self) -> AbstractContextManager[None]:
        """While many entries are looked up: see :meth:`Remote.planning`."""
        return nullcontext() if self.remote is None else self.remote.planning()

    def portable(self, path: Path) -> str:
        """A path as a job is given it: what lies in the store, or in qsweep, may lie elsewhere there."""
        if path.is_relative_to(self.root):
            return f"{_IN_STORE}{path.relative_to(self.root)}"
        if path.is_relative_to(_PACKAGE):
            return f"{_IN_PACKAGE}{path.relative_to(_PACKAGE)}"
        return str(path)

    def located(self, name: str) -> Path:
        """The path that :meth:`portable` made a name of, here."""
        if name.startswith(_IN_PACKAGE):
            return _PACKAGE / name.removeprefix(_IN_PACKAGE)
        if not name.startswith(_IN_STORE):
            return Path(name)
        path = self.root / name.removeprefix(_IN_STORE)
        if self.remote is not None:
            self.find(path.parent.name, path.name)  # type: ignore[arg-type]
        return path

    def path(self, kind: Kind, key: str) -> Path:
        """Where an entry is or would be."""
        return self.root / kind / key

    def lock(self, kind: str, key: str, *, timeout_s: float | None = None) -> FileLock:
        """What whoever makes or removes an entry holds."""
        path = self.root / "locks" / f"{kind}-{key}.lock"
        return FileLock(path, timeout_s=timeout_s, optional=True)

    def find(self, kind: Kind, key: str, *, full: bool = False) -> Entry | None:
        """The entry, if it is there and is what was written.

        The quick check looks at files' sizes and time stamps; ``full`` hashes every file. A damaged
        entry counts as absent; what is absent here is fetched from the remote copy.
        """
        entry = self._find(kind, key, full=full)
        if entry is not None and not entry.sealed:
            with contextlib.suppress(QsweepError, OSError), self.lock(kind, key, timeout_s=0):
                reseal(entry.path)
        if self.remote is None:
            return entry
        if entry is not None:
            self.remote.offer(entry.path)
            return entry
        if self.remote.manifest(kind, key) is None:
            return None
        # Of several who want the same, one fetches; but nobody waits long for who may be making it.
        with ExitStack() as stack:
            with contextlib.suppress(QsweepError):
                stack.enter_context(self.lock(kind, key, timeout_s=_FETCH_S if full else 0))
            return self._find(kind, key, full=full) or self._fetch(kind, key)

    def look(self, kind: Kind, key: str) -> Entry | None:
        """What an entry's manifest says, for planning: its files may be in the remote copy only.

        Whoever reads its files asks :meth:`find`.
        """
        if (entry := self._find(kind, key, full=False)) is not None:
            if self.remote is not None:
                self.remote.offer(entry.path)
            return entry
        if self.remote is None or (found := self.remote.manifest(kind, key)) is None:
            return None
        return Entry(self.path(kind, key), found.content)

    def require(self, kind: Kind, key: str) -> Entry:
        """The entry, every file of it hashed.

        Raises:
            ArtifactCorrupt: it is absent or damaged.
        """
        if (entry := self.find(kind, key, full=True)) is None:
            raise ArtifactCorrupt(f"{self.path(kind, key)}: is gone or damaged; run it again")
        return entry

    def _find(self, kind: Kind, key: str, *, full: bool) -> Entry | None:
        path = self.path(kind, key)
        try:
            state = _state(path)
            # What this process has hashed need not be hashed again as long as nobody touches it.
            entry = open_entry(path, full=full and self._hashed.get(path) != state)
            if not entry.sealed:
                # Nothing but its files speaks for it: look at all of them, once.
                check_unsealed(entry)
            if full or not entry.sealed:
                self._hashed[path] = state
            return entry
        except (ArtifactCorrupt, OSError) as error:
            if os.path.lexists(path) and str(error) not in self._reported:
                self._reported.add(str(error))
                say(f"note: {error}; it counts as absent")
            return None

    def remove(self, kind: Kind, key: str) -> None:
        """Delete an entry, if it is there; the remote copy's is replaced once it is made anew."""
        if self.remote is not None:
            self.remote.distrust(kind, key)
        with self.lock(kind, key), contextlib.suppress(FileNotFoundError):
            withdraw(self.path(kind, key))

    def build(self, kind: Kind, identity: dict[str, Any], make: Make) -> tuple[Entry, bool]:
        """The entry that ``identity`` determines, made now if it is absent or damaged.

        Returns the entry and whether it was made now. ``make`` gets an empty directory; whatever it
        raises leaves the store as it was.
        """

        def make_one(folders: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
            return {key: make(folder) for key, folder in folders.items()}

        return self.build_all(kind, [identity], make_one)[key_of(identity)]

    def build_all(
        self,
        kind: Kind,
        identities: Sequence[dict[str, Any]],
        make: MakeAll,
    ) -> dict[str, tuple[Entry, bool]]:
        """Entries that are made together, by key; see :meth:`build`.

        ``make`` gets empty directories for those that are absent or damaged, and is not called if
        none is; whatever it raises leaves the store as it was.
        """
        wanted = {key_of(identity): identity for identity in identities}
        (self.root / kind).mkdir(parents=True, exist_ok=True)
        with ExitStack() as locks:
            # In one order everywhere, so that two who want the same never wait for each other.
            held = {key: locks.enter_context(self.lock(kind, key)) for key in sorted(wanted)}
            found = {
                key: self._find(kind, key, full=True) or self._fetch(kind, key) for key in wanted
            }
            for entry in found.values():
                if entry is not None and not entry.sealed:
                    with contextlib.suppress(OSError):  # it may lie on a disk that is read only
                        reseal(entry.path)
                if entry is not None and self.remote is not None:
                    self.remote.offer(entry.path)
            absent = {
                key: temporary(self.path(kind, key)) for key, entry in found.items() if not entry
            }
            made = set()
            try:
                for key, folder in absent.items():
                    if held[key].held:
                        _sweep_up(self.path(kind, key))
                    folder.mkdir()
                contents = make(absent) if absent else {}
                for key, folder in absent.items():
                    seal(folder, wanted[key], contents[key])
                    sync_tree(folder)
                    if publish(folder, self.path(kind, key), partial(self._is_good, kind, key)):
                        made.add(key)
            except DiskFull:  # of another disk, which it names
                raise
            except Exception as error:
                # Looked at before anything is removed: not every library says why it failed.
                if is_disk_full(error) or has_no_room(self.root / kind):
                    raise QsweepError(disk_full(self.root)) from error
                raise
            finally:
                for folder in absent.values():
                    delete(folder)
            if self.remote is not None:
                for key in made:
                    self.remote.send(self.path(kind, key))
            return {
                key: (entry or open_entry(self.path(kind, key)), key in made)
                for key, entry in found.items()
            }

    def _fetch(self, kind: Kind, key: str) -> Entry | None:
        """The entry, from the remote copy into its place here."""
        if self.remote is None:
            return None
        place = self.path(kind, key)
        folder = temporary(place)
        try:
            folder.mkdir(parents=True)
            if not self.remote.fetch(kind, key, folder):
                return None
            # Every file was hashed as it came.
            if publish(folder, place, partial(self._is_good, kind, key)):
                self._hashed[place] = _state(place)
            return self._find(kind, key, full=True)
        except OSError:  # a disk that is full or read only: whoever makes the entry says so
            return None
        finally:
            with contextlib.suppress(OSError):
                delete(folder)

    def _is_good(self, kind: Kind, key: str) -> bool:
        return self._find(kind, key, full=True) is not None


def _own_root() -> Path | None:
    name = os.environ.get(ROOT_VARIABLE)
    return absolute_path(name, ROOT_VARIABLE) if name else None


def _remembered(root: Path) -> RemoteSettings:
    try:
        return RemoteSettings(**read_json(root / _REMOTE))
    except (OSError, ValueError, TypeError, ConfigError):
        return _ALONE


def _sweep_up(place: Path) -> None:
    """Remove what makers of an entry left here who were killed; its lock is held."""
    for left in temporaries(place):
        if is_dead(left):
            with contextlib.suppress(OSError):
                delete(left)


def check_unsealed(entry: Entry) -> None:
    """Verify all that can be of an entry whose manifest has no seal. Raises ArtifactCorrupt."""
    open_entry(entry.path, full=True)
    kind, content = entry.path.parent.name, entry.content
    if wrong := problem(kind, content) or contradiction(kind, entry.path, content):
        raise ArtifactCorrupt(f"{entry.path}: {MANIFEST}: {wrong}")


def _state(path: Path) -> set[tuple[Any, ...]]:
    """What changes when a file of a directory does, its own time stamps set back or not."""
    found = [(file, file.stat()) for file in path.rglob("*") if file.is_file()]
    return {(str(file), s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for file, s in found}
