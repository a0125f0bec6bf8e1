"""Entries of a store as objects: how they lie in a bucket, are sent there and fetched.

``manifests/KIND/KEY.json`` is the manifest, byte for byte, and ``files/KIND/KEY/SEAL/NAME`` are the
files that it names, where SEAL is the beginning of the manifest's own seal. The manifest is written
last, in one go, and an entry without its manifest does not exist.

The seal covers the hash and the time of every file. So what two makers of one key send at once never
mixes: each has a folder of its own, and the manifest, whosever came last, names the folder of its own
files. Whoever began to read the other goes on reading it, since that folder stays until it is pruned.
A sender that was killed finds what it had sent already, and goes on from there. (Files by their hashes
would save room where entries share some; but then a deletion has to know all manifests, and one that
is written at that moment would name what has just gone. Entries share next to nothing.)

Manifests lie apart from files so that the keys of a kind are one listing of that many names.
"""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from qsweep.base.errors import ArtifactCorrupt
from qsweep.base.files import FileStamp, sync_tree, verify
from qsweep.base.manifest import MANIFEST, Manifest, parse_manifest, read_manifest
from qsweep.base.objects import Objects
from qsweep.base.owners import SILENT_S

_MANIFESTS, _FILES = "manifests", "files"
# Whoever sent a file so lately may still be sending the others, seconds.
_SENDING_S = 6 * 3600


def manifest_name(kind: str, key: str) -> str:
    """The object that is an entry's manifest."""
    return f"{_MANIFESTS}/{kind}/{key}.json"


def keys(objects: Objects, kind: str) -> set[str]:
    """The keys of all entries of a kind. Raises RemoteError."""
    return {PurePosixPath(name).stem for name in objects.names(f"{_MANIFESTS}/{kind}/")}


def read_entry(objects: Objects, kind: str, key: str) -> tuple[Manifest, bytes] | None:
    """An entry's manifest, and its bytes; None if there is no such entry.

    Raises:
        RemoteError: It cannot be read.
        ArtifactCorrupt: It is not what was written.
    """
    content = objects.read(manifest_name(kind, key))
    if content is None:
        return None
    where = f"{objects.url}/{manifest_name(kind, key)}"
    manifest = parse_manifest(content, kind, key, where)
    if manifest.seal is None:
        raise ArtifactCorrupt(f"{where}: has no seal")
    for name in manifest.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or name == MANIFEST:
            raise ArtifactCorrupt(f"{where}: names {name!r}, which lies outside of the entry")
    return manifest, content


def send(objects: Objects, place: Path, *, again: bool = False) -> int:
    """Send a sealed entry: its files, and then its manifest.

    Args:
        objects: Where to.
        place: The entry's directory.
        again: Whether what is there is not to be trusted, and is sent once more.

    Returns:
        The bytes that were sent.

    Raises:
        RemoteError: It cannot be written; the entry is not there, or not whole, or the one before is.
        ArtifactCorrupt: The entry itself is damaged, or has no seal; nothing was sent.
    """
    manifest = read_manifest(place)
    for name, stamp in manifest.files.items():
        verify(place / name, stamp, full=False)
    kind, key = place.parent.name, place.name
    folder = _folder(kind, key, manifest)
    there = {} if again else objects.names(folder)
    sent = _upload(objects, place, folder, _lacking(there, folder, manifest))
    objects.write(manifest_name(kind, key), (place / MANIFEST).read_bytes())
    # Whoever deleted the entry meanwhile may have taken files that were there.
    there = objects.names(folder)
    return sent + _upload(objects, place, folder, _lacking(there, folder, manifest))


def fetch(objects: Objects, kind: str, key: str, folder: Path) -> bool:
    """Fill an empty directory with an entry's files, each compared with its hash, and its manifest.

    Returns whether there is such an entry.

    Raises:
        RemoteError: It cannot be read.
        ArtifactCorrupt: A file is missing, truncated or altered.
    """
    if (found := read_entry(objects, kind, key)) is None:
        return False
    manifest, content = found
    prefix = _folder(kind, key, manifest)
    for name, stamp in manifest.files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        _fetch_file(objects, prefix + name, file, stamp)
    (folder / MANIFEST).write_bytes(content)
    sync_tree(folder)
    return True


def incomplete(objects: Objects, kind: str, places: Iterable[Path]) -> list[Path]:
    """Of entries that are here and there, those whose files are not all there, by names and sizes.

    What is there under the manifest that lies here is compared with that one; only of another maker's
    entry the manifest is read. Raises RemoteError.
    """
    there = objects.names(f"{_FILES}/{kind}/")
    makers = Counter(PurePosixPath(folder).parts[2] for folder in _by_folder(there))

    def is_whole(place: Path) -> bool:
        if makers[place.name] <= 1:
            with contextlib.suppress(ArtifactCorrupt):
                manifest = read_manifest(place)
                if not _lacking(there, _folder(kind, place.name, manifest), manifest):
                    return True
        with contextlib.suppress(ArtifactCorrupt):
            if entry := read_entry(objects, kind, place.name):
                return not _lacking(there, _folder(kind, place.name, entry[0]), entry[0])
        return False

    return [place for place in places if not is_whole(place)]


def delete(objects: Objects, kind: str, key: str) -> None:
    """Delete an entry: the manifest, and then what was ever sent of it. Raises RemoteError.

    Another maker's files of the last hours stay, since that one may still be sending.
    """
    own = _named_folder(objects, kind, key)
    objects.delete(manifest_name(kind, key))
    times = objects.times(f"{_FILES}/{kind}/{key}/")
    gone = set()
    for folder, names in _by_folder(times).items():
        if folder == own or _age(names, times) > _SENDING_S:
            gone.add(folder)
            for name in names:
                objects.delete(name)
    # Whoever sent it meanwhile may have taken a file for sent that is gone now.
    if _named_folder(objects, kind, key) in gone:
        objects.delete(manifest_name(kind, key))


def written(objects: Objects, kind: str) -> dict[str, float]:
    """When each entry of a kind was written, by key, seconds since the epoch. Raises RemoteError."""
    times = objects.times(f"{_MANIFESTS}/{kind}/")
    return {PurePosixPath(name).stem: time for name, time in times.items()}


def sizes(objects: Objects, kind: str) -> dict[str, int]:
    """Bytes of all files that are there of each key of a kind, whether it is whole or not."""
    found: dict[str, int] = {}
    for name, size in objects.names(f"{_FILES}/{kind}/").items():
        key = PurePosixPath(name).parts[2]
        found[key] = found.get(key, 0) + size
    return found


def left_over(objects: Objects, kind: str) -> list[str]:
    """Files of a kind that no manifest names and nobody sends any more: senders were killed, or late."""
    times = objects.times(f"{_FILES}/{kind}/")
    folders = _by_folder(times)
    makers = Counter(PurePosixPath(folder).parts[2] for folder in folders)
    whole, found = keys(objects, kind), []
    for folder, names in folders.items():
        key = PurePosixPath(folder).parts[2]
        if _age(names, times) <= SILENT_S:
            continue
        if key in whole and (makers[key] == 1 or folder == _named_folder(objects, kind, key)):
            continue
        found += names
    for place in (_FILES, _MANIFESTS):
        unfinished = objects.unfinished(f"{place}/{kind}/")
        found += [name for name in unfinished if _age([name], unfinished) > SILENT_S]
    return found


def _by_folder(names: Iterable[str]) -> dict[str, list[str]]:
    """Names of files by the folder of their maker, which ends in a slash."""
    found: dict[str, list[str]] = {}
    for name in names:
        folder = "/".join(PurePosixPath(name).parts[:4]) + "/"
        found.setdefault(folder, []).append(name)
    return found


def _age(names: Iterable[str], times: Mapping[str, float]) -> float:
    """Seconds since the last of some files was written."""
    return time.time() - max(times[name] for name in names)


def _named_folder(objects: Objects, kind: str, key: str) -> str | None:
    """The folder that the manifest there names, if there is one that can be read."""
    with contextlib.suppress(ArtifactCorrupt):
        if entry := read_entry(objects, kind, key):
            return _folder(kind, key, entry[0])
    return None


def _lacking(there: Mapping[str, int], folder: str, manifest: Manifest) -> dict[str, FileStamp]:
    """The files of a manifest that are not there.

    An object is whole or not at all: one of a file's name and size in the folder of its seal is it.
    """
    return {
        name: stamp
        for name, stamp in manifest.files.items()
        if there.get(folder + name) != stamp.size
    }


def _upload(objects: Objects, place: Path, folder: str, files: Mapping[str, FileStamp]) -> int:
    for name in files:
        objects.upload(place / name, folder + name)
    return sum(stamp.size for stamp in files.values())


def _folder(kind: str, key: str, manifest: Manifest) -> str:
    if manifest.seal is None:
        raise ArtifactCorrupt(f"{kind}/{key}: its manifest has no seal")
    return f"{_FILES}/{kind}/{key}/{manifest.seal[:16]}/"


def _fetch_file(objects: Objects, name: str, file: Path, stamp: FileStamp) -> None:
    where = f"{objects.url}/{name}"
    for last in (False, True):
        if not objects.download(name, file):
            raise ArtifactCorrupt(f"{where}: is not there")
        # The time is part of the stamp, and a quick look later takes the file for the same by it.
        os.utime(file, ns=(stamp.mtime_ns, stamp.mtime_ns))
        try:
            verify(file, stamp, full=True)
            return
        except ArtifactCorrupt as error:
            if last:  # the first time it may have happened on the way
                said = str(error).removeprefix(f"{file}: ")
                raise ArtifactCorrupt(f"{where}: {said}") from error
