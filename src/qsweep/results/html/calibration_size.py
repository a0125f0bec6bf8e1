"""Panel for how much text was calibrated on: divergence over tokens."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from qsweep.base import numbers
from qsweep.results.columns.derived import kld_ends
from qsweep.results.columns.table import CALIBRATION_TOKENS, KLD
from qsweep.results.html.data import Group, is_finite
from qsweep.results.html.panel import Panel, Spec
from qsweep.results.html.theme import colour_by
from qsweep.results.labels import distinguish
from qsweep.results.record import Row
from qsweep.results.traits import is_draw, traits

# More lines than this in one picture cannot be followed.
_LINES = 8
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4], [4, 6])
# How much is drawn, in samples and in tokens of each.
_COUNT, _LENGTH = "calibration.num_samples", "calibration.max_seq_len"

Point = dict[str, Any]


def calibration_size(group: Group) -> Panel | None:
    """Divergence by tokens of calibration, a line per setting and length of sample."""
    lines: dict[str, list[Point]] = defaultdict(list)
    settings: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    for row in group.quantized:
        if (point := _point(row)) is None:
            continue
        found = traits(row.record)
        kept = {k: v for k, v in found.items() if k not in (_COUNT, _LENGTH) and not is_draw(k)}
        key = repr((row.record.name, sorted(kept.items(), key=str)))
        settings[key] = kept
        names[key] = row.record.name.removeprefix(f"{row.record.model} ")
        lines[key].append({**point, "length": f"samples of {found.get(_LENGTH)}"})
    names = distinguish(names, settings, lambda own: own)
    curves = {names[key]: points for key, points in lines.items() if _is_curve(points)}
    if not curves:
        return None
    shown = sorted(curves)[:_LINES]
    points = [{**point, "line": name} for name in shown for point in curves[name]]
    cut = f" {_LINES} of {len(curves)} settings are drawn." if len(curves) > len(shown) else ""
    draws = " A line goes through the mean of several draws." if _is_drawn(points) else ""
    return Panel(
        id="calibration-size",
        title="Tokens of calibration",
        note=(
            f"KLD by how many tokens the quantizer was shown. Bars: 95 % over {_covered(group)}, down to half "
            f"of a value at most.{draws}{cut}"
        ),
        alt="; ".join(f"{name}: {_told(curves[name])}" for name in shown),
        spec=_curves(points, shown),
    )


def _point(row: Row) -> Point | None:
    tokens, kld = CALIBRATION_TOKENS.get(row), KLD.get(row)
    if not (is_finite(tokens) and is_finite(kld) and tokens > 0 and kld > 0):
        return None
    low, high = (row.measurement and kld_ends(row.measurement)) or (kld, kld)
    # Half of the value is as far down as a logarithmic axis need go.
    return {
        "tokens": tokens,
        "kld": kld,
        "low": max(low, kld / 2),
        "high": high,
        "label": row.label,
    }


def _covered(group: Group) -> str:
    if any(row.record.draws for row in group.quantized):
        return "windows and draws of the calibration text"
    return "windows, which all points share, and not over which samples were drawn"


def _is_curve(points: Sequence[Point]) -> bool:
    return len({point["tokens"] for point in points}) > 1


def _is_drawn(points: Sequence[Point]) -> bool:
    places = [(point["line"], point["length"], point["tokens"]) for point in points]
    return len(set(places)) < len(places)


def _told(points: Sequence[Point]) -> str:
    by_tokens: dict[int, list[float]] = defaultdict(list)
    for point in points:
        by_tokens[point["tokens"]].append(point["kld"])
    return ", ".join(
        f"{tokens} tokens {numbers.divergence(fmean(found))}"
        for tokens, found in sorted(by_tokens.items())
    )


def _curves(points: list[Point], names: list[str]) -> Spec:
    lengths = sorted({point["length"] for point in points}, key=lambda word: (len(word), word))
    dashes = [list(_DASHES[number % len(_DASHES)]) for number in range(len(lengths))]
    # Below: beside the settings' legend there is no room for it.
    legend = {"title": None, "symbolStrokeColor": "var(--ink)", "orient": "bottom"}
    dash = {"domain": lengths, "range": dashes}
    x = {
        "field": "tokens",
        "type": "quantitative",
        "scale": {"type": "log", "nice": False, "padding": 14},
        "axis": {"values": sorted({p["tokens"] for p in points}), "format": ",", "grid": False},
        "title": "tokens of calibration text, log scale",
    }
    y = {
        "type": "quantitative",
        "scale": {"type": "log", "nice": False, "padding": 8},
        "axis": {"format": "~g", "tickCount": 6},
        "title": "KLD, nats, log scale",
    }
    colour = colour_by("line", names)
    return {
        "height": 320,
        "data": {"values": points},
        "encoding": {"x": x, "color": colour},
        "layer": [
            {
                "mark": {"type": "line", "strokeWidth": 2, "opacity": 0.8},
                "encoding": {
                    "y": {"field": "kld", "aggregate": "mean", **y},
                    "strokeDash": {
                        "field": "length", "type": "nominal", "scale": dash,
                        "legend": legend if len(lengths) > 1 else None,
                    },
                },
            },
            {
                "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.5},
                "encoding": {"y": {"field": "low", **y}, "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 55, "opacity": 1},
                "encoding": {
                    "y": {"field": "kld", **y},
                    "tooltip": [
                        {"field": "label", "title": "trial"},
                        {"field": "tokens", "format": ",", "title": "tokens"},
                        {"field": "length", "title": "in"},
                        {"field": "kld", "format": ".3~g", "title": "KLD, nats"},
                    ],
                },
            },
        ],
    }  # fmt: skip
