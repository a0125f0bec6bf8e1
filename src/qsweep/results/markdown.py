"""``results.md``: the sweep on one page, for a wiki, a pull request or a terminal."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from qsweep.base import numbers
from qsweep.base.contents import is_number
from qsweep.base.version import __version__
from qsweep.results import own_run
from qsweep.results.answers import best_lines
from qsweep.results.checks import check
from qsweep.results.columns.derived import OWN_RUN
from qsweep.results.columns.views import headings, lines_of
from qsweep.results.comparable import facts_of
from qsweep.results.draws import pooled, singles
from qsweep.results.labels import with_distinct_names
from qsweep.results.markdown_table import table
from qsweep.results.model_names import dequantized_references
from qsweep.results.record import Record, Row
from qsweep.results.rows import counts, noise_floors, places, ranked
from qsweep.results.ties import notes, with_standings


def results_markdown(name: str, records: Sequence[Record], command: str = "") -> str:
    """The page of one sweep: what ran, a table per corpus and preset, what did not run and why."""
    records = with_distinct_names(pooled(records))
    parts = [f"# {numbers.markdown(name)}", _introduction(records, command)]
    parts += [_section(records, place) for place in places(records)]
    parts += [_own_run(records), _speed(records), _unfinished(records), _sanity(records)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(records: Sequence[Record], command: str) -> str:
    models = sorted({record.model for record in records})
    lines = [f"- model: {numbers.markdown(', '.join(models))}"]
    lines += [f"- {numbers.markdown(line)}" for line in dequantized_references(records)]
    if command:
        fence = "``" if "`" in command else "`"
        lines.append(f"- command: {fence}{numbers.one_line(command)}{fence}")
    lines.append(f"- date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, qsweep {__version__}")
    lines.append(
        "- trials: "
        + ", ".join(f"{n} {status}" for status, n in counts(singles(records)).items() if n)
    )
    lines += [f"- {numbers.markdown(line)}" for line in best_lines(records)]
    return "\n".join(lines)


def _section(records: Sequence[Record], place: tuple[str, str]) -> str:
    corpus, preset = place
    shown = with_standings(
        [
            Row(record, measurement, record.name)
            for record in ranked(records)
            for measurement in record.measurements
            if measurement.place == place
        ]
    )
    floors = [floor for where, floor in noise_floors(records).items() if where[1:] == place]
    return "\n\n".join(
        [
            f"## {numbers.markdown(corpus)}, preset {numbers.markdown(preset)}",
            _protocol(shown, max(floors, default=None)),
            table(headings("markdown", shown), lines_of(shown, "markdown")),
            *(numbers.markdown(f"{line[0].upper()}{line[1:]}.") for line in notes(shown)),
        ]
    )


def _protocol(rows: Sequence[Row], floor: float | None) -> str:
    # Rows may be measured in several ways; what differs between them is in their names.
    facts = [facts_of(row.measurement) for row in rows if row.measurement]
    names = (
        *("windows", "context", "stride", "tokens_scored", "bos", "dtype", "fingerprint"),
        "reference",
    )
    found = {n: list(dict.fromkeys(f[n] for f in facts if f.get(n) is not None)) for n in names}
    known = [
        f"{n.replace('_', ' ')} {' or '.join(map(str, values))}"
        for n, values in found.items()
        if values
    ]
    if floor is not None:
        known.append(f"noise floor of KLD {numbers.divergence(floor)}")
    return numbers.markdown("; ".join(known) or "as docs/protocol.md says") + "."


def _speed(records: Sequence[Record]) -> str:
    timed = [(record, record.speed.figures) for record in ranked(records) if record.speed]
    if not timed:
        return ""
    names = list(dict.fromkeys(n for _, speed in timed for n in speed if is_number(speed[n])))
    lines = [[r.name, *(_speed_cell(speed.get(n)) for n in names)] for r, speed in timed]
    return "## Speed\n\n" + table(["trial", *names], lines)


def _speed_cell(value: float | None) -> str:
    whole = value is not None and math.isfinite(value) and value == int(value)
    return f"{value:.0f}" if whole else numbers.significant(value, 4)


def _own_run(records: Sequence[Record]) -> str:
    found = own_run.lines(records)
    return (
        "\n\n".join([f"## {OWN_RUN}", own_run.NOTE, table(headings("own_run"), found)])
        if found
        else ""
    )


def _unfinished(records: Sequence[Record]) -> str:
    lines = [
        f"- {record.status}: {numbers.markdown(record.name)}: "
        f"{numbers.markdown(record.reason or 'no reason recorded')}"
        for record in ranked(records)
        if not record.finished
    ]
    return "## Failed and skipped\n\n" + "\n".join(lines) if lines else ""


def _sanity(records: Sequence[Record]) -> str:
    if not any(record.finished for record in records):
        return ""
    violations = check(records)
    text = "\n".join(f"- **check:** {numbers.markdown(line)}" for line in violations)
    holds = (
        "All checks hold: more bits are never worse beyond noise, 8 bits are close to the "
        "reference, the reference equals itself."
    )
    return "## Sanity\n\n" + (text or holds)
