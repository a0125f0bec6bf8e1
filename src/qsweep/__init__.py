"""qsweep: what quantization costs a language model, measured over whole grids.

>>> import qsweep
>>> qsweep.run                                                             # doctest: +ELLIPSIS
<function run at ...>
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.version import __version__

if TYPE_CHECKING:
    from qsweep.api.load import load
    from qsweep.api.measure import measure
    from qsweep.api.run import run
    from qsweep.base.errors import QsweepError
    from qsweep.launch.protocol import Launcher
    from qsweep.quantizers.protocol import Quantizer
    from qsweep.sweep.state import Sweep
    from qsweep.tasks.task import Task
    from qsweep.tracking.protocol import Tracker

__all__ = [
    "Launcher",
    "QsweepError",
    "Quantizer",
    "Sweep",
    "Task",
    "Tracker",
    "__version__",
    "load",
    "measure",
    "run",
]

# ``python -m qsweep.report``: commands are found by their own names, too.
__path__.append(str(Path(__file__).parent / "commands"))

# Imported when they are first used: importing qsweep costs nothing.
_PLACES = {
    "Launcher": "launch.protocol",
    "QsweepError": "base.errors",
    "Quantizer": "quantizers.protocol",
    "Sweep": "sweep.state",
    "Task": "tasks.task",
    "Tracker": "tracking.protocol",
    "load": "api.load",
    "measure": "api.measure",
    "run": "api.run",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'qsweep' has no attribute {name!r}")
    return getattr(importlib.import_module(f"qsweep.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
