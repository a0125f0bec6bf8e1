"""Panels for what a sweep varied of a quantizer: bits, group size, column order."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from qsweep.base import numbers
from qsweep.results.columns.table import BITS, DECODE_TPS, DESC_ACT, GROUP_SIZE, PPL_RATIO
from qsweep.results.html.data import Group, is_finite, varied
from qsweep.results.html.panel import (
    Panel,
    Spec,
    bands,
    error_bars,
    point,
    ratio_chart,
    ratio_domain,
    series_encoding,
    tooltip,
)
from qsweep.results.html.theme import colour_by
from qsweep.results.record import Record, Row

# More lines than this in one picture cannot be followed.
_LINES = 8
# Where colours and dashes share the work.
_DASHED_LINES = 12
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4], [4, 6])


def bits(group: Group) -> Panel | None:
    """Quality by bits: the best setting of each method as a line, the others as faint points."""
    rows = [row for row in group.quantized if is_finite(BITS.get(row))]
    if not varied(rows, BITS):
        return None
    points = [{**point(row), "bits": BITS.get(row)} for row in rows]
    best = _best(points, ("series", "bits"))
    for p in points:
        p["best"] = best[p["series"], p["bits"]] is p
    x = {"field": "bits", "type": "ordinal", "title": "bits", "axis": {"labelAngle": 0}}
    return Panel(
        id="bits",
        title="Bits",
        note=(
            "Line: each method's best setting at that width; faint: its other settings. "
            "Bars: 95 % intervals."
        ),
        alt="Perplexity ratio by bits. Best per method and width: "
        + "; ".join(
            f"{series} {width}-bit {numbers.ratio(p['ratio'])}"
            for (series, width), p in sorted(best.items(), key=lambda item: str(item[0]))
        ),
        spec=_dodged(points, x),
    )


def group_size(group: Group) -> Panel | None:
    """Quality by group size, a line per method and width."""
    rows = [row for row in group.quantized if GROUP_SIZE.get(row) is not None]
    if not varied(rows, GROUP_SIZE):
        return None
    points = [
        {**point(row), "group": GROUP_SIZE.get(row), "width": f"{BITS.get(row)}-bit"}
        for row in rows
    ]
    best = _best(points, ("series", "width", "group"))
    lines: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for (series, width, _), p in best.items():
        lines[series, width].append(p)
    shown = {line: found for line, found in lines.items() if len(found) > 1}
    if not shown:
        return None
    kept = [p for line in sorted(shown)[:_DASHED_LINES] for p in shown[line]]
    sizes = sorted({p["group"] for p in kept}, key=lambda g: math.inf if g == -1 else g)
    for p in kept:
        p["group"] = _group_name(p["group"])
    x = {
        "field": "group",
        "type": "ordinal",
        "title": "weights per scale (group_size)",
        "sort": [_group_name(size) for size in sizes],
        "axis": {"labelAngle": 0},
    }
    cut = f" {_DASHED_LINES} of {len(shown)} lines are drawn." if len(shown) > _DASHED_LINES else ""
    return Panel(
        id="group-size",
        title="Group size",
        note=f"The best setting of each method and width. Bars: 95 % intervals.{cut}",
        alt="Perplexity ratio by group size. "
        + "; ".join(f"{p['label']} {numbers.ratio(p['ratio'])}" for p in kept[:24]),
        spec=_lines(kept, x, dash="width"),
    )


def desc_act(group: Group) -> Panel | None:
    """What the order of columns costs and brings: quality against speed, pair by pair."""
    pairs: dict[str, dict[bool, Row]] = defaultdict(dict)
    for row in group.quantized:
        if isinstance(order := DESC_ACT.get(row), bool):
            pairs[_apart_from_order(row.record)][order] = row
    whole = [pair for pair in pairs.values() if len(pair) == 2]
    if not whole:
        return None
    whole.sort(key=lambda pair: pair[False].label)
    timed = all(is_finite(DECODE_TPS.get(row)) for pair in whole for row in pair.values())
    points = [
        {
            **point(row),
            "pair": pair[False].label,
            "order": "desc_act" if order else "in order",
            "speed": DECODE_TPS.get(row),
        }
        for pair in whole[:_LINES]
        for order, row in sorted(pair.items())
    ]
    cut = f" {_LINES} of {len(whole)} pairs are drawn." if len(whole) > _LINES else ""
    note = (
        "Decoding speed against quality; a line joins two trials that differ in the order only."
        if timed
        else "Speed was not measured here: eval=speed adds it. A line joins two trials that "
        "differ in the order of columns only."
    )
    x = (
        {"field": "speed", "type": "quantitative", "scale": {"zero": True},
         "title": "decoding, tokens per second"}
        if timed
        else {"field": "order", "type": "nominal", "title": None, "sort": ["in order", "desc_act"],
              "axis": {"labelAngle": 0}}
    )  # fmt: skip
    return Panel(
        id="desc-act",
        title="Order of columns (desc_act)",
        note=note + " Bars: 95 % intervals." + cut,
        alt="; ".join(
            f"{pair[False].label}: {numbers.ratio(PPL_RATIO.get(pair[False]))} in order, "
            f"{numbers.ratio(PPL_RATIO.get(pair[True]))} with desc_act"
            for pair in whole[:_LINES]
        ),
        spec=_pairs(points, x),
    )


def _best(points: Iterable[dict[str, Any]], by: Sequence[str]) -> dict[tuple[Any, ...], Any]:
    best: dict[tuple[Any, ...], Any] = {}
    for p in points:
        key = tuple(p[name] for name in by)
        if key not in best or p["ratio"] < best[key]["ratio"]:
            best[key] = p
    return best


def _dodged(points: list[dict[str, Any]], x: Spec) -> Spec:
    domain = ratio_domain(points, clip=False)
    series = series_encoding(p["series"] for p in points)
    colour = {"color": series["color"]}
    offset = {"xOffset": {"field": "series", "type": "nominal"}}
    y = {"field": "y", "type": "quantitative"}
    best = [{"filter": "datum.best"}]
    layers = [
        *bands(domain, right=True),  # few bits, and so the worst, are at the left
        {
            "transform": best,
            "mark": {"type": "line", "opacity": 0.6},
            "encoding": {"x": x, "y": y, **offset, **colour},
        },
        {"transform": best, **error_bars(x, **offset, **colour)},
        {
            "transform": [{"filter": "!datum.best"}],
            "mark": {"type": "point", "filled": True, "size": 25, "opacity": 0.35},
            "encoding": {"x": x, "y": y, **offset, **series, "tooltip": tooltip()},
        },
        {
            "transform": best,
            "mark": {"type": "point", "filled": True, "size": 75, "opacity": 1},
            "encoding": {"x": x, "y": y, **offset, **series, "tooltip": tooltip()},
        },
    ]
    return ratio_chart(points, domain, layers)


def _lines(points: list[dict[str, Any]], x: Spec, dash: str) -> Spec:
    domain = ratio_domain(points, clip=False)
    series = series_encoding(p["series"] for p in points)
    colour = {"color": series["color"]}
    names = sorted({p[dash] for p in points})
    dashes = {
        "strokeDash": {
            "field": dash,
            "type": "nominal",
            "title": "bits",
            "scale": {"domain": names, "range": [list(_DASHES[i % 6]) for i in range(len(names))]},
        }
    }
    y = {"field": "y", "type": "quantitative"}
    layers = [
        *bands(domain),
        {"mark": {"type": "line"}, "encoding": {"x": x, "y": y, **colour, **dashes}},
        error_bars(x, **colour),
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            "encoding": {"x": x, "y": y, **series, "tooltip": tooltip()},
        },
    ]
    return ratio_chart(points, domain, layers)


def _pairs(points: list[dict[str, Any]], x: Spec) -> Spec:
    domain = ratio_domain(points, clip=False)
    y = {"field": "y", "type": "quantitative"}
    names = sorted({p["pair"] for p in points})
    colour = {"color": colour_by("pair", names)}
    # Below: beside the pairs' legend there is no room for it.
    key = {"symbolFillColor": "var(--ink)", "symbolStrokeColor": "var(--ink)", "orient": "bottom"}
    shape = {"shape": {"field": "order", "type": "nominal", "title": None, "legend": key}}
    layers = [
        *bands(domain),
        {
            "mark": {"type": "line", "opacity": 0.6},
            "encoding": {"x": x, "y": y, **colour},
        },
        error_bars(x, **colour),
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            "encoding": {"x": x, "y": y, **colour, **shape, "tooltip": tooltip()},
        },
    ]
    return ratio_chart(points, domain, layers)


def _apart_from_order(record: Record) -> str:
    # desc_act switches group-aware reordering off, so the two always differ together.
    alike = {k: v for k, v in record.options.items() if k not in ("desc_act", "act_group_aware")}
    return repr(
        [record.model, record.method, record.backend, record.calibration,
         sorted(alike.items(), key=str)]
    )  # fmt: skip


def _group_name(size: Any) -> str:
    return "channel" if size == -1 else str(size)
