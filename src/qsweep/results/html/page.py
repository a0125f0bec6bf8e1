"""The page: one HTML file with everything in it, readable from a file and without a network."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from qsweep.base.version import __version__
from qsweep.results import own_run
from qsweep.results.arrays import FindArrays, stored_arrays
from qsweep.results.beside import beside_others
from qsweep.results.columns.derived import OWN_RUN
from qsweep.results.columns.views import headings
from qsweep.results.html import across, capabilities, costs, long_answers, options, served
from qsweep.results.html.answer import Sentence, answers, nothing
from qsweep.results.html.assignment import assignments, page_domain
from qsweep.results.html.bits_map import Domain
from qsweep.results.html.calibration_size import calibration_size
from qsweep.results.html.data import Group, SweepData, groups, merge, why_not_comparable
from qsweep.results.html.draws import spread
from qsweep.results.html.equal_size import equal_size
from qsweep.results.html.health import health
from qsweep.results.html.overview import quality_against_size
from qsweep.results.html.packing import packed
from qsweep.results.html.panel import Panel
from qsweep.results.html.table import Table, table
from qsweep.results.html.tensors import tensors
from qsweep.results.html.theme import config
from qsweep.results.html.tokens import divergence_by_token
from qsweep.results.html.vega import script
from qsweep.results.ties import notes

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Section:
    """What is shown of trials that may be compared."""

    group: Group
    sentences: Sequence[Sentence]
    overview: Panel | None
    table: Table
    notes: Sequence[str]
    panels: Sequence[Panel]


def render(sweeps: Sequence[SweepData], find: FindArrays = stored_arrays) -> str:
    """The page of one or more sweeps."""
    records = merge(sweeps, find)
    found = groups(records)
    bits = page_domain(found)
    sections = [_section(group, find, bits) for group in found]
    models = across.architectures(found)
    names = [sweep.name for sweep in sweeps]
    charts = [
        panel.spec
        for section in sections
        for panel in [section.overview, *section.panels]
        if panel is not None and panel.spec is not None
    ]
    behaviour = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    vega = script() if charts else ""
    return _environment().get_template("page.html.j2").render(
        title=", ".join(names),
        names=names,
        sections=sections,
        across=models,
        apart=_apart(found),
        nothing="" if found else nothing(records),
        health=health(sweeps, records, found),
        own_run={"title": OWN_RUN, "note": own_run.NOTE, "headings": headings("own_run")},
        charts=json.dumps(packed(charts), allow_nan=False, ensure_ascii=False) if charts else "",
        config=config(),
        script=vega,
        style=(_TEMPLATES / "style.css").read_text(encoding="utf-8"),
        behaviour=behaviour,
        allowed=Markup(" ".join(_allowance(text) for text in (vega, behaviour) if text)),  # noqa: S704
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        version=__version__,
    )  # fmt: skip


def _section(group: Group, find: FindArrays, bits: Domain | None) -> Section:
    rows = beside_others(group.rows, find)
    panels = [
        spread(group),
        equal_size(rows),
        options.bits(group),
        options.group_size(group),
        options.desc_act(group),
        across.calibration(group),
        calibration_size(group),
        capabilities.panel(group),
        capabilities.changed_answers(group),
        long_answers.panel(group),
        served.stages(group),
        served.quarters(group),
        costs.speed(group),
        *divergence_by_token(group, find),
        costs.layer_loss(group),
        *assignments(group, bits),
        *tensors(group),
        costs.time_and_memory(group),
    ]
    return Section(
        group=group,
        sentences=answers(group),
        overview=quality_against_size(group),
        table=table(group, rows),
        notes=notes(rows),
        panels=[panel for panel in panels if panel is not None],
    )


def _apart(found: Sequence[Group]) -> list[tuple[str, str]]:
    return [(group.title, why_not_comparable(found[0], group)) for group in found[1:]]


def _allowance(text: str) -> str:
    # The page's policy names its two scripts by their hashes: no other one can run in it.
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["in_script"] = in_script
    return environment


def in_script(text: str) -> Markup:
    """JSON that may stand inside a script element: nothing in it can end the element."""
    for character, code in (
        ("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"),
        ("\u2028", "\\u2028"), ("\u2029", "\\u2029"),
    ):  # fmt: skip
        text = text.replace(character, code)
    return Markup(text)  # noqa: S704 - escaped above
