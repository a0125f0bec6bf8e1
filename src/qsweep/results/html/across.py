"""Panels across texts and models: calibration against corpus, one setting on several models."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from qsweep.base import numbers
from qsweep.results.columns.table import CALIBRATION, PPL_RATIO, PPL_RATIO_HIGH, PPL_RATIO_LOW
from qsweep.results.html.data import Group, is_finite
from qsweep.results.html.panel import Panel, Spec
from qsweep.results.record import Record, Row

_DRAWN = ("num_samples", "max_seq_len", "seed", "packing")


def calibration(group: Group) -> Panel | None:
    """Calibration text against measured text: is a model better on what it was calibrated on?"""
    preset = group.facts.get("preset")
    found: dict[tuple[str, str], dict[str, Row]] = defaultdict(dict)
    for row in group.rows:
        calibrated, measured, ratio = CALIBRATION.get(row), row.measurement, PPL_RATIO.get(row)
        if not calibrated or measured is None or measured.preset != preset:
            continue
        if is_finite(ratio) and ratio > 0:
            found[calibrated, measured.corpus][repr(_setting(row.record))] = row
    texts = sorted({text for text, _ in found})
    corpora = sorted({corpus for _, corpus in found})
    if len(texts) < 2:
        return None
    settings = set.intersection(*(set(rows) for rows in found.values()))
    if not settings or len(found) < len(texts) * len(corpora):
        return None
    cell_of = {place: [rows[s] for s in sorted(settings)] for place, rows in found.items()}
    many = len(settings) > 1
    spread = "and the range over them" if many else "and its 95 % interval"
    over = f"Geometric mean over {len(settings)} settings" if many else "One setting's ratio"
    return Panel(
        id="calibration",
        title="Calibration × corpus",
        note=f"{over} {spread}: rows are calibrated on, columns measured on. Lower is better.",
        alt="; ".join(
            f"{text} on {corpus} {_cell(rows)}" for (text, corpus), rows in cell_of.items()
        ),
        spec=_heat(cell_of),
    )


def architectures(groups: Sequence[Group]) -> Panel | None:
    """The same settings on several models, each against its own reference."""
    table: dict[str, dict[str, Row]] = defaultdict(dict)
    models = sorted({model for group in groups for model in group.models})
    if len(models) < 2:
        return None
    for group in groups:
        for row in group.quantized:
            record = row.record
            name = record.name.removeprefix(f"{record.model} ")
            earlier = table[name].get(record.model)
            if earlier is None or PPL_RATIO.get(row) < PPL_RATIO.get(earlier):
                table[name][record.model] = row
    shared = {name: rows for name, rows in table.items() if len(rows) > 1}
    if not shared:
        return None
    ordered = sorted(shared.items(), key=lambda item: min(map(PPL_RATIO.get, item[1].values())))
    apart = len(groups) > 1
    return Panel(
        id="architectures",
        title="Architectures",
        note=(
            "Perplexity ratio of each model to its own reference, with its 95 % interval. "
            + (
                "The models' tokens differ, so compare the order of settings within a model, not "
                "figures between models."
                if apart
                else "All models read the same tokens."
            )
        ),
        headings=("setting", *models),
        lines=[
            [name, *(_cell([rows[m]]) if m in rows else "" for m in models)]
            for name, rows in ordered[:40]
        ],
    )


def _heat(cells_: dict[tuple[str, str], list[Row]]) -> Spec:
    values: list[dict[str, Any]] = [
        {"calibration": text, "corpus": corpus, "ratio": _mean(rows), "text": _cell(rows, "\n")}
        for (text, corpus), rows in sorted(cells_.items())
    ]
    most = max(v["ratio"] for v in values)
    least = min(v["ratio"] for v in values)
    return {
        "height": {"step": 54},
        "data": {"values": values},
        "encoding": {
            "y": {"field": "calibration", "type": "nominal", "title": "calibrated on"},
            "x": {
                "field": "corpus",
                "type": "nominal",
                "title": "measured on",
                "axis": {"labelAngle": 0, "orient": "top"},
            },
        },
        "layer": [
            {
                "mark": {"type": "rect", "stroke": "var(--paper)", "strokeWidth": 2},
                "encoding": {
                    "color": {
                        "field": "ratio",
                        "type": "quantitative",
                        "legend": None,
                        "scale": {
                            "domain": [least, most],
                            "range": ["var(--heat-low)", "var(--heat-high)"],
                        },
                    }
                },
            },
            {
                "mark": {"type": "text", "lineBreak": "\n", "baseline": "middle", "dy": -7},
                "encoding": {"text": {"field": "text"}},
            },
        ],
    }


def _mean(rows: Sequence[Row]) -> float:
    return math.exp(sum(math.log(PPL_RATIO.get(row)) for row in rows) / len(rows))


def _cell(rows: Sequence[Row], apart: str = " ") -> str:
    if len(rows) == 1:
        span = numbers.interval(PPL_RATIO_LOW.get(rows[0]), PPL_RATIO_HIGH.get(rows[0]))
    else:
        ratios = [PPL_RATIO.get(row) for row in rows]
        span = numbers.interval(min(ratios), max(ratios))
    return numbers.ratio(_mean(rows)) + (f"{apart}({span})" if span else "")


def _setting(record: Record) -> tuple[str, ...]:
    options = sorted(record.options.items())
    calibration = record.config.get("calibration")
    # How much is drawn, and by which seed, is not the text's name.
    drawn = [calibration.get(n) for n in _DRAWN] if isinstance(calibration, Mapping) else []
    return (record.model, record.method, record.backend, repr(options), repr(drawn))
