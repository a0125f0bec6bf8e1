"""What serving adds to a model's divergence: weights, activations, the KV cache, each on top of the last."""

from collections.abc import Mapping, Sequence
from typing import Any

from qsweep.base import numbers
from qsweep.evaluate.metrics import QUARTERS
from qsweep.results.columns.column import figures
from qsweep.results.columns.derived import stopped_ends
from qsweep.results.columns.table import NUMBER_FORMAT, QUARTER_WORDS
from qsweep.results.html.data import Group, is_finite
from qsweep.results.html.panel import Panel, Spec, decades
from qsweep.results.html.theme import colour_by, palette
from qsweep.results.record import Row

_STAGES = {"weights": "", "+ activations": "_activations", "+ KV cache": "_kv"}
_SHAPES = ("circle", "square", "diamond")
_TRIALS = 24
_CACHES = 6
# Divergences that differ by more than this need a logarithmic axis.
_LOG = 20
# 95 % of a normal distribution; the error is over windows, as protocol.md says.
_Z = 1.96


def stages(group: Group) -> Panel | None:
    """The KLD of each trial with one more part as it is served, where that was measured."""
    found = {row.key: _stages(row) for row in group.quantized}
    rows = [row for row in group.quantized if len(found[row.key]) > 1]
    if not rows:
        return None
    rows.sort(key=lambda row: found[row.key][-1]["kld"])
    # The best of each number format before the second of any.
    best = {NUMBER_FORMAT.get(row): row for row in reversed(rows)}
    chosen = list({row.key: row for row in (*best.values(), *rows)}.values())[:_TRIALS]
    shown = [row for row in rows if row in chosen]
    points = [{"label": row.label, **one} for row in shown for one in found[row.key]]
    names = [name for name in _STAGES if any(p["stage"] == name for p in points)]
    words = [
        "KLD of the reference with the weights alone, with activations as the number format quantizes "
        "them, with keys and values as the cache stores them: each with all before it. Bars: 95 % "
        "over windows; the table has what each adds, which is paired and narrower."
    ]
    words += (
        [f"{_TRIALS} of {len(rows)} trials: the least, and of each number format the best."]
        if len(rows) > len(shown)
        else []
    )
    return Panel(
        id="served",
        title="What weights, activations and cache each add",
        note=" ".join(words),
        alt="; ".join(
            f"{row.label}: "
            + ", ".join(f"{p['stage']} {numbers.divergence(p['kld'])}" for p in found[row.key])
            for row in shown[:12]
        ),
        spec=_steps(points, [row.label for row in shown], names),
        headings=("trial", *names),
        lines=[[row.label, *_cells(found[row.key], names)] for row in shown],
        wide=True,
    )


def quarters(group: Group) -> Panel | None:
    """The KLD over each quarter of the windows, with the cache and without it."""
    rows = [row for row in group.quantized if all(map(is_finite, _by_quarter(row, "_kv")))]
    if not rows:
        return None
    rows.sort(key=lambda row: _by_quarter(row, "_kv")[-1])
    shown = rows[:_CACHES]
    values = [
        {"label": row.label, "quarter": word, "kld": kld, "run": run}
        for row in shown
        for run, suffix in (("with the cache", "_kv"), ("without it", _before_cache(row)))
        for word, kld in zip(QUARTER_WORDS.values(), _by_quarter(row, suffix), strict=True)
        if is_finite(kld)
    ]
    more = f" The {_CACHES} least of {len(rows)} trials." if len(rows) > len(shown) else ""
    return Panel(
        id="quarters",
        title="KLD by quarter of the window",
        note="Solid: with the KV cache as it is stored; dashed: without it, activations as they are "
        f"served. A cache hurts late tokens, which read all of it.{more}",
        alt="; ".join(
            f"{row.label}: " + ", ".join(numbers.divergence(kld) for kld in _by_quarter(row, "_kv"))
            for row in shown
        ),
        spec=_lines(values, [row.label for row in shown]),
    )


def _stages(row: Row) -> list[dict[str, Any]]:
    metrics, found = figures(row, "measurement"), []
    for name, suffix in _STAGES.items():
        kld, error = metrics.get(f"kld{suffix}"), metrics.get(f"kld{suffix}_stderr")
        if not is_finite(kld):
            continue
        half = _Z * error if is_finite(error) else 0.0
        stopped = stopped_ends(row.measurement, suffix) if row.measurement else None
        low, high = stopped or (kld - half, kld + half)
        added = _added(metrics, suffix) if suffix else numbers.with_error(kld, error)
        found.append(
            {
                "stage": name,
                "kld": kld,
                "low": low,
                "high": high,
                "added": added,
            }
        )
    return found


def _added(metrics: Mapping[str, Any], suffix: str) -> str:
    """How much a stage adds, with its paired interval."""
    added, low, high = (metrics.get(f"kld{suffix}_added{end}") for end in ("", "_low", "_high"))
    if not is_finite(added):
        return ""
    span = f" ({low:+.2g} to {high:+.2g})" if is_finite(low) and is_finite(high) else ""
    return f"{added:+.2g}{span}"


def _cells(found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    added = {one["stage"]: one["added"] for one in found}
    return [added.get(name, "") for name in names]


def _by_quarter(row: Row, suffix: str) -> list[Any]:
    metrics = figures(row, "measurement")
    return [metrics.get(f"kld{suffix}_{quarter}") for quarter in QUARTERS]


def _before_cache(row: Row) -> str:
    known = all(map(is_finite, _by_quarter(row, "_activations")))
    return "_activations" if known else ""


def _steps(points: list[dict[str, Any]], labels: list[str], names: list[str]) -> Spec:
    least, most = min(p["kld"] for p in points), max(p["high"] for p in points)
    log = most > _LOG * least > 0
    scale: Spec = {"type": "log", "nice": False} if log else {"zero": True, "nice": True}
    floor = 0.5 * least if log else 0.0
    points = [{**point, "low": max(point["low"], floor)} for point in points]
    x = {
        "type": "quantitative",
        "scale": scale,
        "axis": {"format": "~g", "tickCount": 6, **({"values": _ticks(points)} if log else {})},
        "title": "KLD, nats" + ", log scale" * log,
    }
    y: Spec = {
        "y": {
            "field": "label",
            "type": "nominal",
            "scale": {"domain": labels, "paddingInner": 0.35},
            "axis": {"labelLimit": 230, "title": None, "grid": False},
        },
        "yOffset": {"field": "stage", "type": "nominal", "scale": {"domain": names}},
    }
    colour = {"scale": {"domain": names, "range": palette(len(names))}, "legend": {"title": None}}
    kind = {"field": "stage", "type": "nominal", **colour}
    shape = {**kind, "scale": {"domain": names, "range": list(_SHAPES[: len(names)])}}
    return {
        "height": 40 + 11 * len(labels) * len(names),
        "data": {"values": points},
        "encoding": y,
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 1.5},
                "encoding": {
                    "x": {"field": "low", **x},
                    "x2": {"field": "high"},
                    "color": kind,
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
                "encoding": {
                    "x": {"field": "kld", **x},
                    "color": kind,
                    "shape": shape,
                    "tooltip": [
                        {"field": "label", "title": "trial"},
                        {"field": "stage", "title": "as served"},
                        {"field": "kld", "format": ".3~g", "title": "KLD, nats"},
                        {"field": "added", "title": "of which it adds"},
                    ],
                },
            },
        ],
    }


def _ticks(points: Sequence[Mapping[str, Any]]) -> list[float]:
    """1, 2 and 5 of each power of ten that an axis reaches."""
    low, high = min(p["low"] for p in points), max(p["high"] for p in points)
    decades_ = decades((low, high))
    return [m * ten for ten in decades_ for m in (1, 2, 5) if low <= m * ten <= high]


def _lines(values: list[dict[str, Any]], labels: list[str]) -> Spec:
    runs = ["with the cache", "without it"]
    dash = {"domain": runs, "range": [[1, 0], [5, 4]]}
    return {
        "height": 300,
        "data": {"values": values},
        "mark": {"type": "line", "point": {"size": 40, "filled": True}, "strokeWidth": 2},
        "encoding": {
            "x": {
                "field": "quarter",
                "type": "ordinal",
                "sort": list(QUARTER_WORDS.values()),
                "axis": {"labelAngle": 0, "grid": False},
                "title": "quarter of the window",
            },
            "y": {
                "field": "kld",
                "type": "quantitative",
                "scale": {"zero": True, "nice": True},
                "axis": {"format": "~g", "tickCount": 6},
                "title": "KLD, nats",
            },
            "color": colour_by("label", labels),
            "strokeDash": {"field": "run", "type": "nominal", "scale": dash, "legend": None},
            "tooltip": [
                {"field": "label", "title": "trial"},
                {"field": "run", "title": "run"},
                {"field": "quarter", "title": "quarter"},
                {"field": "kld", "format": ".3~g", "title": "KLD, nats"},
            ],
        },
    }
