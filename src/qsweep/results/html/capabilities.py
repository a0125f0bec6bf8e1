"""How much of each capability is left, where a sweep ran tasks."""

from collections.abc import Iterator
from typing import Any

from qsweep.base import numbers
from qsweep.results.columns.table import RETENTION
from qsweep.results.flips import HEADINGS, MEANING, flips_lines
from qsweep.results.html.data import Group, front, is_finite
from qsweep.results.html.panel import Panel
from qsweep.results.html.theme import colour_by
from qsweep.results.record import CapabilityResult, Record

# More than these cannot be told apart.
_TRIALS = 6


def retentions(record: Record) -> dict[str, CapabilityResult]:
    """What was kept (1: all that the reference had above chance), by capability."""
    found = record.capabilities or {}
    return {name: kept for name, kept in found.items() if is_finite(RETENTION.get(kept))}


def points(group: Group) -> list[dict[str, Any]]:
    """One entry per quantized trial and capability."""
    rows = {row.key: row for row in group.quantized}
    return [
        {
            "label": rows[record.key].label,
            "series": rows[record.key].series,
            "capability": name,
            "retention": kept.retention,
            "low": kept.retention_low,
            "high": kept.retention_high,
        }
        for record in group.records
        if record.key in rows
        for name, kept in retentions(record).items()
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
    over = f" on average over {number} trials" if number > 1 else ""
    return (
        f"{name}: {numbers.percent(least)} of the reference's score above chance is left{over}, "
        f"against {numbers.percent(next_)} for {second}"
    )


def panel(group: Group) -> Panel | None:
    """What is left of each capability, where tasks were run."""
    found = points(group)
    if not found:
        return None
    labels = list(dict.fromkeys(row.label for row in front(group.quantized)[::-1]))
    labels += [p["label"] for p in found if p["label"] not in labels]
    measured = {p["label"] for p in found}
    chosen = [label for label in dict.fromkeys(labels) if label in measured][:_TRIALS]
    shown = [p for p in found if p["label"] in chosen]
    for p in shown:
        p["low"] = p["low"] if is_finite(p["low"]) else p["retention"]
        p["high"] = p["high"] if is_finite(p["high"]) else p["retention"]
    count = len(measured)
    cut = f" {len(chosen)} of {count} trials." if count > len(chosen) else ""
    colour = colour_by("label", chosen)
    offset = {"yOffset": {"field": "label", "type": "nominal", "scale": {"domain": chosen}}}
    x = {
        "type": "quantitative",
        "title": "left of the reference's score above chance",
        "scale": {"zero": False},
        "axis": {"format": "%"},
    }
    y = {"field": "capability", "type": "nominal", "title": None}
    return Panel(
        id="capabilities",
        title="Capabilities",
        note=f"Retention with its interval; 100 % is the reference.{cut}",
        alt="; ".join(
            f"{p['label']}, {p['capability']}: {numbers.percent(p['retention'])}"
            for p in shown[:24]
        ),
        spec={
            "height": {"step": 16},
            "data": {"values": shown},
            "layer": [
                {
                    "data": {"values": [{"whole": 1.0}]},
                    "mark": {"type": "rule", "strokeDash": [6, 4], "color": "var(--ink)"},
                    "encoding": {"x": {"field": "whole", **x}},
                },
                {
                    "mark": {"type": "rule", "strokeWidth": 2},
                    "encoding": {
                        "x": {"field": "low", **x},
                        "x2": {"field": "high"},
                        "y": y,
                        **offset,
                        "color": colour,
                    },
                },
                {
                    "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                    "encoding": {
                        "x": {"field": "retention", **x},
                        "y": y,
                        **offset,
                        "color": colour,
                        "tooltip": [
                            {"field": "label", "title": "trial"},
                            {"field": "capability", "title": "capability"},
                            {"field": "retention", "format": ".1%", "title": "left"},
                            {"field": "low", "format": ".1%", "title": "at least"},
                            {"field": "high", "format": ".1%", "title": "at most"},
                        ],
                    },
                },
            ],
        },
    )


def changed_answers(group: Group) -> Panel | None:
    """How many answers went from right to wrong and back, where tasks were run."""
    lines = flips_lines((row.label, row.record) for row in group.quantized)
    if not lines:
        return None
    return Panel(
        id="flips",
        title="Answers that changed",
        note=MEANING.replace("*", ""),
        headings=HEADINGS,
        lines=lines,
        wide=True,
        folded=True,
    )


def _means(group: Group) -> Iterator[tuple[float, str, int]]:
    found: dict[str, list[float]] = {}
    for point in points(group):
        found.setdefault(point["capability"], []).append(point["retention"])
    for name, values in found.items():
        yield sum(values) / len(values), name, len(values)
