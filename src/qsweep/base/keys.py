"""The key of a store entry: a hash of what determines its content."""

import hashlib
import json
from pathlib import Path
from typing import Any


def key_of(identity: Any) -> str:
    """The key of a store entry: a hash of what determines its content (16 bytes, hexadecimal)."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be part of a key")
