"""What was really done to the tensors of an artifact: by type, and layer by layer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from qsweep.base import numbers
from qsweep.results.columns.table import PPL_RATIO
from qsweep.results.html.data import Group, front
from qsweep.results.html.panel import Panel, Spec
from qsweep.results.html.theme import colour_by
from qsweep.results.record import Row
from qsweep.results.tensor_summary import TensorSummary
from qsweep.results.write import tensors_file

# Each has a picture of its own; results of more are in their files.
_ARTIFACTS = 8
# Points of one picture: of more, every second, third… layer is drawn.
_POINTS = 1200
_HEADINGS = ("stored as", "tensors", "weights", "bits per weight", "share of bytes", "weight error")


def tensors(group: Group) -> list[Panel]:
    """A panel for each of some artifacts: those with flags, the front, the best of each method."""
    known = [row for row in group.quantized if row.record.tensors is not None]
    ranked = sorted(known, key=PPL_RATIO.get)
    by_method = {row.series: row for row in reversed(ranked)}
    flagged = [row for row in ranked if row.record.tensors and row.record.tensors.flags]
    chosen = {row.key: row for row in (*flagged, *front(known)[::-1], *by_method.values(), *ranked)}
    shown = list(chosen.values())[:_ARTIFACTS]
    left = len(known) - len(shown)
    return [_panel(number, row, left) for number, row in enumerate(shown)]


def _panel(number: int, row: Row, left: int) -> Panel:
    found = row.record.tensors
    assert found is not None
    points = _points(found)
    words = [*(f"Flag: {line}." for line in found.flags), *(f"{line}." for line in found.notes)]
    if points:
        words.append(
            "Weight error: ‖Ŵ - W‖ / ‖W‖ against the base in float32; what is stored as it was has "
            "none."
        )
    if number == 0 and left > 0:
        words.append(f"Of {left} more artifacts the tables are in the sweep's folder tensors/.")
    has_file = found.file is not None and Path(found.file).is_file()
    return Panel(
        id=f"tensors-{number}",
        title=f"Tensors of {row.label}",
        note=" ".join(words),
        alt="; ".join(
            f"{one.name} ({one.type}): {numbers.percent(one.relative_error)}"
            for one in found.worst[:3]
        ),
        spec=_spec(points) if points else None,
        headings=_HEADINGS,
        lines=[
            [
                one.type,
                str(one.tensors),
                f"{one.weights:,}",
                f"{one.bpw:.2f}",
                numbers.percent(one.share),
                "" if one.relative_error is None else numbers.percent(one.relative_error),
            ]
            for one in found.types
        ],
        link=("every tensor, as CSV", quote(tensors_file(row.record.key))) if has_file else None,
    )


def _points(found: TensorSummary) -> list[dict[str, Any]]:
    most = sum(len(kind.layers) for kind in found.kinds)
    step = max(1, -(-most // _POINTS))
    return [
        {"kind": kind.kind, "layer": layer, "type": type_, "bits": bits, "error": error}
        for kind in found.kinds
        for layer, type_, bits, error in zip(
            kind.layers, kind.types, kind.bpw, kind.errors, strict=True
        )
        if layer % step == 0
    ]


def _spec(points: Sequence[dict[str, Any]]) -> Spec:
    names = sorted({point["kind"] for point in points})
    x = {
        "field": "layer",
        "type": "quantitative",
        "scale": {"nice": False, "zero": False, "padding": 8},
    }
    colour = {"color": colour_by("kind", names)}
    tooltip = [
        {"field": "kind", "title": "tensor"},
        {"field": "layer", "title": "layer"},
        {"field": "type", "title": "stored as"},
        {"field": "bits", "format": ".2f", "title": "bits per weight"},
        {"field": "error", "format": ".2~%", "title": "weight error"},
    ]
    error: Spec = {
        "height": 200,
        "transform": [{"filter": "datum.error > 0"}],
        "mark": {"type": "line", "point": {"size": 22, "filled": True}, "strokeWidth": 1.5},
        "encoding": {
            "x": {**x, "axis": {"labels": False, "ticks": False, "grid": False}, "title": None},
            "y": {
                "field": "error",
                "type": "quantitative",
                "scale": {"type": "log", "nice": True},
                "axis": {"format": "~%", "tickCount": 5},
                "title": "weight error, log scale",
            },
            **colour,
            "tooltip": tooltip,
        },
    }
    bits: Spec = {
        "height": 90,
        "mark": {"type": "point", "size": 26, "filled": True},
        "encoding": {
            "x": {
                **x,
                "axis": {"tickMinStep": 1, "format": "d", "grid": False},
                "title": "decoder layer",
            },
            "y": {
                "field": "bits",
                "type": "quantitative",
                "scale": {"zero": False, "padding": 6},
                "axis": {"format": "~g", "tickCount": 4},
                "title": "bits per weight",
            },
            **colour,
            "tooltip": tooltip,
        },
    }
    drawn = any(point["error"] for point in points)
    return {"data": {"values": list(points)}, "spacing": 12, "vconcat": [error] * drawn + [bits]}
