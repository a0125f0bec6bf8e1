"""Text of the running Python installation: its documentation (prose) and its standard library (code).

The units are *topics* (entries of ``pydoc_data.topics``) and *modules* (files of the standard
library). A unit belongs to exactly one split, and the docstrings of a module follow the module, so
that no sentence of the test split was ever seen in training or in calibration. Which units are held
out was drawn once by a hash of their names (tools/draw_splits.py) and is frozen in ``splits.json``: another Python version,
whose modules have other sizes, would otherwise fill the quotas differently and hand text that the
pocket model was trained on to the test split.
"""

import ast
import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import Literal

from qsweep.base.errors import QsweepError
from qsweep.base.files import read_json

Split = Literal["train", "calibration", "test"]
Kind = Literal["docs", "code"]

SPLITS_FILE = Path(__file__).with_name("splits.json")
# Tables rather than code, tests that many installations leave out, and third-party packages.
_EXCLUDED = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "_bundled",
    "pydoc_data",
    "__pycache__",
    "encodings",
    "turtledemo",
    "lib2to3",
    "distutils",
    "__phello__",
}


def topics() -> dict[str, str]:
    """The topics of ``help()``, by name; empty where the installation leaves them out."""
    try:
        from pydoc_data.topics import topics as table
    except ImportError:
        return {}
    return {name: text.strip() for name, text in sorted(table.items()) if text.strip()}


@lru_cache(maxsize=1)
def modules() -> dict[str, str]:
    """The source of every module of the standard library that is code, by dotted name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if _EXCLUDED & set(parts) or parts[0].startswith("config-") or parts[0] == "_sysconfigdata":
            continue
        try:
            text = path.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError:
            continue
        if text:
            found[".".join(parts).removesuffix(".py")] = text
    return found


def docstrings(source: str) -> str:
    """Every docstring of a module of two lines or more, joined by blank lines."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ""
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, holders))
    return "\n\n".join(text for text in texts if text and "\n" in text)


def documents(kind: Kind, split: Split) -> list[str]:
    """The documents of one split, in the order of their names.

    ``docs`` gives topics, then the docstrings of the split's modules; ``code`` gives modules.
    """
    code = [(name, text) for name, text in modules().items() if split_of(f"module:{name}") == split]
    if kind == "code":
        return [text for _, text in code]
    prose = [text for name, text in topics().items() if split_of(f"topic:{name}") == split]
    return prose + [text for text in (docstrings(source) for _, source in code) if text]


def split_of(unit: str) -> Split:
    """The split of ``topic:NAME`` or ``module:NAME``; whatever is not held out is training text."""
    return _held_out().get(unit, "train")


@lru_cache(maxsize=1)
def _held_out() -> dict[str, Split]:
    try:
        splits = read_json(SPLITS_FILE)
        return {unit: split for split, units in splits.items() for unit in units}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise QsweepError(f"{SPLITS_FILE}: unreadable ({error}); install qsweep again") from error
