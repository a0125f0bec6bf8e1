"""Names that become folders: of sweeps and of environments. One rule for all."""

import os
import re
import unicodedata
from pathlib import Path
from typing import Any

from qsweep.base.errors import ConfigError

# What file systems take for a name, less what a temporary file beside it is called in addition.
_LONGEST_BYTES = 200
# Separators, and what Windows, SMB shares and shells' patterns reserve: folders travel.
_RESERVED = '/\\<>:"|?*'

_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def folder_name(value: Any, what: str) -> str:
    """The value as the name of one folder.

    A number is a name, too. ``what`` is the option that gives it, for the message.

    Raises:
        ConfigError: it could be no folder's name, or that of a folder elsewhere.
    """
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, (int, float)):
        value = str(value)
    if not isinstance(value, str):
        raise ConfigError(f"{what}={value}: a name is a text")
    if problem := _problem(value):
        raise ConfigError(f"{what}={value!r}: {problem}; it is the name of one folder")
    return value


def check_label(name: str, what: str) -> None:
    """Refuse a name that a line of a table, a message or a tracker could not hold.

    ``what`` is the option that gives it. Raises ConfigError.
    """
    if not name.strip():
        raise ConfigError(f"{what}={name!r}: the name is empty; give one")
    if any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in name):
        raise ConfigError(
            f"{what}={name!a}: contains a character that cannot be printed; give another"
        )


def file_word(label: str) -> str:
    """A label (of a text, a file's path) as part of a file's name, which stays in its folder."""
    return re.sub(r"[^\w.+ -]+", "-", label)[-80:].strip(". -") or "unnamed"


def _problem(name: str) -> str | None:
    if not name.strip():
        return "the name is empty"
    if name != name.strip():
        return "begins or ends with a space"
    if name[0] in ".-" or name[-1] == ".":
        return "begins with a dot or dash, or ends with a dot"
    if _DEVICES.fullmatch(name):
        return "is a device's name on Windows"
    if found := [c for c in name if c in _RESERVED]:
        return f"must not contain {found[0]}"
    if any(unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn", "Zl", "Zp") for c in name):
        return "contains a character that cannot be printed"
    if len(name.encode()) > _LONGEST_BYTES:
        return f"is {len(name.encode())} bytes long, of {_LONGEST_BYTES} at most"
    return None


def absolute_path(path: str, where: str) -> Path:
    """A path as typed, ``~`` and all, as an absolute one.

    ``where`` is the option that gives it. Raises ConfigError.
    """
    try:
        os.fsencode(path).decode()
    except UnicodeError as error:  # safetensors and sqlite take no other names
        raise ConfigError(f"{where}={path!a}: is no name in UTF-8; give another") from error
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:  # ~nobody
        raise ConfigError(f"{where}={path}: {error}") from error
