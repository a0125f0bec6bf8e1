"""The first picture: quality against size, with the Pareto front."""

from typing import Any

from qsweep.base import numbers
from qsweep.results.columns.table import PPL_RATIO, SIZE_GB, VERDICT
from qsweep.results.html.data import Group, front, is_finite
from qsweep.results.html.panel import (
    MANY,
    Panel,
    Spec,
    bands,
    beyond_marks,
    broken,
    clamped,
    error_bars,
    point,
    ratio_axis,
    ratio_domain,
    series_encoding,
    tooltip,
)
from qsweep.results.record import Row

# Sizes that differ by more than this need a logarithmic axis.
_LOG_SIZES = 20
# Sizes of quantized models within this share of the largest would be one column of points.
_NARROW = 0.15
# Those that differ by less than this are one column however near one looks.
_ALIKE = 0.01
# How near two numbers of front trials may be, as shares of the axes.
_NEAR = (0.05, 0.07)


def quality_against_size(group: Group) -> Panel | None:
    """Quality against size, error bars, verdict bands, the reference as a line, the front."""
    shown = [
        row
        for row in group.primary_rows
        if is_finite(SIZE_GB.get(row)) and is_finite(PPL_RATIO.get(row)) and not row.no_verdict
    ]
    quantized = [row for row in shown if not row.record.reference]
    if not quantized:
        return None
    best = front(quantized)
    unit, per_gb = size_unit(max(map(SIZE_GB.get, shown)))
    places = {row.key: number for number, row in enumerate(best, 1)}
    points: list[dict[str, Any]] = [
        {
            **point(row),
            "size": SIZE_GB.get(row) * per_gb,
            "front": row.key in places,
            "reference": row.record.reference,
        }
        for row in shown
    ]
    front_places = [places.get(row.key) for row in shown]
    domain = ratio_domain([p for p in points if not p["reference"]], clip=True)
    close = _close_up(points)
    many = len(points) > MANY
    words = [*_note(many=many), *broken(points, domain)]
    if close is not None:
        left_out = [p["size"] for p in points if p["reference"]]
        words += [
            f"The other axis does not start at 0: the reference, {numbers.significant(size, 3)} "
            f"{unit}, lies to the right of it."
            for size in left_out[:1]
        ]
        front_places = [n for p, n in zip(points, front_places, strict=True) if not p["reference"]]
        points = [p for p in points if not p["reference"]]
    sizes = [p["size"] for p in points if p["size"] > 0]
    log = close is None and bool(sizes) and max(sizes) / min(sizes) > _LOG_SIZES
    numbered = _numbers(points, front_places, close or (0.0, max(sizes, default=1.0)), domain)
    axis = _size_axis(unit, close, log=log)
    return Panel(
        id="size",
        title="Quality against size",
        note=" ".join(words),
        alt=(
            f"Scatter plot of {len(quantized)} quantized models: size in {unit} against perplexity "
            f"ratio. On the Pareto front, from the smallest: "
            + "; ".join(f"{r.label} {numbers.ratio(PPL_RATIO.get(r))}" for r in best[:12])
        ),
        spec=_spec(points, numbered, domain, axis, many=many),
        headings=("", "on the front", "size GB", "ratio (95 %)", "verdict", "served by"),
        lines=[_line(number, row) for number, row in enumerate(best, 1)],
        wide=True,
    )


def size_unit(largest_gb: float) -> tuple[str, float]:
    """The unit in which sizes read best, and how many of it a GB is."""
    return ("MB", 1000.0) if largest_gb < 0.2 else ("GB", 1.0)


def _line(number: int, row: Row) -> list[str]:
    served = ", ".join(row.record.runtimes)
    return [
        str(number),
        row.label,
        *(column.cell(row) for column in (SIZE_GB, PPL_RATIO, VERDICT)),
        served if row.record.can_serve else f"{served or 'nothing'} (no serving runtime)",
    ]


def _note(*, many: bool) -> list[str]:
    return [
        "Line: the Pareto front; its trials are numbered below.",
        "Bars: 95 % intervals, on the front only among so many; hover for the others."
        if many
        else "Bars: 95 % intervals, paired with the reference.",
    ]


def _close_up(points: list[dict[str, Any]]) -> tuple[float, float] | None:
    """From where to where the sizes' axis goes where all but the reference have about one size."""
    sizes = [p["size"] for p in points if not p["reference"]]
    largest = max(p["size"] for p in points)
    low, high = min(sizes), max(sizes)
    if len(sizes) == len(points) or not _ALIKE * high < high - low < _NARROW * largest:
        return None
    margin = 0.1 * (high - low)
    return low - margin, high + margin


def _size_axis(unit: str, close: tuple[float, float] | None, *, log: bool) -> Spec:
    scale: Spec = {"type": "log", "nice": True} if log else {"zero": True, "nice": True}
    title = f"weights on disk, {unit}" + (", log scale" if log else "")
    if close is not None:
        scale = {"domain": list(close), "zero": False, "nice": True}
        title += ", not from 0"
    return {
        "field": "size",
        "type": "quantitative",
        "scale": scale,
        "axis": {"grid": False, "format": "~g", "tickCount": 8},
        "title": title,
    }


def _numbers(
    drawn: list[dict[str, Any]],
    places: list[int | None],
    sizes: tuple[float, float],
    domain: tuple[float, float],
) -> list[dict[str, Any]]:
    # Numbers that would lie on one another are left to the list below the picture.
    kept: list[dict[str, Any]] = []
    for p, place in sorted(zip(drawn, places, strict=True), key=lambda pair: pair[1] or 0):
        if place is None:
            continue
        y = min(p["ratio"], domain[1])
        spot = (
            (p["size"] - sizes[0]) / (sizes[1] - sizes[0]),
            (y - domain[0]) / (domain[1] - domain[0]),
        )
        near = (
            abs(spot[0] - other["spot"][0]) < _NEAR[0]
            and abs(spot[1] - other["spot"][1]) < _NEAR[1]
            for other in kept
        )
        if not any(near):
            kept.append({"size": p["size"], "y": y, "number": str(place), "spot": spot})
    return [{k: v for k, v in item.items() if k != "spot"} for item in kept]


def _spec(
    drawn: list[dict[str, Any]],
    numbers: list[dict[str, Any]],
    domain: tuple[float, float],
    x: Spec,
    *,
    many: bool,
) -> Spec:
    series = series_encoding(p["series"] for p in drawn)
    colour = {"color": series["color"]}
    y = {"field": "y", **ratio_axis(domain)}
    bars = "datum.front" if many else "!datum.reference"
    return {
        "height": 420,
        "data": {"values": drawn},
        "transform": clamped(domain),
        "encoding": {"y": y},
        "layer": [
            *bands(domain),
            {
                "data": {"values": [{"y": 1.0}]},
                "mark": {"type": "rule", "strokeDash": [6, 4], "color": "var(--ink)"},
                "encoding": {"y": {"field": "y", "type": "quantitative"}},
            },
            {
                "transform": [{"filter": "datum.front"}],
                "mark": {"type": "line", "interpolate": "step-after", "color": "var(--ink)",
                         "opacity": 0.55, "strokeWidth": 1.5},
                "encoding": {
                    "x": x,
                    "y": {"field": "y", "type": "quantitative"},
                    "order": {"field": "size"},
                },
            },
            {"transform": [{"filter": bars}], **error_bars(x, **colour)},
            {
                "mark": {"type": "point", "filled": True, "size": 30 if many else 80,
                         "opacity": 0.55 if many else 0.95, "stroke": "var(--paper)",
                         "strokeWidth": 0.5},
                "encoding": {
                    "x": x,
                    "y": {"field": "y", "type": "quantitative"},
                    **series,
                    "tooltip": tooltip(),
                },
            },
            beyond_marks(x, **colour),
            {
                "data": {"values": numbers},
                "mark": {"type": "text", "dx": 9, "dy": -9, "fontWeight": 700,
                         "color": "var(--ink)"},
                "encoding": {
                    "x": x,
                    "y": {"field": "y", "type": "quantitative"},
                    "text": {"field": "number", "type": "nominal"},
                },
            },
        ],
    }  # fmt: skip
