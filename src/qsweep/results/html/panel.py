"""What a panel is, and the pieces that panels share: ratio axes, error bars, hover."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qsweep.base import numbers
from qsweep.results.columns.column import TABLE, Column
from qsweep.results.columns.table import PPL_RATIO, PPL_RATIO_HIGH, PPL_RATIO_LOW
from qsweep.results.html.data import is_finite
from qsweep.results.html.theme import BANDS, series_scales
from qsweep.results.record import Row

Spec = dict[str, Any]

# Beyond this many points, error bars hide what they should explain: only the front keeps its own.
MANY = 150
# A ratio beyond this is drawn at the edge, marked, wherever something below it would be squeezed.
EDGE = 1.35


@dataclass(frozen=True)
class Panel:
    """A picture (a Vega-Lite specification), a small table, or both, with words.

    ``link`` is a text and where it leads to, a place beside the page.
    ``alt`` says what a picture shows to those who cannot see it; ``note`` is read by everybody.
    One that is ``folded`` shows its title alone until it is opened, and is not drawn before.
    """

    id: str
    title: str
    note: str
    alt: str = ""
    spec: Spec | None = None
    headings: Sequence[str] = ()
    lines: Sequence[Sequence[str]] = field(default_factory=tuple)
    wide: bool = False
    folded: bool = False
    link: tuple[str, str] | None = None


def shared_fields() -> tuple[str, ...]:
    """What all charts say alike of a trial."""
    return ("label", "series", "ratio", "low", "high", *_hovers())


def point(row: Row) -> dict[str, Any]:
    """A row as a chart needs it, with the texts of its hover: those of the table's cells."""
    return {
        "id": row.key,
        "label": row.label,
        "series": row.series,
        "ratio": PPL_RATIO.get(row),
        "low": PPL_RATIO_LOW.get(row),
        "high": PPL_RATIO_HIGH.get(row),
        **{name: column.cell(row) for name, column in _hovers().items()},
    }


def tooltip() -> list[Spec]:
    """The hover of :func:`point`."""
    shown = {"label": "trial", **{name: c.hover[0] for name, c in _hovers().items() if c.hover}}
    return [{"field": name, "type": "nominal", "title": title} for name, title in shown.items()]


def _hovers() -> dict[str, Column]:
    found = sorted((column.hover[1], n) for n, column in enumerate(TABLE) if column.hover)
    return {f"h_{TABLE[n].name}": TABLE[n] for _, n in found}


def series_encoding(names: Iterable[str], title: str = "method") -> Spec:
    """Colour and shape of a series, in one legend."""
    colours, shapes = series_scales(sorted(set(names)))
    legend = {"title": title}
    return {
        "color": {"field": "series", "type": "nominal", "scale": colours, "legend": legend},
        "shape": {"field": "series", "type": "nominal", "scale": shapes, "legend": legend},
    }


def ratio_domain(points: Sequence[dict[str, Any]], *, clip: bool) -> tuple[float, float]:
    """From where to where a ratio axis goes: 1.00 is always on it."""
    ratios = [p["ratio"] for p in points if is_finite(p["ratio"]) and p["ratio"] > 0]
    lows = [p["low"] for p in points if is_finite(p["low"]) and p["low"] > 0]
    highs = [p["high"] for p in points if is_finite(p["high"])]
    top = max([1.0, *ratios, *highs])
    if clip and top > EDGE and any(ratio < EDGE for ratio in ratios):
        top = EDGE
    bottom = min([1.0, *ratios, *lows])
    if clip:
        bottom = max(bottom, 0.8) if any(ratio > 0.8 for ratio in ratios) else bottom
    margin = max(0.03 * math.log(top / bottom), 0.004)
    return bottom * math.exp(-margin), max(top * math.exp(margin), 1.03)


def ratio_axis(domain: tuple[float, float], *, up: bool = True) -> Spec:
    """The y axis of perplexity ratios: logarithmic, with better at the top unless ``up`` is false."""
    return {
        "type": "quantitative",
        "scale": {
            "type": "log", "domain": list(domain), "reverse": up, "nice": False, "clamp": True,
        },
        "axis": {"values": ticks(domain), "format": "~g", "grid": True},
        "title": "perplexity ratio, log scale" + (" (up is better)" if up else ""),
    }  # fmt: skip


def ratio_chart(
    points: Sequence[dict[str, Any]], domain: tuple[float, float], layers: Sequence[Spec]
) -> Spec:
    """Layers over points whose ratio is the vertical axis; what lies beyond stands at its edge."""
    return {
        "height": 300,
        "data": {"values": points},
        "transform": clamped(domain),
        "encoding": {"y": {"field": "y", **ratio_axis(domain)}},
        "layer": layers,
    }


def ticks(domain: tuple[float, float]) -> list[float]:
    """Round ratios for an axis; a logarithmic scale's own would be 1 and 10."""
    low, high = domain
    steps = [0.5, 0.7, 0.8, 0.9, 1, 1.02, 1.04, 1.06, 1.12, 1.2, 1.3, 1.4, 1.5, 2, 3, 5, 10]
    steps += [m * 10**e for e in range(1, 9) for m in (2, 5, 10)]
    if high / low > 2:
        steps = [s for s in steps if s not in (1.02, 1.04, 1.06, 1.12, 1.3, 1.4)]
    if high < 1.03:
        steps += [0.98, 0.985, 0.99, 0.995, 1.005, 1.01, 1.015, 1.025]
    return sorted({s for s in steps if low <= s <= high})


def bands(domain: tuple[float, float], *, right: bool = False) -> list[Spec]:
    """The verdicts' bands behind the points, with their words at the left or the right edge."""
    low, high = domain
    values: list[dict[str, Any]] = []
    start = low
    for word, bound in BANDS:
        end = high if bound is None else min(bound, high)
        if end > start:
            middle = math.sqrt(start * end)
            paint = f"var(--band-{word})"
            values.append(
                {"word": word, "start": start, "end": end, "middle": middle, "paint": paint}
            )
            start = end
    area = {
        "data": {"values": values},
        "mark": {"type": "rect", "tooltip": None},
        "encoding": {
            "y": {"field": "start", "type": "quantitative"},
            "y2": {"field": "end"},
            "color": {"field": "paint", "type": "nominal", "scale": None},
        },
    }
    # A band too thin for its word keeps its colour only.
    span = math.log(high / low)
    roomy = [v for v in values if math.log(v["end"] / v["start"]) > 0.05 * span]
    text = {
        "data": {"values": roomy},
        "mark": {"type": "text", "align": "right" if right else "left", "baseline": "middle",
                 "dx": -5 if right else 5, "fontSize": 11, "color": "var(--muted)",
                 "tooltip": None},
        "encoding": {
            "y": {"field": "middle", "type": "quantitative"},
            "x": {"value": "width" if right else 0},
            "text": {"field": "word", "type": "nominal"},
        },
    }  # fmt: skip
    return [area, text]


def broken(points: Sequence[dict[str, Any]], domain: tuple[float, float]) -> list[str]:
    """The sentence, if one is needed, that says how many points lie beyond the axis."""
    beyond = [p["ratio"] for p in points if p["ratio"] > domain[1]]
    if not beyond:
        return []
    trials = "trial lies" if len(beyond) == 1 else "trials lie"
    return [
        f"The axis is broken: {len(beyond)} {trials} below it, at ▼ (ratio up to "
        f"{numbers.ratio(max(beyond))})."
    ]


def beyond_marks(x: Spec, **more: Any) -> Spec:
    """A layer that marks the points at the edge of a broken axis."""
    return {
        "transform": [{"filter": "datum.beyond"}],
        "mark": {"type": "text", "text": "▼", "dy": -12, "fontSize": 10, "clip": False},
        "encoding": {"x": x, "y": {"field": "y", "type": "quantitative"}, **more},
    }


def decades(values: Iterable[float]) -> list[float]:
    """Powers of ten around the positive ones, for a logarithmic axis without a crowd of lines."""
    known = [math.log10(v) for v in values if v > 0 and math.isfinite(v)]
    if not known:
        return []
    return [10.0**e for e in range(math.floor(min(known)), math.ceil(max(known)) + 1)]


def clamped(domain: tuple[float, float]) -> list[Spec]:
    """What is drawn of a ratio and its interval: ``y``, ``y_low``, ``y_high`` inside the domain."""
    low, high = domain

    def end(name: str) -> str:
        return f"clamp(isValid(datum.{name}) ? datum.{name} : datum.ratio, {low!r}, {high!r})"

    return [
        {"calculate": f"clamp(datum.ratio, {low!r}, {high!r})", "as": "y"},
        {"calculate": end("low"), "as": "y_low"},
        {"calculate": end("high"), "as": "y_high"},
        {"calculate": f"datum.ratio > {high!r}", "as": "beyond"},
    ]


def error_bars(x: Spec, **more: Any) -> Spec:
    """A layer with the 95 % intervals."""
    return {
        "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.8},
        "encoding": {
            "x": x,
            "y": {"field": "y_low", "type": "quantitative"},
            "y2": {"field": "y_high"},
            **more,
        },
    }


def tidy(value: Any) -> Any:
    """Values as JSON can hold and as a picture needs them: six digits, no infinities."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: tidy(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [tidy(item) for item in value]
    return value
