"""Hashes of files outside of the store, remembered in it: models are large and seldom change."""

import contextlib
import hashlib
from pathlib import Path

from qsweep.base.files import read_regular, sha256_of, write_bytes
from qsweep.base.keys import key_of
from qsweep.base.store import Store


def file_hash(store: Store, path: Path) -> str:
    """SHA-256 of a file, remembered by all that changes when its content does.

    Size and modification time alone would not do: a copy or an editor may set that time back. The
    time of the last change of the file's entry in its folder nobody can set.
    """
    real = path.resolve()
    stat = real.stat()
    known = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    key = key_of([str(real), *known])
    cached = store.root / "hashes" / key
    with contextlib.suppress(OSError):
        digest, _, check = read_regular(cached).partition(b" ")
        if check == _check(key, digest):
            return digest.decode("ascii")
    found = sha256_of(real)
    with contextlib.suppress(OSError):  # it is hashed again the next time
        write_bytes(cached, b" ".join((found.encode(), _check(key, found.encode()))))
    return found


def _check(key: str, digest: bytes) -> bytes:
    # Two of these files in each other's place would give each model the other's results.
    return hashlib.sha256(key.encode() + digest).hexdigest()[:16].encode()
