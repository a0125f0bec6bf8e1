"""What other installed packages offer: entry points, found by name and imported when chosen.

=====================  =====================================================  ==================
group                  the object that an entry point names                   chosen with
=====================  =====================================================  ==================
``qsweep.quantizers``  a quantizer's class, a frozen dataclass                ``quant=NAME``
``qsweep.corpora``     a function that gives a text's documents, or a         ``corpus=NAME``,
                       mapping of a corpus's options                          ``calibration=NAME``
``qsweep.tasks``       a task's class, or a function, of ``TaskOptions``      ``eval.tasks=[NAME]``
``qsweep.launchers``   a launcher's class, a dataclass                        ``launch=NAME``
``qsweep.trackers``    a tracker's class, a dataclass                         ``tracking=NAME``
``qsweep.conf``        a package that holds YAML files, in folders named as   as in its files
                       the configuration groups
=====================  =====================================================  ==================
"""

import functools
import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from qsweep.base.errors import ConfigError


@functools.cache
def offered(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name; nothing is imported."""
    return {point.name: point for point in entry_points(group=group)}


def load_plugin(group: str, name: str) -> Any:
    """What an entry point names.

    Raises:
        ConfigError: it cannot be imported; the line names the package.
    """
    point = offered(group)[name]
    try:
        return point.load()
    except Exception as error:  # of somebody else's module
        package = point.dist.name if point.dist else point.module
        raise ConfigError(
            f"{name}: {point.value!r} of the package {package} cannot be imported "
            f"({type(error).__name__}: {error})"
        ) from error


def locate_object(target: str, where: str) -> Any:
    """What ``package.module:name`` names. Raises ConfigError where that is nothing."""
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where}={target}: cannot be imported ({error})") from error
