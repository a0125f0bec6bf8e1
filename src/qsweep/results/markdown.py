"""``results.md``: the sweep on one page, for a wiki, a pull request or a terminal."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from qsweep.base import numbers as cells
from qsweep.base.version import __version__
from qsweep.evaluate.verdicts import expected_range
from qsweep.results import own_run
from qsweep.results.answers import best_lines
from qsweep.results.checks import check
from qsweep.results.labels import named_apart
from qsweep.results.markdown_table import _is_number, table
from qsweep.results.record import Record
from qsweep.results.rows import (
    OWN_RUN,
    counts,
    noise_floors,
    places,
    ranked,
    status_word,
    total_seconds,
)

_HEADINGS = (
    "trial", "bpw", "size GB", "ppl", "ratio (95 %)", "expected", "KLD", "p99 KLD", "top-1",
    "quality", "quality/GB", "verdict", "served by", "time",
)  # fmt: skip


def results_markdown(name: str, records: Sequence[Record], command: str = "") -> str:
    """The page of one sweep: what ran, a table per corpus and preset, what did not run and why."""
    records = named_apart(records)
    parts = [f"# {cells.markdown(name)}", _introduction(records, command)]
    parts += [_section(records, place) for place in places(records)]
    parts += [_own_run(records), _speed(records), _unfinished(records), _sanity(records)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(records: Sequence[Record], command: str) -> str:
    models = sorted({record["model"] for record in records})
    lines = [f"- model: {cells.markdown(', '.join(models))}"]
    if command:
        fence = "``" if "`" in command else "`"
        lines.append(f"- command: {fence}{cells.one_line(command)}{fence}")
    lines.append(f"- date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, qsweep {__version__}")
    lines.append(
        "- trials: " + ", ".join(f"{n} {status}" for status, n in counts(records).items() if n)
    )
    lines += [f"- {cells.markdown(line)}" for line in best_lines(records)]
    return "\n".join(lines)


def _section(records: Sequence[Record], place: tuple[str, str]) -> str:
    corpus, preset = place
    shown = []
    for record in ranked(records):
        for measurement in record.get("measurements") or []:
            if (measurement["corpus"], measurement["preset"]) == place:
                shown.append((record, measurement))
    facts = [measurement.get("facts") or {} for _, measurement in shown]
    floors = [floor for where, floor in noise_floors(records).items() if where[1:] == place]
    return "\n\n".join(
        [
            f"## {cells.markdown(corpus)}, preset {cells.markdown(preset)}",
            _protocol(facts, max(floors, default=None)),
            table(_HEADINGS, [_cells(*pair) for pair in shown]),
        ]
    )


def _protocol(facts: Sequence[dict[str, Any]], floor: float | None) -> str:
    # Rows may be measured in several ways; what differs between them is in their names.
    names = ("windows", "context", "stride", "tokens_scored", "bos", "dtype", "fingerprint")
    found = {n: list(dict.fromkeys(f[n] for f in facts if f.get(n) is not None)) for n in names}
    known = [
        f"{n.replace('_', ' ')} {' or '.join(map(str, values))}"
        for n, values in found.items()
        if values
    ]
    if floor is not None:
        known.append(f"noise floor of KLD {cells.divergence(floor)}")
    return cells.markdown("; ".join(known) or "as docs/protocol.md says") + "."


def _cells(record: Record, measurement: dict[str, Any]) -> list[str]:
    metrics, artifact = measurement["metrics"], record.get("artifact") or {}
    span = cells.interval(metrics.get("ppl_ratio_low"), metrics.get("ppl_ratio_high"))
    span = "" if record.get("reference") else span
    return [
        record["name"],
        cells.fixed(artifact.get("bpw"), 2),
        cells.gigabytes(artifact.get("size_gb")),
        cells.with_error(metrics.get("ppl"), metrics.get("ppl_stderr")),
        cells.ratio(metrics.get("ppl_ratio")) + (f" ({span})" if span else ""),
        cells.expected(expected_range(record)),
        cells.with_error(metrics.get("kld"), metrics.get("kld_stderr")),
        cells.significant(metrics.get("kld_p99"), 3),
        cells.percent(metrics.get("top1_agreement")),
        cells.fixed(metrics.get("quality"), 3),
        cells.significant(metrics.get("quality_per_gb"), 4),
        status_word(record, measurement),
        ", ".join(artifact.get("runtimes") or ()),
        cells.seconds(total_seconds(record)),
    ]


def _speed(records: Sequence[Record]) -> str:
    timed = [(record, record["speed"]) for record in ranked(records) if record.get("speed")]
    if not timed:
        return ""
    names = list(dict.fromkeys(n for _, speed in timed for n in speed if _is_number(speed[n])))
    lines = [
        [record["name"], *(_speed_cell(speed.get(n)) for n in names)] for record, speed in timed
    ]
    return "## Speed\n\n" + table(["trial", *names], lines)


def _speed_cell(value: float | None) -> str:
    whole = value is not None and math.isfinite(value) and value == int(value)
    return f"{value:.0f}" if whole else cells.significant(value, 4)


def _own_run(records: Sequence[Record]) -> str:
    found = own_run.lines(records)
    return (
        "\n\n".join([f"## {OWN_RUN}", own_run.NOTE, table(own_run.HEADINGS, found)])
        if found
        else ""
    )


def _unfinished(records: Sequence[Record]) -> str:
    lines = [
        f"- {record['status']}: {cells.markdown(record['name'])}: "
        f"{cells.markdown(record.get('reason') or 'no reason recorded')}"
        for record in ranked(records)
        if record["status"] != "finished"
    ]
    return "## Failed and skipped\n\n" + "\n".join(lines) if lines else ""


def _sanity(records: Sequence[Record]) -> str:
    if not any(record["status"] == "finished" for record in records):
        return ""
    violations = check(records)
    text = "\n".join(f"- **check:** {cells.markdown(line)}" for line in violations)
    holds = (
        "All checks hold: more bits are never worse beyond noise, 8 bits are close to the "
        "reference, the reference equals itself."
    )
    return "## Sanity\n\n" + (text or holds)
