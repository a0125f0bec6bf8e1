"""Which families of models GPTQModel takes apart into layers: its own tables say so.

They are read as text: importing the library takes seconds, and planning asks for every model of a
sweep.
"""

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

# The file and the name of GPTQModel's definitions, by model type.
_DEFINITIONS = ("models/auto.py", "MODEL_MAP")

# What GPTQModel 7.6 does, under transformers 5, with mixtures that it has a definition of. Each stays
# for as long as tests/quantizers/test_gptqmodel.py shows it.
FAILING = {
    **dict.fromkeys(("dbrx", "ernie4_5_moe", "glm4_moe", "nemotron_h"), "ends with an error"),
    **dict.fromkeys(
        ("granitemoe", "lfm2_moe", "minimax_m2"), "writes one expert of each layer alone"
    ),
}

# What it wants for some beside what it is installed with.
NEEDED = {"jamba": "mamba-ssm"}


@cache
def defined_types() -> frozenset[str]:
    """The model types that the installed GPTQModel has a definition of; none where it is missing."""
    file, name = _DEFINITIONS
    spec = importlib.util.find_spec("gptqmodel")
    folder = next(iter(spec.submodule_search_locations or ()), None) if spec else None
    if folder is None:
        return frozenset()
    try:
        tree = ast.parse(Path(folder, file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return frozenset()
    assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    return frozenset(key for node in assigned for key in _keys(node, name))


def _keys(node: ast.Assign, name: str) -> Iterator[str]:
    # Of the table as a whole, or the one that is put into it where transformers is new enough.
    target = node.targets[0]
    if isinstance(target, ast.Subscript) and getattr(target.value, "id", None) == name:
        found: list[ast.expr | None] = [target.slice]
    elif getattr(target, "id", None) == name and isinstance(node.value, ast.Dict):
        found = list(node.value.keys)
    else:
        return
    yield from (str(key.value).lower() for key in found if isinstance(key, ast.Constant))
