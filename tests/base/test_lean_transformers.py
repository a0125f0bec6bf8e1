"""What transformers imports in case somebody wants it stays out, and is there for who does."""

import importlib.util
import subprocess
import sys
from pathlib import Path

from qsweep.launch.local import PRELOAD

CODE = """
import importlib, sys
for name in {names}:
    importlib.import_module(name)
from transformers.utils import is_sklearn_available
print([name in sys.modules for name in ("sklearn", "pandas", "scipy.stats")])
print(is_sklearn_available())
"""
ASKED = "is_sklearn_available"
MODULE = "transformers.generation.candidate_generator"


def test_a_fork_server_imports_no_scikit_learn_and_does_not_hide_it():
    command = [sys.executable, "-c", CODE.format(names=list(PRELOAD))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported, available = done.stdout.splitlines()[-2:]
    assert imported == "[False, False, False]"
    assert available == str(importlib.util.find_spec("sklearn") is not None)


def test_transformers_still_asks_at_its_modules_head():
    # If it does not any more, qsweep.base.lean_transformers is no longer needed.
    spec = importlib.util.find_spec(MODULE)
    assert spec is not None and spec.origin is not None
    assert f"\nif {ASKED}():\n    from " in Path(spec.origin).read_text(encoding="utf-8")
