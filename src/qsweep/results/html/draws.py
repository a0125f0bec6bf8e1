"""How far the draws of each setting lie apart: a strip of points beside what they are as one."""

from collections.abc import Iterator
from typing import Any

from qsweep.base import numbers
from qsweep.results.columns.table import PPL_RATIO
from qsweep.results.covered import draws_text
from qsweep.results.html.data import Group, is_finite
from qsweep.results.html.panel import (
    Panel,
    Spec,
    bands,
    beyond_marks,
    broken,
    error_bars,
    point,
    ratio_chart,
    ratio_domain,
    series_encoding,
    tooltip,
)
from qsweep.results.record import Row
from qsweep.results.traits import seed_of

_NOTE = (
    "Points: the perplexity ratio of each draw of a setting, another sample of the calibration text each. "
    "Line and bar: their mean, and its 95 % interval over windows and draws. Where the page shows one "
    "artifact of these, its tensors or its tokens, it is the first draw."
)
# A strip is narrow, but a page has an end.
_MOST = 30


def spread(group: Group) -> Panel | None:
    """The settings of several draws, best first: their draws' ratios, their mean and its interval."""
    rows = [row for row in group.quantized if len(row.record.draws or ()) > 1]
    if not rows:
        return None
    points = [one for row in rows[:_MOST] for one in _points(row)]
    domain = ratio_domain(points, clip=True)
    more = [f"The best {_MOST} of {len(rows)} settings."] if len(rows) > _MOST else []
    return Panel(
        id="draws",
        title="Draws",
        note=" ".join([_NOTE, *broken(points, domain), *more]),
        alt="A strip of points for each setting, one for each draw of its calibration text.",
        spec=_spec(points, domain),
        headings=("setting", "draws", "ratio (95 %)", "least", "most"),
        lines=[_line(row) for row in rows[:_MOST]],
        wide=len(rows) > 8,
    )


def _drawn(row: Row) -> Iterator[Row]:
    for record in row.record.draws or ():
        one = Row(record, record.primary, f"{row.label}, seed {seed_of(record)}", row.series)
        if is_finite(PPL_RATIO.get(one)):
            yield one


def _points(row: Row) -> list[dict[str, Any]]:
    found = [{**point(row), "setting": row.label, "mean": True}]
    return found + [{**point(one), "setting": row.label, "mean": False} for one in _drawn(row)]


def _line(row: Row) -> list[str]:
    ratios = [PPL_RATIO.get(one) for one in _drawn(row)]
    ends = [numbers.ratio(end) for end in (min(ratios), max(ratios))] if ratios else ["", ""]
    return [row.label, draws_text(row), PPL_RATIO.cell(row), *ends]


def _spec(points: list[dict[str, Any]], domain: tuple[float, float]) -> Spec:
    order = list(dict.fromkeys(p["setting"] for p in points))
    x = {"field": "setting", "type": "nominal", "sort": order, "title": None,
         "axis": {"labelAngle": -25, "labelLimit": 220}}  # fmt: skip
    y = {"field": "y", "type": "quantitative"}
    series = series_encoding(p["series"] for p in points)
    colour = {"color": series["color"]}
    mean = [{"filter": "datum.mean"}]
    return ratio_chart(
        points,
        domain,
        [
            *bands(domain),
            {"transform": mean, **error_bars(x, **colour)},
            {
                "transform": mean,
                "mark": {"type": "tick", "thickness": 2, "size": 26},
                "encoding": {"x": x, "y": y, **colour, "tooltip": tooltip()},
            },
            {
                "transform": [{"filter": "!datum.mean"}],
                "mark": {"type": "point", "filled": True, "size": 40, "opacity": 0.6},
                "encoding": {"x": x, "y": y, **series, "tooltip": tooltip()},
            },
            beyond_marks(x, **colour),
        ],
    )
