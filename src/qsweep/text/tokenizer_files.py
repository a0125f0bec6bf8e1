"""What the files of a tokenizer say, read the same way by whoever compares two of them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qsweep.models.config import read_json

_LONGEST_TEMPLATE = 1 << 20
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


def joined_merges(merges: Iterable[Any] | None) -> tuple[str, ...] | None:
    """Merges as texts with a space between the two pieces; None where there are none.

    tokenizers writes them as pairs since 0.20, and as such texts before.
    """
    if merges is None:
        return None
    return tuple(one if isinstance(one, str) else " ".join(one) for one in merges)


def chat_template(path: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template in a model's directory, which is never rendered; None if there is none.

    Args:
        path: The directory.
        settings: Its ``tokenizer_config.json``.

    Raises:
        ConfigError: ``chat_template.json`` cannot be read.
    """
    file = path / _TEMPLATE_FILES[0]
    if file.is_file():
        with file.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(_LONGEST_TEMPLATE)
    found = settings.get("chat_template")
    if not found and (path / _TEMPLATE_FILES[1]).is_file():
        content = read_json(path / _TEMPLATE_FILES[1])
        found = content.get("chat_template") if isinstance(content, dict) else None
    if isinstance(found, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, Mapping)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def own_chat_template(path: Path) -> str | None:
    """The same of a model's directory alone. Raises as :func:`chat_template`."""
    try:
        settings = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        settings = {}
    return chat_template(path, settings if isinstance(settings, Mapping) else {})


def template_file_content(path: Path) -> str | None:
    """A model's chat template where a file of its own holds it, which no model hash covers; else None."""
    if not any((path / name).is_file() for name in _TEMPLATE_FILES):
        return None
    return own_chat_template(path)
