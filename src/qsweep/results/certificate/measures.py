"""From a measure's name to what was measured of it: the loss of a trial against what it is tested by."""

import re

from qsweep.base.errors import ConfigError
from qsweep.base.schema import nearest
from qsweep.results.certificate.over_samples import of_capability, of_task
from qsweep.results.certificate.over_windows import of_windows
from qsweep.results.certificate.sides import WINDOWED, Measure, Sides, names

# Of windows; with more as it is served, and of which text and preset.
_WINDOWED = re.compile(rf"(?:{'|'.join(WINDOWED)})(?:_[^_:]+)?(?::[^:]+){{0,2}}")


def find_measure(name: str, sides: Sides) -> Measure:
    """What was measured by a measure of this name.

    Raises:
        ConfigError: There is no such measure, or it was not measured, of the trial or of what it is
            compared with; the line says what measures it.
    """
    tasks = {task.name: task for task in sides.trial.tasks or ()}
    if name in tasks:
        return of_task(name, tasks[name], sides)
    if _WINDOWED.fullmatch(name):
        return of_windows(name, sides)
    if name in (sides.trial.capabilities or {}):
        return of_capability(name, sides)
    of_text = re.split("[_:]", name)[0] in WINDOWED  # which no task measures
    lacking = "" if tasks or of_text else f"; it ran no tasks: eval.tasks=[{name}] runs one"
    raise ConfigError(
        f"--margin {name}: {sides.trial.name} has no such measure{nearest(name, names(sides.trial))}"
        f"{lacking}"
    )
