"""The picture of an assignment: a row for each kind of layer, a column for each decoder layer."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qsweep.results.assignment import Assignment
from qsweep.results.html.panel import Spec

# Of a row; of a letter on an axis, and what stands beside the letters.
_STEP, _LETTER, _BESIDE = 18, 7.4, 24
# Pixels that a cell's figure needs.
_ROOM = 26
# The picture has words of its own for who cannot see it; its cells have none, and so a page is small.
_CELL = {"type": "rect", "strokeWidth": 1, "aria": False}
# A title is as long as this at most; the table below has all of it.
_TITLE = 90
# Where figures in a cell turn from the colour of ink to that of paper, as a share of the scale: both
# can be read there in the light scheme and in the dark one.
_TURN = 0.5

Domain = tuple[float, float]


@dataclass(frozen=True)
class Map:
    """An artifact's assignment and what it is called."""

    label: str
    assigned: Assignment


def bits_domain(found: Iterable[Assignment]) -> Domain:
    """Whole bits around what is quantized, two apart at least: a hair must not look like a gulf."""
    bits = [
        stored.bpw
        for one in found
        for stored in (*one.places.values(), *one.beside.values())
        if stored.quantized and math.isfinite(stored.bpw)
    ]
    low, high = math.floor(min(bits, default=0)), math.ceil(max(bits, default=0))
    return (low, high) if high - low >= 2 else (max(low - 1, 0), max(low - 1, 0) + 2)


def spec(maps: Sequence[Map], domain: Domain) -> Spec:
    """Maps above each other.

    Args:
        maps: At least one.
        domain: Bits per weight at the ends of the colours.
    """
    names = [_names(one.assigned) for one in maps]
    longest = max(len(name) for named in names for name in named.values())
    extent = round(_LETTER * longest) + 8
    values = [
        value
        for number, (one, named) in enumerate(zip(maps, names, strict=True))
        for value in _values(number, one.assigned, named)
    ]
    parts = [
        _map(number, one, list(named.values()), domain, extent)
        for number, (one, named) in enumerate(zip(maps, names, strict=True))
    ]
    parts[-1]["encoding"]["x"]["axis"]["title"] = "decoder layer"
    return {
        "data": {"values": values},
        "usermeta": {"aside": extent + _BESIDE},
        "params": [{"name": "room", "value": 700}],
        "spacing": 14,
        "vconcat": parts,
    }


def _names(assigned: Assignment) -> dict[str, str]:
    """What rows are called, in order: the embedding, the kinds of layers, the head."""
    beside = {name: name.rpartition(".")[2] for name in assigned.beside}
    ahead = {name: short for name, short in beside.items() if "emb" in name or "wte" in name}
    return {**ahead, **assigned.short_kinds, **beside}


def _values(number: int, assigned: Assignment, names: Mapping[str, str]) -> list[dict[str, Any]]:
    places = [((kind, layer), one) for (kind, layer), one in assigned.places.items()]
    beside = [((name, None), one) for name, one in assigned.beside.items()]
    return [
        {
            "map": number,
            "kind": names[kind],
            "layer": layer,
            "type": stored.type,
            "bits": stored.bpw,
            "kept": not stored.quantized,
        }
        for (kind, layer), stored in [*places, *beside]
    ]


def _map(number: int, one: Map, rows: list[str], domain: Domain, extent: int) -> Spec:
    layers = one.assigned.layers
    turn = domain[0] + _TURN * (domain[1] - domain[0])
    roomy = f"room > {_ROOM * _count(layers)}"
    quantized, kept = {"filter": "!datum.kept"}, {"filter": "datum.kept"}
    return {
        **_frame(number, rows, layers, extent),
        "title": _title(one.label, str(one.assigned)),
        "layer": [
            {
                "transform": [quantized],
                "mark": {**_CELL, "stroke": "var(--paper)"},
                "encoding": {
                    "color": {
                        "field": "bits",
                        "type": "quantitative",
                        "title": "stored bits per weight",
                        "scale": {
                            "domain": list(domain),
                            "range": ["var(--bits-low)", "var(--bits-high)"],
                            "interpolate": "lab",
                        },
                        "legend": {"tickCount": 6, "format": "~g", "gradientLength": 180},
                    },
                    "tooltip": _tooltip(),
                },
            },
            {
                "transform": [kept, {"calculate": "'not quantized'", "as": "frame"}],
                "mark": {**_CELL, "fill": "var(--paper)", "cornerRadius": 3},
                "encoding": {
                    "stroke": {
                        "field": "frame",
                        "type": "nominal",
                        "title": None,
                        "scale": {"domain": ["not quantized"], "range": ["var(--muted)"]},
                        "legend": {"symbolType": "square", "symbolFillColor": "transparent"},
                    },
                    "tooltip": _tooltip(),
                },
            },
            {
                "mark": {
                    "type": "text",
                    "aria": False,
                    "fontSize": 10,
                    "opacity": {"expr": f"{roomy} || datum.layer === null ? 1 : 0"},
                    "tooltip": None,
                },
                "encoding": {
                    "x": {"field": "middle", "type": "quantitative"},
                    "x2": None,
                    "text": {"field": "said"},
                    "color": {
                        "condition": {
                            "test": f"!datum.kept && datum.bits > {turn!r}",
                            "value": "var(--paper)",
                        },
                        "value": "var(--ink)",
                    },
                },
            },
        ],
    }  # fmt: skip


def _frame(number: int, rows: list[str], layers: Sequence[int], extent: int) -> Spec:
    """What maps have in common: which points, where they lie, and the axes."""
    first, last = (layers[0], layers[-1]) if layers else (0, 0)
    ends = {"from": first - 0.5, "to": last + 0.5}
    inside = "datum.layer !== null"
    return {
        "height": _STEP * len(rows),
        "transform": [
            {"filter": f"datum.map === {number}"},
            {"calculate": f"{inside} ? datum.layer - 0.5 : {ends['from']}", "as": "from"},
            {"calculate": f"{inside} ? datum.layer + 0.5 : {ends['to']}", "as": "to"},
            {"calculate": "(datum.from + datum.to) / 2", "as": "middle"},
            {"calculate": f"{inside} ? '' + datum.layer : 'none'", "as": "where"},
            {"calculate": "format(datum.bits, '.3~g')", "as": "said"},
        ],
        "encoding": {
            "y": {
                "field": "kind",
                "type": "nominal",
                "sort": rows,
                "title": None,
                "axis": {
                    "minExtent": extent,
                    "labelLimit": extent,
                    "labelOverlap": False,
                    "ticks": False,
                    "domain": False,
                },
            },
            "x": {
                "field": "from",
                "type": "quantitative",
                "scale": {"domain": [ends["from"], ends["to"]], "nice": False, "zero": False},
                "axis": {
                    "grid": False,
                    "format": "d",
                    "tickMinStep": 1,
                    "domain": False,
                    "title": None,
                },
            },
            "x2": {"field": "to"},
        },
    }


def _tooltip() -> list[Spec]:
    return [
        {"field": "kind", "title": "layers"},
        {"field": "where", "title": "decoder layer"},
        {"field": "type", "title": "stored as"},
        {"field": "bits", "format": ".2f", "title": "bits per weight"},
    ]


def _title(text: str, below: str) -> Spec:
    return {
        "text": _cut(text),
        "subtitle": _cut(below),
        "anchor": "start",
        "frame": "group",
        "fontSize": 12,
        "color": "var(--ink)",
        "subtitleColor": "var(--muted)",
    }


def _cut(text: str) -> str:
    # What tells two long names apart is often at their ends.
    half = _TITLE // 2
    return text if len(text) <= _TITLE else f"{text[: half - 1]}…{text[-half:]}"


def _count(layers: Sequence[int]) -> int:
    return layers[-1] - layers[0] + 1 if layers else 1
