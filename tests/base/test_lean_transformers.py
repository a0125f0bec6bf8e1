"""What transformers imports in case somebody wants it stays out, and is there for who does."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from qsweep.launch.local import PRELOAD

CODE = """
import importlib, sys
for name in {names}:
    importlib.import_module(name)
from transformers.utils import is_hqq_available, is_sklearn_available
print([name in sys.modules for name in ("sklearn", "pandas", "scipy.stats", "hqq", "torchao")])
print(is_sklearn_available(), is_hqq_available())
"""
# As in the module, which this process must not import: it would hide the libraries from other tests.
ASKED = {
    "transformers.cache_utils": "is_hqq_available",
    "transformers.quantizers.quantizer_hqq": "is_hqq_available",
    "transformers.quantizers.quantizer_torchao": "is_torchao_available",
    "transformers.generation.candidate_generator": "is_sklearn_available",
}


def test_a_fork_server_imports_neither_scikit_learn_nor_hqq_and_does_not_hide_them():
    command = [sys.executable, "-c", CODE.format(names=list(PRELOAD))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported, available = done.stdout.splitlines()[-2:]
    assert imported == "[False, False, False, False, False]"
    installed = [importlib.util.find_spec(name) is not None for name in ("sklearn", "hqq")]
    assert available == " ".join(map(str, installed))


@pytest.mark.parametrize("module", ASKED)
def test_transformers_still_asks_at_its_modules_head(module):
    # If it does not any more, qsweep.base.lean_transformers is no longer needed.
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    text = Path(spec.origin).read_text(encoding="utf-8")
    assert f"\nif {ASKED[module]}():\n    from " in text
