"""What several draws answered, as one: mean scores, with intervals that cover samples and draws. Pure.

Draws are asked the same questions, of which only each one's figures are at hand: intervals are made of
their own (:func:`qsweep.evaluate.draws.from_intervals`). What not all draws have, none of them says.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import chain
from typing import Any, TypeVar

from qsweep.base.contents import is_number
from qsweep.evaluate.draws import from_figures, from_intervals
from qsweep.results.pooled_figures import mean_of
from qsweep.results.pooled_long import pooled_long
from qsweep.results.record import BesideReference, Record, TaskScore, Worst
from qsweep.tasks.capabilities import suffers_most

T = TypeVar("T", bound=BesideReference)
_Z = 1.96
_TEST = "paired t over samples and draws"
# What has an interval, and what it cannot leave.
_ESTIMATES = {
    "score": (0.0, 1.0),
    "retention": (-math.inf, math.inf),
    "difference": (-1.0, 1.0),
    "flips": (0.0, 1.0),
    "changed": (0.0, 1.0),
}


def pooled_tasks(draws: Sequence[Record]) -> dict[str, Any]:
    """The fields of a record that tell of tasks; a task that some draw was not asked is left out."""
    first = draws[0]
    if first.tasks is None:
        return {}
    by_name = [{task.name: task for task in record.tasks or ()} for record in draws]
    tasks = tuple(_pooled(found) for found in _shared(by_name).values())
    held = _shared([record.capabilities or {} for record in draws])
    kept = {name: _pooled(found) for name, found in held.items()}
    worst = suffers_most({name: vars(found) for name, found in kept.items()})
    return {
        "tasks": tasks,
        "capabilities": kept or None,
        "suffers_most": None if worst is None else Worst(**worst),
        "long": pooled_long([record.long for record in draws]),
    }


def _shared(found: Sequence[Mapping[str, T]]) -> dict[str, list[T]]:
    return {n: [one[n] for one in found] for n in found[0] if all(n in one for one in found)}


def _pooled(found: Sequence[T]) -> T:
    # Where some draw could not finish, its reason is what is to be said.
    first = next((one for one in found if getattr(one, "reason", None)), found[0])
    own = {field.name for field in fields(first)}
    changed: dict[str, Any] = {"lost": _mean(found, "lost"), "gained": _mean(found, "gained")}
    for name, within in _ESTIMATES.items():
        if name in own:
            changed[name] = _mean(found, name)
            ends = _ends(found, name, within)
            changed[f"{name}_low"], changed[f"{name}_high"] = ends
    if first.p is not None:
        changed |= {"p": _p(found), "test": _TEST}
    return replace(first, **changed, **_further(found))


def _further(found: Sequence[BesideReference]) -> dict[str, Any]:
    tasks = [one for one in found if isinstance(one, TaskScore)]
    if not tasks:
        needed = _mean(found, "samples_needed")
        return {"samples_needed": None if needed is None else math.ceil(needed)}
    facts = [task.facts or {} for task in tasks]
    means = {name: mean_of([one.get(name) for one in facts]) for name in facts[0]}
    return {
        "facts": {name: value for name, value in means.items() if value is not None} or None,
        "long": pooled_long([task.long for task in tasks]),
        "seconds": _mean(found, "seconds"),
        "keys": tuple(dict.fromkeys(chain(*(task.keys for task in tasks)))),
    }


def _mean(found: Sequence[BesideReference], name: str) -> Any:
    values = [getattr(one, name) for one in found]
    return mean_of(values) if all(map(is_number, values)) else None


def _ends(
    found: Sequence[BesideReference], name: str, within: tuple[float, float]
) -> tuple[float | None, float | None]:
    values = [getattr(one, name) for one in found]
    ends: list[Any] = [(getattr(one, f"{name}_low"), getattr(one, f"{name}_high")) for one in found]
    if not all(map(is_number, [*values, *chain(*ends)])):
        return None, None
    return from_intervals(values, ends, within)


def _p(found: Sequence[BesideReference]) -> float | None:
    values = [one.difference for one in found]
    ends: list[Any] = [(one.difference_low, one.difference_high) for one in found]
    if not all(map(is_number, [*values, *chain(*ends)])):
        return None
    errors = [(high - low) / 2 / _Z for low, high in ends]
    samples = min((one.samples or 0 for one in found), default=0)
    return from_figures([float(v) for v in values if v is not None], errors, samples).p
