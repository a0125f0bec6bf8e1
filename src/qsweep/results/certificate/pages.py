"""A certificate as Markdown, as one HTML page, and as JSON. Pure."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsweep.base import numbers
from qsweep.results.certificate.certificate import Certificate, Line, in_unit
from qsweep.results.markdown_table import table

HEADINGS = (
    "measure", "worse by (one-sided 95 % bounds)", "margin", "decision", "trial against reference",
    "measured on", "decided by",
)  # fmt: skip
NOTE = (
    "A measure is accepted where the whole one-sided 95 % bound of its loss is within the margin, and "
    "rejected where the bound on the other side is beyond it. All are accepted together at 5 % by "
    "intersection and union (Berger 1982), with no correction; each rejection has 5 % of its own. "
    "Numbers of windows and samples would decide four times out of five, if the trial is what was "
    "measured."
)
_TEMPLATES = Path(__file__).parent / "templates"
# A picture of an interval goes from and to so many margins.
_FROM, _TO = -0.75, 2.0


def markdown(found: Certificate) -> str:
    """One page of Markdown."""
    facts = [*found.facts, *((f"SHA-256 of {name}", value) for name, value in found.files)]
    parts = [
        f"# Certificate of {numbers.markdown(found.trial.name)}",
        f"**{numbers.markdown(found.sentence)}.**",
        table(HEADINGS, [_cells(line) for line in found.lines], figures=False),
        NOTE,
        "## Of what",
        "\n".join(f"- {name}: {numbers.markdown(value)}" for name, value in facts),
        "\n".join(f"- {numbers.markdown(names)}: of {identity}" for names, identity in found.rests),
        "## Made again by",
        "```bash\n" + "\n".join(found.commands) + "\n```",
        "## What it does not cover",
        "\n".join(f"- {numbers.markdown(line)}" for line in found.not_covered),
        f"{found.made}",
    ]
    return "\n\n".join(parts) + "\n"


def html(found: Certificate) -> str:
    """One page of HTML, with everything in it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("certificate.html.j2").render(
        found=found,
        note=NOTE,
        lines=[{"line": line, "cells": _cells(line), "bar": _bar(line)} for line in found.lines],
    )


def json_of(found: Certificate) -> dict[str, Any]:
    """For machines: losses and bounds in the unit of the margin, null where there is no bound."""
    return {
        "outcome": found.outcome,
        "trial": found.trial.key,
        "name": found.trial.name,
        "against": found.base,
        "measures": [_json_line(line) for line in found.lines],
        "facts": dict(found.facts),
        "files": dict(found.files),
        "commands": list(found.commands),
        "not_covered": list(found.not_covered),
        "made": found.made,
    }


def _json_line(line: Line) -> Mapping[str, Any]:
    judged, measure = line.judged, line.measure
    scale = {
        name: in_unit(getattr(judged, name), measure.unit) for name in ("value", "low", "high")
    }
    return {
        "measure": measure.name,
        "outcome": judged.outcome,
        "unit": measure.unit,
        "margin": line.margin.amount,
        "worse_by": scale["value"],
        "low": scale["low"] if math.isfinite(judged.low) else None,
        "high": scale["high"] if math.isfinite(judged.high) else None,
        "figures": measure.figures,
        "measured_on": measure.measured_on,
        measure.units: judged.count,
        "needed": judged.needed,
        "towards": judged.towards,
        "identity": measure.identity,
    }


def _cells(line: Line) -> list[str]:
    judged, measure = line.judged, line.measure
    sampled = f"{measure.measured_on}, {judged.count} {measure.units}"
    sampled += f", {measure.how}" if measure.how else ""
    return [
        measure.name,
        _worse_by(line),
        str(line.margin),
        judged.outcome,
        measure.figures,
        sampled,
        line.needed,
    ]


def _worse_by(line: Line) -> str:
    judged, unit = line.judged, line.measure.unit
    value = _plain(in_unit(judged.value, unit))
    if not (math.isfinite(judged.low) and math.isfinite(judged.high)):
        return f"{value} {unit} (no bounds)"
    low, high = (_plain(in_unit(end, unit)) for end in (judged.low, judged.high))
    return f"{value} {unit} ({low} to {high})"


def _plain(value: float) -> str:
    # 0 only where it is exactly that.
    return numbers.significant(value, 3 if abs(value) >= 0.1 else 2)


def _bar(line: Line) -> dict[str, float] | None:
    """Where value, bounds and margin lie in the picture, from 0 to 1; None where there are none."""
    judged, margin = line.judged, line.judged.margin
    if not (math.isfinite(judged.low) and math.isfinite(judged.high)) or margin <= 0:
        return None
    places = {"value": judged.value, "low": judged.low, "high": judged.high, "zero": 0.0}

    def at(loss: float) -> float:
        return min(max((loss / margin - _FROM) / (_TO - _FROM), 0.0), 1.0)

    return {name: at(loss) for name, loss in places.items()} | {"margin": at(margin)}
