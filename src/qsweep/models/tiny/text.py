"""Text of the running Python installation: its documentation (prose) and its standard library (code).

The units are *topics* (entries of ``pydoc_data.topics``) and *modules* (files of the standard
library). A unit belongs to exactly one split, and the docstrings of a module follow the module, so
that no sentence of the test split was ever seen in training or in calibration. Which units are held
out was drawn once by a hash of their names and is frozen in ``splits.json``: another Python version,
whose modules have other sizes, would otherwise fill the quotas differently and hand text that the
pocket model was trained on to the test split.
"""

import ast
import hashlib
import sysconfig
from collections.abc import Iterable
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
# What may be held out: no stubs, no unit that would be most of its split by itself, and no module that
# Python 3.12 or 3.13 removed, since the split should be the same on every supported version.
_MIN_BYTES = 2000
_MAX_SHARE = 0.25
_REMOVED = set(
    "aifc asynchat asyncore audioop cgi cgitb chunk crypt imghdr imp mailcap msilib nntplib pipes "
    "smtpd sndhdr sre_compile sre_constants sre_parse sunau telnetlib uu xdrlib nturl2path".split()
)


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


def draw_splits(quotas: dict[Split, dict[str, int]]) -> dict[Split, list[str]]:
    """Hold units out until each split has its bytes of ``topic`` and of ``module``.

    Units come in the order of the SHA-256 of their names; one that would overfill the quota stays
    in training, and so does one that is unfit to be held out. Used once, by
    ``tools/train_pocket.py``.
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
