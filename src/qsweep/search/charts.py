"""The pictures of a search, as Vega-Lite specifications: its front, and how it went."""

from collections.abc import Sequence
from typing import Any

from qsweep.evaluate.metrics import quality
from qsweep.evaluate.verdicts import BOUNDS
from qsweep.results.columns.table import PPL_RATIO_HIGH, PPL_RATIO_LOW, QUALITY, SIZE_GB
from qsweep.results.html.panel import Spec
from qsweep.results.html.theme import colour_by
from qsweep.search.answer import Answer, row_of
from qsweep.search.objectives import Objective
from qsweep.search.study import StudyTrial


def front_spec(done: Sequence[StudyTrial], answer: Answer) -> Spec:
    """Size against quality: every full trial with its interval, the front, and the answers."""
    points = [point for entry in done if (point := _point(entry)) is not None]
    line = [point for entry in answer.front if (point := _point(entry)) is not None]
    leads = "best per GB" if answer.decision.open is None else "leads per GB"
    named = [(answer.best_per_gb, leads), (answer.knee, "knee")]
    answers = [
        {**point, "answer": f"{word}: {entry.name}"}
        for entry, word in named
        if entry is not None and (point := _point(entry)) is not None
    ]
    bottom = min(-0.15, min((p["quality"] for p in line), default=0.0) - 0.1)
    bounds = [{"quality": quality(bound), "word": f"{word} above"} for bound, word in BOUNDS]
    kinds = sorted({p["kind"] for p in points})
    x = {"field": "size", "type": "quantitative", "title": "size, GB", "scale": {"zero": False}}
    y = {
        "field": "quality",
        "type": "quantitative",
        "title": "quality (1: reference, 0: problematic)",
        "scale": {"domain": [bottom, 1.08], "nice": False, "clamp": True},
    }
    colour = colour_by("kind", kinds)
    place = {"x": x, "y": y}
    return {
        "height": 400,
        "data": {"values": points},
        "layer": [
            {
                "data": {"values": bounds},
                "mark": {"type": "rule", "color": "var(--grid)"},
                "encoding": {"y": y},
            },
            {
                "data": {"values": bounds},
                "mark": {"type": "text", "align": "left", "baseline": "bottom", "dx": 4,
                         "color": "var(--muted)"},
                "encoding": {"y": y, "x": {"value": 0}, "text": {"field": "word"}},
            },
            {
                "data": {"values": line},
                "mark": {"type": "line", "color": "var(--muted)"},
                "encoding": {**place, "order": {"field": "size"}},
            },
            {
                "mark": {"type": "rule"},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"},
                             "color": colour},
            },
            {"mark": {"type": "point", "filled": True}, "encoding": {**place, "color": colour}},
            {
                "data": {"values": answers},
                "mark": {"type": "point", "size": 220, "color": "var(--ink)"},
                "encoding": {
                    **place,
                    "shape": {"field": "answer", "type": "nominal", "title": None,
                              "legend": {"orient": "bottom", "direction": "vertical",
                                         "labelLimit": 700}},
                },
            },
        ],
    }  # fmt: skip


def history_spec(entries: Sequence[StudyTrial], objectives: Sequence[Objective]) -> Spec:
    """Every objective by the number of the trial, with what was dropped and the best so far."""
    return {
        "vconcat": [
            _history(entries, place, objective) for place, objective in enumerate(objectives)
        ]
    }


def _history(entries: Sequence[StudyTrial], place: int, objective: Objective) -> Spec:
    points: list[dict[str, Any]] = []
    best: list[dict[str, Any]] = []
    for entry in entries:
        if entry.state == "complete" and entry.values is not None:
            value = entry.values[place]
            points.append({"trial": entry.number, "value": value, "kind": "full"})
            if best and not objective.better(value, best[-1]["value"]):
                value = best[-1]["value"]
            best.append({"trial": entry.number, "value": value})
        span = entry.estimate.spans.get(objective.metric) if entry.estimate else None
        if entry.state == "dropped" and span:
            points.append({"trial": entry.number, "value": span[1], "kind": "dropped"})
    y: Spec = {
        "field": "value",
        "type": "quantitative",
        "title": str(objective),
        "scale": {"zero": False, "clamp": True},
    }
    if best:
        values = [p["value"] for p in points if p["kind"] == "full"]
        margin = 0.15 * (max(values) - min(values) or abs(values[0]) or 1.0)
        y["scale"] |= {"domain": [min(values) - margin, max(values) + margin], "nice": False}
    x = {"field": "trial", "type": "quantitative", "title": "trial"}
    kind = {
        "field": "kind",
        "type": "nominal",
        "title": None,
        "scale": {"domain": ["full", "dropped"], "range": ["var(--blue)", "var(--muted)"]},
    }
    return {
        "width": 720,
        "height": 200,
        "layer": [
            {
                "data": {"values": points},
                "mark": {"type": "point", "filled": True},
                "encoding": {"x": x, "y": y, "color": kind},
            },
            {
                "data": {"values": best},
                "mark": {"type": "line", "interpolate": "step-after", "color": "var(--ink)"},
                "encoding": {"x": x, "y": y},
            },
        ],
    }


def _point(entry: StudyTrial) -> dict[str, Any] | None:
    row = row_of(entry)
    value = QUALITY.get(row)
    if value is None:
        return None
    low, high = (
        quality(float(ratio)) if (ratio := end.get(row)) else value
        for end in (PPL_RATIO_HIGH, PPL_RATIO_LOW)
    )
    # A name is model, method and setting.
    kind = entry.name.split()[1] if len(entry.name.split()) > 1 else entry.name
    return {
        "size": SIZE_GB.get(row), "quality": value, "low": min(low, value),
        "high": max(high, value), "kind": kind,
    }  # fmt: skip
