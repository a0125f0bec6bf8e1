"""The copy of a store that machines share: what it holds, fetched and sent as one process needs it.

Nothing here ever ends a sweep. What cannot be fetched counts as absent, what cannot be sent stands in
the local store and is noted there, below ``unsent``; a line says so, once. Only :meth:`Remote.check`,
at the start of a sweep, refuses.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from qsweep.base import remote_entries as entries
from qsweep.base.console import say
from qsweep.base.disk import os_error_message
from qsweep.base.errors import ArtifactCorrupt, ConfigError
from qsweep.base.files import write_text
from qsweep.base.manifest import Manifest
from qsweep.base.numbers import gigabytes
from qsweep.base.objects import Objects, RemoteError
from qsweep.base.owners import host

# After a failure nothing is asked of it for so long: each question may take a while to fail.
_REST_S = 60.0
_PROBE = "probes"
SEND_LATER = "`qsweep store push` sends what is missing"


class Remote:
    """The shared copy of a store.

    Args:
        url: Where it lies.
        root: The local store's folder, where what could not be sent is noted.
        push: Whether anything is sent.
    """

    def __init__(self, url: str, root: Path, *, push: bool = True):
        self.objects = Objects(url)
        self.push = push
        self.unsent = Unsent(root / "unsent")
        self._known: set[tuple[str, str]] = set()
        self._damaged: set[tuple[str, str]] = set()
        self._manifests: dict[tuple[str, str], Manifest] = {}
        self._listed: dict[str, set[str]] | None = None
        self._waiting: dict[tuple[str, str], Path] = {}
        self._resting_until: dict[str, float] = {}
        self._said: set[str] = set()

    @property
    def url(self) -> str:
        """Where it lies."""
        return self.objects.url

    def check(self) -> None:
        """Refuse a remote that cannot be used as a sweep is to use it.

        Raises:
            ConfigError: It cannot be reached or read, or refuses what is written.
        """
        try:
            self.probe_reading()
        except RemoteError as error:
            raise ConfigError(f"store.remote={error}; store.remote=null does without") from error
        if not self.push:
            return
        try:
            self.probe_writing()
        except RemoteError as error:
            raise ConfigError(
                f"store.remote={error}; store.push=false only reads from it"
            ) from error

    def probe_reading(self) -> None:
        """Look whether it is there. Raises RemoteError."""
        self.objects.require_folder()
        self.objects.names(f"{_PROBE}/")

    def probe_writing(self) -> None:
        """Write an object, read it back and delete it. Raises RemoteError."""
        name = f"{_PROBE}/{host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.objects.write(name, b"qsweep\n")
        if self.objects.read(name) != b"qsweep\n":
            raise RemoteError(f"{self.url}: does not give back what was written")
        self.objects.delete(name)

    def manifest(self, kind: str, key: str) -> Manifest | None:
        """An entry's manifest; None if it is not there, is damaged, or cannot be read now."""
        if (kind, key) not in self._manifests:
            with self._reading():
                if self._may_hold(kind, key) and (
                    found := entries.read_entry(self.objects, kind, key)
                ):
                    self._manifests[kind, key] = found[0]
                    self._known.add((kind, key))
        return self._manifests.get((kind, key))

    def fetch(self, kind: str, key: str, folder: Path) -> bool:
        """Fill an empty directory with an entry; returns whether it is there and whole."""
        with self._reading():
            try:
                if self._may_hold(kind, key) and entries.fetch(self.objects, kind, key, folder):
                    self._known.add((kind, key))
                    return True
            except ArtifactCorrupt:
                self.distrust(kind, key)
                raise
        return False

    def offer(self, place: Path) -> None:
        """Send an entry that lies in the local store, unless the remote has it.

        While much is looked up, that waits until the end (:meth:`planning`).
        """
        kind, key = place.parent.name, place.name
        if not self.push or (kind, key) in self._known:
            return
        if self._listed is not None:
            self._waiting[kind, key] = place
            return
        if (kind, key) in self._damaged or (self.manifest(kind, key) is None and self._can("read")):
            self.send(place)

    def distrust(self, kind: str, key: str) -> None:
        """Take an entry for absent from now on: it is made anew, and sent in its place."""
        self._damaged.add((kind, key))
        self._known.discard((kind, key))
        self._manifests.pop((kind, key), None)

    def send(self, place: Path) -> bool:
        """Send an entry; returns whether it is there now. What fails is said and noted."""
        if not self.push:
            return False
        kind, key = place.parent.name, place.name
        try:
            if not self._can("write"):
                raise RemoteError(f"{self.url}: could not be written a moment ago")
            entries.send(self.objects, place, again=(kind, key) in self._damaged)
        except ArtifactCorrupt as error:
            self._say(
                f"{error}; it is not sent to {self.url}, and made anew by a sweep that needs it"
            )
            return False
        except (RemoteError, OSError) as error:
            if self._can("write"):
                self._say(f"{error}; the result stands here, and {SEND_LATER}")
                self._rest("write")
            self.unsent.add(kind, key, str(error))
            return False
        self._known.add((kind, key))
        self._damaged.discard((kind, key))
        self.unsent.discard(kind, key)
        return True

    @contextlib.contextmanager
    def planning(self) -> Iterator[None]:
        """While many entries are looked up: what there is is listed once, by kind.

        What was found here and is not there is sent in the end, if that could be listed. Nothing of
        the listing is kept.
        """
        if self._listed is not None:  # a part of a larger planning
            yield
            return
        self._listed, self._waiting = {}, {}
        try:
            yield
            missing = [place for place in self._waiting.values() if self._lacks(place)]
        finally:
            self._listed, self._waiting = None, {}
        if missing:
            size = sum(f.stat().st_size for p in missing for f in p.rglob("*") if f.is_file())
            several = "1 entry" if len(missing) == 1 else f"{len(missing)} entries"
            self._say(f"{self.url} lacks {several} of {gigabytes(size / 1e9)} GB: sent now")
            for place in missing:
                self.send(place)

    def _listing(self, kind: str) -> set[str] | None:
        """The keys of a kind, which are listed once; None if they cannot be listed now."""
        assert self._listed is not None
        if kind not in self._listed and self._can("read"):
            with self._reading():
                found = self._listed[kind] = entries.keys(self.objects, kind)
                self._known |= {(kind, key) for key in found if (kind, key) not in self._damaged}
        return self._listed.get(kind)

    def _lacks(self, place: Path) -> bool:
        """Whether an entry is known to be absent, or damaged."""
        kind, key = place.parent.name, place.name
        found = self._listing(kind)
        return found is not None and (key not in found or (kind, key) in self._damaged)

    def _may_hold(self, kind: str, key: str) -> bool:
        if (kind, key) in self._damaged or not self._can("read"):
            return False
        return self._listed is None or key in (self._listing(kind) or ())

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Whatever cannot be read counts as absent, and a line says so."""
        try:
            yield
        except ArtifactCorrupt as error:
            self._say(f"{error}; it counts as absent")
        except RemoteError as error:
            self._rest("read")
            self._say(f"{error}; what it holds counts as absent")
        except OSError as error:  # of this machine's own disk
            self._say(f"{self.url}: nothing can be fetched: {os_error_message(error)}")

    def _can(self, what: str) -> bool:
        return time.monotonic() >= self._resting_until.get(what, 0.0)

    def _rest(self, what: str) -> None:
        self._resting_until[what] = time.monotonic() + _REST_S

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            say(f"note: {line}")

    def settle(self, root: Path) -> None:
        """Try once more what could not be sent, by whatever process, and say what is left.

        Args:
            root: The local store's folder.
        """
        failed = []
        # The last failure may be a moment ago, and there is no later chance.
        self._resting_until.pop("write", None)
        for kind, key in self.unsent.all() if self.push else ():
            place = root / kind / key
            if not place.is_dir():  # it was pruned
                self.unsent.discard(kind, key)
            elif not self.send(place):
                failed.append(place)
        if failed:
            several = "1 entry" if len(failed) == 1 else f"{len(failed)} entries"
            self._say(f"{self.url} lacks {several} that could not be sent; {SEND_LATER}")


class Unsent:
    """What could not be sent, whatever process it was that tried: an empty file for each entry."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, kind: str, key: str, reason: str) -> None:
        """Note an entry, and why."""
        with contextlib.suppress(OSError):  # a full disk; it is found without, only later
            write_text(self.folder / f"{kind}-{key}", reason + "\n")

    def discard(self, kind: str, key: str) -> None:
        """Forget an entry that was sent."""
        with contextlib.suppress(OSError):
            (self.folder / f"{kind}-{key}").unlink(missing_ok=True)

    def all(self) -> list[tuple[str, str]]:
        """Kinds and keys."""
        if not self.folder.is_dir():
            return []
        names = sorted(p.name for p in self.folder.iterdir() if not p.name.startswith("."))
        return [(kind, key) for kind, _, key in (name.partition("-") for name in names)]
