"""Exceptions and plain classes of Python's library, which cross by their names."""

import contextlib
import importlib
import sys
from typing import Any

from qsweep.tasks.sandbox.inside.standin import StandInClass
from qsweep.tasks.sandbox.inside.wire import PLAIN_CLASSES, is_late


def make_error(kind: Any, args: Any, cause: Any) -> BaseException:
    """An exception of this class, which is Python's own or stands for one of the other side."""
    if not (isinstance(kind, type) and issubclass(kind, BaseException) and type(args) is tuple):
        raise ValueError("no such object")
    base: Any = next(base for base in kind.__mro__ if not isinstance(base, StandInClass))
    found: BaseException = base.__new__(kind, *args)
    base.__init__(found, *args)
    if isinstance(cause, BaseException):
        found.__cause__ = cause
    return found


def arguments(error: BaseException) -> tuple[Any, ...]:
    """What an exception is made again from: an OSError's file name is not among its ``args``."""
    base: Any = next(base for base in type(error).__mro__ if is_pythons_exception(base))
    with contextlib.suppress(Exception):
        args = base.__reduce__(error)[1]
        if type(args) is tuple:
            return args
    return error.args


def is_pythons_exception(kind: type) -> bool:
    """Whether a class is an exception of Python's own library, found there by its name."""
    if not issubclass(kind, BaseException):
        return False
    with contextlib.suppress(Exception):
        return library_class(kind.__module__, kind.__name__) is kind
    return False


def library_class(module: Any, name: Any) -> Any:
    """A class of the standard library whose instances are no more than their data.

    Raises:
        ValueError: Every other name: the side that asks must not be handed what runs its texts.
    """
    if str(module).partition(".")[0] not in sys.stdlib_module_names:
        raise ValueError("no such object")
    found = getattr(importlib.import_module(module), name)
    if isinstance(found, type) and (
        found in PLAIN_CLASSES or is_late(found) or issubclass(found, BaseException)
    ):
        return found
    raise ValueError("no such object")
