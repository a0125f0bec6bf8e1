"""How much of each capability is left, where a sweep ran tasks."""

from collections.abc import Iterator
from typing import Any

from qsweep import cells
from qsweep.report.data import Group, is_finite
from qsweep.results import Record


def retentions(record: Record) -> dict[str, dict[str, Any]]:
    """By capability: ``retention`` (1: all that the reference had above chance) and its ends."""
    found = record.get("capabilities")
    if not isinstance(found, dict):
        return {}
    return {
        str(name): values
        for name, values in found.items()
        if isinstance(values, dict) and is_finite(values.get("retention"))
    }


def points(group: Group) -> list[dict[str, Any]]:
    """One entry per quantized trial and capability."""
    labels = {str(row["key"]): row for row in group.quantized}
    return [
        {
            "label": labels[record["key"]]["label"],
            "series": labels[record["key"]]["series"],
            "capability": name,
            "retention": values["retention"],
            "low": values.get("retention_low"),
            "high": values.get("retention_high"),
        }
        for record in group.records
        if record["key"] in labels
        for name, values in retentions(record).items()
    ]


def names(group: Group) -> list[str]:
    """The capabilities that were measured."""
    return sorted({name for record in group.records for name in retentions(record)})


def worst(group: Group) -> str | None:
    """The capability that loses most on average over the quantized trials, in words."""
    means = sorted(_means(group))
    if len(means) < 2:
        return None
    (least, name, number), (next_, second, _) = means[0], means[1]
    return (
        f"{name}: {cells.percent(least)} of the reference's score above chance is left on average "
        f"over {number} trials, against {cells.percent(next_)} for {second}"
    )


def _means(group: Group) -> Iterator[tuple[float, str, int]]:
    found: dict[str, list[float]] = {}
    for point in points(group):
        found.setdefault(point["capability"], []).append(point["retention"])
    for name, values in found.items():
        yield sum(values) / len(values), name, len(values)
