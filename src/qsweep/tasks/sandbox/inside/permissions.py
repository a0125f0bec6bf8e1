"""What a program may do with the objects of the test that judges it."""

import types
from typing import Any

from qsweep.tasks.sandbox.inside.standin import CONTENT_READERS, SPECIAL

# What may be asked of every object of the test.
_EVERYWHERE = ("__iter__", "__next__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")
_REFUSED = "an object of the test is used for more than calling it"


def check_permitted(operation: str, target: Any, args: list[Any]) -> None:
    """Refuse what the program may not do with an object of the test.

    From a function's ``__globals__`` or a class's ``__init__`` a way leads to everything else: names
    with two underscores are closed, and so is what the test has not defined itself.
    """
    kind = target if isinstance(target, type) else type(target)
    own = kind.__module__ == "__main__"
    name = args[0] if args and type(args[0]) is str else ""
    defined = own and not name.startswith("__") and _defines(target, kind, name)
    allowed = {
        "call": callable(target) and (own or not isinstance(target, type)),
        "do": name in _EVERYWHERE or (name in SPECIAL and own and _defines(target, kind, name)),
        "method": isinstance(target, types.GeneratorType) and name in ("send", "throw", "close"),
        "getattr": defined,
        "await": own or isinstance(target, types.CoroutineType),
    }
    # Its data are the program's to change, as a list's are; what its methods do is not.
    change = own and target is not kind and not name.startswith("__")
    change = change and not callable(getattr(kind, name, None))
    if not allowed.get(operation, operation in ("setattr", "delattr") and change):
        raise TypeError(_REFUSED)


def _defines(target: Any, kind: type, name: str) -> bool:
    """Whether a name is the test's own: not of what its class derives from in a library."""
    if name in getattr(target, "__dict__", ()):
        return True
    owner = next((base for base in kind.__mro__ if name in vars(base)), None)
    return owner is None or owner in (*CONTENT_READERS, object) or owner.__module__ == "__main__"
