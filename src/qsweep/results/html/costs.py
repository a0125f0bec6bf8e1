"""What a result costs: time, memory, speed; and where in the model it comes from."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from qsweep.base import numbers
from qsweep.results.columns.table import DECODE_TPS, EVALUATE_S, PEAK_MEMORY_GB, QUANTIZE_S
from qsweep.results.html.data import Group, front, is_finite
from qsweep.results.html.panel import (
    MANY,
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
from qsweep.results.html.theme import colour_by

_LAYER_TRIALS = 6


def speed(group: Group) -> Panel | None:
    """Quality against decoding speed, where it was measured."""
    rows = [row for row in group.quantized if is_finite(DECODE_TPS.get(row))]
    if not rows:
        return None
    points = [{**point(row), "speed": DECODE_TPS.get(row)} for row in rows]
    reference = next(
        (
            DECODE_TPS.get(r)
            for r in group.primary_rows
            if r.record.reference and is_finite(DECODE_TPS.get(r))
        ),
        None,
    )
    domain = ratio_domain(points, clip=True)
    series = series_encoding(p["series"] for p in points)
    colour = {"color": series["color"]}
    x = {
        "field": "speed",
        "type": "quantitative",
        "scale": {"zero": True},
        "title": "decoding, tokens per second, batch 1",
    }
    y = {"field": "y", "type": "quantitative"}
    many = len(points) > MANY
    words = ["On the kernels that serve each artifact."]
    layers: list[Spec] = bands(domain)
    if reference is not None:
        words.append(f"Dashed: the reference, {numbers.significant(reference, 3)}.")
        layers.append(
            {
                "data": {"values": [{"speed": reference}]},
                "mark": {"type": "rule", "strokeDash": [6, 4], "color": "var(--ink)"},
                # From top to bottom: it has no ratio of its own, and would not be drawn without.
                "encoding": {"x": x, "y": {"value": 0}, "y2": {"value": "height"}},
            }
        )
    if not many:
        words.append("Bars: 95 % intervals.")
        layers.append(error_bars(x, **colour))
    size, opacity = (25, 0.6) if many else (70, 0.95)
    layers += [
        {
            "mark": {"type": "point", "filled": True, "size": size, "opacity": opacity},
            "encoding": {"x": x, "y": y, **series, "tooltip": tooltip()},
        },
        beyond_marks(x, **colour),
    ]
    return Panel(
        id="speed",
        title="Quality against speed",
        note=" ".join([*words, *broken(points, domain)]),
        alt="; ".join(
            f"{row.label}: {DECODE_TPS.cell(row)} tokens per second"
            for row in sorted(rows, key=lambda r: -DECODE_TPS.get(r))[:12]
        ),
        spec=ratio_chart(points, domain, layers),
    )


def time_and_memory(group: Group) -> Panel | None:
    """Seconds to quantize against the memory that it took."""
    rows = [
        row
        for row in group.quantized
        if is_finite(QUANTIZE_S.get(row)) and is_finite(PEAK_MEMORY_GB.get(row))
    ]
    if not rows:
        return None
    points = [
        {
            **point(row),
            "seconds": max(QUANTIZE_S.get(row), 0.01),
            "memory": PEAK_MEMORY_GB.get(row),
            "took": f"{QUANTIZE_S.cell(row)} to quantize, {EVALUATE_S.cell(row)} to measure",
        }
        for row in rows
    ]
    where = "GPU" if any((row.record.device or "").startswith("cuda") for row in rows) else "host"
    return Panel(
        id="costs",
        title="Time and memory",
        note=f"Of quantizing; memory is the trial's peak on the {where}. Axes start at 0 or are "
        "logarithmic, as labelled.",
        alt="; ".join(f"{p['label']}: {p['took']}" for p in points[:12]),
        spec={
            "height": 300,
            "data": {"values": points},
            "mark": {
                "type": "point",
                "filled": True,
                "size": 60 if len(points) < 100 else 25,
                "opacity": 0.75,
            },
            "encoding": {
                "x": {
                    "field": "seconds",
                    "type": "quantitative",
                    "scale": {"type": "log", "nice": True},
                    "axis": {"format": "~g", "tickCount": 6, "grid": False},
                    "title": "time to quantize, s, log scale",
                },
                "y": {
                    "field": "memory",
                    "type": "quantitative",
                    "scale": {"zero": True},
                    "title": f"peak {where} memory, GB",
                },
                **series_encoding(p["series"] for p in points),
                "tooltip": [
                    *tooltip()[:2],
                    {"field": "took", "title": "took"},
                    {"field": "memory", "format": ".3~g", "title": "peak memory, GB"},
                ],
            },
        },
    )


def layer_loss(group: Group) -> Panel | None:
    """Loss by decoder layer, where the quantizer recorded it."""
    backends: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    ranked = [*front(group.quantized)[::-1], *group.quantized]
    for row in ranked:
        details = row.record.details
        loss = details.get("loss") or details.get("layer_loss")
        if isinstance(loss, Mapping):
            backends[row.record.backend].setdefault(row.label, loss)
    if not backends:
        return None
    # Backends define their loss differently: only one kind on an axis.
    backend, found = max(backends.items(), key=lambda item: len(item[1]))
    chosen = dict(list(found.items())[:_LAYER_TRIALS])
    values: list[dict[str, Any]] = [
        {"label": label, "layer": layer, "loss": loss, "worst": worst}
        for label, losses in chosen.items()
        for layer, loss, worst in _by_layer(losses)
    ]
    if not values:
        return None
    names = list(chosen)
    peaks = {
        name: max((v for v in values if v["label"] == name), key=lambda v: v["loss"])
        for name in names
        if any(v["label"] == name for v in values)
    }
    cut = f" {len(names)} of {len(found)} trials." if len(found) > len(names) else ""
    return Panel(
        id="layers",
        title="Loss by layer",
        note=f"Error of a layer's outputs on the calibration text, summed over its linear layers, "
        f"as {backend} reports it.{cut}",
        alt="; ".join(
            f"{name}: most in layer {peak['layer']} ({peak['worst']})"
            for name, peak in peaks.items()
        ),
        spec={
            "height": 300,
            "data": {"values": values},
            "mark": {"type": "line", "point": {"size": 35, "filled": True}, "strokeWidth": 2},
            "encoding": {
                "x": {
                    "field": "layer",
                    "type": "quantitative",
                    "title": "decoder layer",
                    "scale": {"nice": False, "zero": False, "padding": 12},
                    "axis": {"tickMinStep": 1, "format": "d", "grid": False},
                },
                "y": {
                    "field": "loss",
                    "type": "quantitative",
                    "scale": {"type": "log", "nice": True},
                    "axis": {"format": "~g", "tickCount": 5},
                    "title": "loss, log scale",
                },
                "color": colour_by("label", names),
                "tooltip": [
                    {"field": "label", "title": "trial"},
                    {"field": "layer", "title": "layer"},
                    {"field": "loss", "format": ".3~g", "title": "loss"},
                    {"field": "worst", "title": "most of it in"},
                ],
            },
        },
    )


def _by_layer(losses: Mapping[str, Any]) -> list[tuple[int, float, str]]:
    """Layer, its summed loss, and the linear layer in it that has most."""
    layers: dict[int, dict[str, float]] = defaultdict(dict)
    for name, loss in losses.items():
        number = re.search(r"\.(\d+)\.", f".{name}")
        if number and is_finite(loss) and loss > 0:
            layers[int(number.group(1))][str(name).rpartition(".")[2]] = float(loss)
    return [
        (layer, sum(found.values()), max(found, key=lambda name: found[name]))
        for layer, found in sorted(layers.items())
    ]
