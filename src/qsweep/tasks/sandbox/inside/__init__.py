"""What runs inside the sandbox. Its modules import the standard library and each other, no more.

They are handed as code to an isolated interpreter that sees neither qsweep nor any other package;
:func:`bootstrap` makes modules of them there. It is this interpreter, started anew, so that it need
not compile again what has been compiled here, twice for every program.
"""

import base64
import marshal
import zlib
from pathlib import Path

_PACKAGE = "qsweep.tasks.sandbox.inside"
_MODULES = "wire standin library permissions capture peer confine candidate judge".split()
# Standard input holds the order as JSON: which role, and what it needs.
_START = """
import binascii, json, marshal, sys, types, zlib
for name, code in marshal.loads(zlib.decompress(binascii.a2b_base64({code!r}))):
    module = sys.modules[name] = types.ModuleType(name)
    exec(code, module.__dict__)
order = json.load(sys.stdin)
sys.modules["{package}.confine"].confine(order)
sys.modules["{package}." + order["role"]].main(order)
"""


def bootstrap() -> str:
    """The program text that an isolated interpreter is started with."""
    folder = Path(__file__).parent
    names = [(f"{_PACKAGE}.{name}", (folder / f"{name}.py").read_text()) for name in _MODULES]
    code = marshal.dumps([(name, compile(text, name, "exec")) for name, text in names])
    return _START.format(code=base64.b64encode(zlib.compress(code)).decode(), package=_PACKAGE)
