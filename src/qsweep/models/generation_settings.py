"""How a model's makers have it generate: ``generation_config.json``."""

from pathlib import Path
from typing import Any

from qsweep.base.files import read_json

FILE = "generation_config.json"


def generation_settings(model: Path) -> dict[str, Any]:
    """What the file beside a model says; nothing where there is none that can be read."""
    try:
        found = read_json(model / FILE)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
