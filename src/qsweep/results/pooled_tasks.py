"""What several draws answered, as one: mean scores, with intervals that cover samples and draws. Pure.

Draws are asked the same questions, of which only each one's figures are at hand:
:func:`qsweep.evaluate.draws.from_figures`, with samples in place of windows.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from qsweep.base.contents import is_number
from qsweep.evaluate.draws import Estimate, from_figures
from qsweep.results.pooled_figures import mean_of
from qsweep.results.record import BesideReference, Record, Worst
from qsweep.tasks.capabilities import suffers_most

T = TypeVar("T", bound=BesideReference)
_Z = 1.96
_TEST = "paired t over samples and draws"
_FIGURES = ("score", "retention", "difference")


def pooled_tasks(draws: Sequence[Record]) -> dict[str, Any]:
    """The fields of a record that tell of tasks; tasks that some draw did not finish are left out."""
    first = draws[0]
    if first.tasks is None:
        return {}
    by_name = [{task.name: task for task in record.tasks or ()} for record in draws]
    shared = [name for name in by_name[0] if all(name in found for found in by_name)]
    tasks = tuple(_pooled([found[name] for found in by_name]) for name in shared)
    held = [record.capabilities or {} for record in draws]
    kept = {
        name: _pooled([found[name] for found in held])
        for name in held[0]
        if all(name in found for found in held)
    }
    worst = suffers_most({name: vars(found) for name, found in kept.items()})
    return {
        "tasks": tasks,
        "capabilities": kept or None,
        "suffers_most": None if worst is None else Worst(**worst),
    }


def _pooled(found: Sequence[T]) -> T:
    first, changed = found[0], {}
    for name in _FIGURES:
        values = [getattr(one, name, None) for one in found]
        if not all(map(is_number, values)):
            continue
        changed[name] = mean_of(values)
        estimate = _estimate(found, name)
        if estimate is not None:
            changed[f"{name}_low"] = changed[name] - estimate.half()
            changed[f"{name}_high"] = changed[name] + estimate.half()
            if name == "difference" and first.p is not None:
                changed |= {"p": estimate.p, "test": _TEST}
    return replace(first, **changed)


def _estimate(found: Sequence[T], name: str) -> Estimate | None:
    samples = found[0].samples
    ends: list[tuple[Any, Any]] = [
        (getattr(one, f"{name}_low", None), getattr(one, f"{name}_high", None)) for one in found
    ]
    if samples is None or samples < 2 or any(end is None for pair in ends for end in pair):
        return None
    errors = [(high - low) / 2 / _Z for low, high in ends]
    return from_figures([getattr(one, name) for one in found], errors, samples)
