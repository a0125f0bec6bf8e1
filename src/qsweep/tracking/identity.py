"""What tells sweeps, and the records of a trial, apart in trackers that many people share."""

import hashlib
import json
import re
import uuid
from pathlib import Path
from typing import Any

from qsweep.base.files import read_regular
from qsweep.results.covered import number_asked
from qsweep.results.record import Record
from qsweep.results.record_file import content_of
from qsweep.text.windows import preset_key

FILE = "tracking.json"


def sweep_uid(directory: Path) -> str:
    """A sweep's identity in trackers: the one that its folder has, or a new one.

    It is in ``tracking.json`` and, should that be lost, in ``sweep.json``.
    """
    return _stored_uid(directory) or uuid.uuid4().hex


def is_copy(directory: Path) -> bool:
    """Whether a folder is a copy of another beside it.

    As such it is a sweep of its own once somebody goes on with it, and nothing until then.
    """
    return any(is_copied(directory, content) for content in _identities(directory))


def _stored_uid(directory: Path) -> str | None:
    for content in _identities(directory):
        if not is_copied(directory, content):
            return str(content["uid"])
    return None


def _identities(directory: Path) -> list[dict[str, Any]]:
    contents = [read_notes(directory / name) for name in (FILE, "sweep.json")]
    return [content for content in contents if _is_uid(content.get("uid"))]


def is_copied(directory: Path, content: dict[str, Any]) -> bool:
    """Whether a folder's notes are those of another folder beside it."""
    name = content.get("name")
    if not isinstance(name, str) or name != Path(name).name or name in ("", directory.name):
        return False
    originals = _identities(directory.with_name(name))
    return any(original["uid"] == content["uid"] for original in originals)


def read_notes(path: Path) -> dict[str, Any]:
    """A file of notes; empty where it is missing or damaged."""
    try:
        return mapping_or_empty(json.loads(read_regular(path).decode()))
    except (OSError, ValueError, RecursionError):
        return {}


def mapping_or_empty(value: Any) -> dict[str, Any]:
    """The value if it is a mapping."""
    return value if isinstance(value, dict) else {}


def _is_uid(value: Any) -> bool:
    # It becomes part of a query.
    return isinstance(value, str) and re.fullmatch(r"[0-9A-Za-z-]{1,64}", value) is not None


# Of two records that differ only here, the first is as good: they tell when and how it was looked
# at, not what came out. (A failed trial that fails again is news: its end counts.)
_ALWAYS = ("version", "cached", "environment")
# What is said of tensors is read from the store whenever a record is made.
_VOLATILE = (*_ALWAYS, "seconds", "started", "ended", "command", "log", "config", "tensors")


def fingerprint(record: Record) -> str:
    """SHA-256 of what a trial came to: equal for records of which only one needs logging.

    A preset counts by the name that its key has, so that a later name makes no other record of it. A
    setting of several draws is what these are, and of how many that were asked for.
    """
    volatile = _ALWAYS if record.status == "failed" else _VOLATILE
    content = {k: v for k, v in content_of(record).items() if k not in volatile}
    content["measurements"] = [_by_preset_key(m) for m in content["measurements"]]
    if record.draws is not None:
        content["draws"] = [fingerprint(draw) for draw in record.draws]
        content["draws_asked"] = number_asked(record)
    if "config" in content:
        content["config"] = _with_preset_keys(content["config"])
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _by_preset_key(measurement: dict[str, Any]) -> dict[str, Any]:
    found = {**measurement, "preset": preset_key(measurement["preset"])}
    facts = found.get("facts") or {}
    if "preset" in facts:
        found["facts"] = {**facts, "preset": preset_key(facts["preset"])}
    return found


def _with_preset_keys(config: dict[str, Any]) -> dict[str, Any]:
    asked: Any = config.get("eval")
    presets = asked.get("presets") if isinstance(asked, dict) else None
    if not isinstance(presets, list):
        return config
    return {**config, "eval": {**asked, "presets": [preset_key(str(name)) for name in presets]}}
