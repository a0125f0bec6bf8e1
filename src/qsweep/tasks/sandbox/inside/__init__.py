"""What runs inside the sandbox. Its modules import the standard library and each other, no more.

They are handed as text to an isolated interpreter that sees neither qsweep nor any other package;
:data:`BOOTSTRAP` makes modules of them there.
"""

from pathlib import Path

_PACKAGE = "qsweep.tasks.sandbox.inside"
_MODULES = ("wire", "peer", "confine", "candidate", "judge")
# Standard input holds the order as JSON: which role, and what it needs.
_START = """
import json, sys, types
for name, text in {sources!r}:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
order = json.load(sys.stdin)
sys.modules["{package}.confine"].confine(order)
sys.modules["{package}." + order["role"]].main(order)
"""


def bootstrap() -> str:
    """The program text that an isolated interpreter is started with."""
    folder = Path(__file__).parent
    sources = [(f"{_PACKAGE}.{name}", (folder / f"{name}.py").read_text()) for name in _MODULES]
    return _START.format(sources=sources, package=_PACKAGE)
