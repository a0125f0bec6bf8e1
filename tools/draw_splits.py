"""Which parts of Python's own text the embedded model is tested on, drawn once (train_pocket.py)."""

import hashlib
from collections.abc import Iterable

from qsweep.models.tiny.text import Split, modules, topics

# What may be held out: no stubs, no unit that would be most of its split by itself, and no module that
# Python 3.12 or 3.13 removed, since the split should be the same on every supported version.
_MIN_BYTES = 2000
_MAX_SHARE = 0.25
_REMOVED = set(
    "aifc asynchat asyncore audioop cgi cgitb chunk crypt imghdr imp mailcap msilib nntplib pipes "
    "smtpd sndhdr sre_compile sre_constants sre_parse sunau telnetlib uu xdrlib nturl2path".split()
)


def draw_splits(quotas: dict[Split, dict[str, int]]) -> dict[Split, list[str]]:
    """Hold units out until each split has its bytes of ``topic`` and of ``module``.

    Units come in the order of the SHA-256 of their names; one that would overfill the quota stays
    in training, and so does one that is unfit to be held out.
    """
    drawn: dict[Split, list[str]] = {}
    taken: set[str] = set()
    for split, by_kind in quotas.items():
        drawn[split] = []
        for kind, texts in (("topic", topics()), ("module", modules())):
            left = by_kind[kind]
            for name in _hash_order(texts):
                unit, size = f"{kind}:{name}", len(texts[name].encode())
                low = _MIN_BYTES if kind == "module" else 0
                high = min(left, int(by_kind[kind] * _MAX_SHARE))
                if unit not in taken and name not in _REMOVED and low <= size <= high:
                    left -= size
                    taken.add(unit)
                    drawn[split].append(unit)
        drawn[split].sort()
    return drawn


def _hash_order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
