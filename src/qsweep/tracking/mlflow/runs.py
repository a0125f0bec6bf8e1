"""What a record looks like as a run: names, params, metrics, tags, files. Pure, and no MLflow."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from qsweep.base.names import file_word
from qsweep.base.numbers import counted, one_line
from qsweep.base.schema import flat
from qsweep.results.answers import answers, best_lines
from qsweep.results.columns.column import TABLE
from qsweep.results.columns.table import (
    BITS,
    COVERS,
    DRAWS,
    GROUP_SIZE,
    NO_VERDICT,
    PPL_RATIO,
    TYPE,
    VERDICT,
)
from qsweep.results.columns.views import figure, numbers_of
from qsweep.results.draws import pooled, singles
from qsweep.results.labels import with_distinct_names
from qsweep.results.model_names import with_distinct_models
from qsweep.results.record import Record, Row
from qsweep.results.record_file import content_of
from qsweep.results.rows import counts, ranked

# Older servers refuse longer ones.
_LONGEST_PARAM, _LONGEST_TAG = 500, 5000
# The preset that needs no name: stable metric names must not depend on what else was measured.
_DEFAULT_PRESET = "paper"
# So that only runs with results are FINISHED: a skipped trial never was one.
_MLFLOW_STATUS = {"finished": "FINISHED", "failed": "FAILED", "skipped": "KILLED"}
_OPTION_NAMES = (
    "format",
    "container",
    "bits",
    "group_size",
    "desc_act",
    "act_group_aware",
    "sym",
    "type",
    "damp_percent",
)
_PARENT_FILES = (".csv", ".md", ".html", ".png", ".svg", ".yaml")


@dataclass(frozen=True)
class Point:
    """One value of a metric; ``time_ms`` None is the moment of logging."""

    name: str
    value: float
    step: int = 0
    time_ms: int | None = None


@dataclass(frozen=True)
class Run:
    """A run of the tracker. ``texts`` and ``files`` are artifacts by their path in the run."""

    name: str
    status: str
    started_ms: int | None = None
    ended_ms: int | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[Point] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)


def trial_run(record: Record) -> Run:
    """A trial as a child run; so is a setting of several draws, beside the runs of these."""
    figures = dict(_figures(record))
    odd = {name: value for name, value in figures.items() if not math.isfinite(value)}
    ended = milliseconds(record.ended)
    started = milliseconds(record.started)
    if started is None and ended is not None:
        spent = record.seconds or record.total_seconds or 0
        started = ended - round(1000 * spent)
    tags = {
        **_trial_tags(record),
        # Charts cannot draw these, and some stores refuse them; a filter still finds them.
        "nonfinite_metrics": ", ".join(f"{name}={value}" for name, value in sorted(odd.items())),
    }
    number = len(record.draws or ())
    mean = f" (mean of {counted(number, 'draw')})" if number else ""
    return Run(
        name=f"{record.name}{mean}",
        status=_MLFLOW_STATUS.get(record.status, "FAILED"),
        started_ms=started,
        ended_ms=ended,
        params=dict(_params(record)),
        tags=_tags(tags),
        metrics=[
            Point(_clean(name), value, time_ms=ended)
            for name, value in figures.items()
            if name not in odd
        ],
        texts=_texts(record),
        files=_files(record),
    )


def sweep_run(
    name: str, command: str, records: Sequence[Record], directory: Path, *, complete: bool
) -> Run:
    """The sweep as the parent run: the best values, counts, and ratio by bits for the charts.

    Its status is what the exit code says: FAILED if a trial failed or none finished; KILLED if the
    sweep did not come to its end (``complete`` false).
    """
    number = counts(singles(records))
    good = number["finished"] and not number["failed"]
    metrics = [Point(f"trials_{status}", value) for status, value in number.items()]
    tags = {**_sweep_tags(name, command, records), "status": "finished" if complete else "killed"}
    records = pooled(records)
    named = with_distinct_names(records)
    # An earlier run of the sweep may have had a best; what it is now must stand in its place.
    tags |= {"answer": "; ".join(best_lines(named)), "best_trial": "none", "best_verdict": "none"}
    # A single figure speaks for the sweep only where there is a best, of a single model.
    found = answers(named)
    if len(found) == 1 and found[0].is_best:
        winner = found[0].record
        tags |= {
            "best_trial": winner.name,
            "best_verdict": figure(winner, VERDICT),
        }
        metrics += [Point(f"best_{k}", v) for k, v in _headline(winner) if math.isfinite(v)]
    return Run(
        name=name,
        status=("FINISHED" if good else "FAILED") if complete else "KILLED",
        params={},
        tags=_tags(tags),
        metrics=metrics + list(_by_bits(records)),
        files={
            path.name: path
            for path in sorted(directory.glob("*"))
            if path.suffix in _PARENT_FILES and path.is_file()
        },
    )


def metric_prefix(corpus: str, preset: str) -> str:
    """``python_docs/``, or ``python_docs/strided/`` for all but the default preset."""
    return f"{corpus}/" if preset == _DEFAULT_PRESET else f"{corpus}/{preset}/"


def _figures(record: Record) -> Iterator[tuple[str, float]]:
    row = Row(record, record.primary)
    for of in ("measurement", "artifact", "trial", "speed"):
        yield from numbers_of(row, of)
    named: list[tuple[str, Any, str]] = [
        (metric_prefix(*m.place), Row(record, m), "measurement") for m in record.measurements
    ]
    named += [(f"task/{task.name}/", task, "task") for task in record.tasks or ()]
    kept = (record.capabilities or {}).items()
    named += [(f"capability/{name}/", found, "capability") for name, found in kept]
    for prefix, holder, of in named:
        for name, value in numbers_of(holder, of):
            yield f"{prefix}{name}", value


def _params(record: Record) -> Iterator[tuple[str, str]]:
    options = record.options
    plain = {k: getattr(record, k) for k in ("model", "method", "backend", "calibration")}
    facts = {
        f"{metric_prefix(*m.place)}{name}": value
        for m in record.measurements
        for name, value in m.facts.items()
        if isinstance(value, (str, int, float, bool))
    }
    config = {
        name: value
        for name, value in flat(record.config)
        if name not in _OPTION_NAMES and name not in plain and not name.startswith("format.")
    }
    # What is given in the configuration but ignored by the method must not look as if it counted:
    # an option is shown by its effective value or not at all.
    for name, value in {**config, **facts, **plain, **options}.items():
        if value is not None:
            text = str(value)
            if len(text) > _LONGEST_PARAM:
                note = f"… ({len(text)} characters, all in config.yaml)"
                text = text[: _LONGEST_PARAM - len(note)] + note
            yield _clean(name), text


def _trial_tags(record: Record) -> dict[str, Any]:
    none = figure(record, NO_VERDICT)
    shown = ("status", "model", "method", "backend", "calibration", "sweep", "reason", "device")
    return {
        **{name: getattr(record, name) for name in shown},
        **{column.name: figure(record, column) for column in (BITS, GROUP_SIZE, TYPE)},
        # Said, where there is none: an earlier record's may stand there.
        "verdict": "none" if none else figure(record, VERDICT),
        "no_verdict": none,
        "suffers_most": record.suffers_most.capability if record.suffers_most else None,
        "reference": "true" if record.reference else None,
        DRAWS.name: figure(record, DRAWS),
        COVERS.name: figure(record, COVERS),
        "pools": " ".join(draw.key for draw in record.draws or ()),
        "qsweep.key": record.key,
        "mlflow.source.name": record.command,
        "mlflow.source.git.commit": record.environment.get("git_commit"),
        "mlflow.note.content": record.reason,
    }


def _sweep_tags(name: str, command: str, records: Sequence[Record]) -> dict[str, Any]:
    commits = {record.environment.get("git_commit") for record in records}
    return {
        "sweep": name,
        "model": ", ".join(sorted({record.model for record in records})),
        "method": ", ".join(sorted({record.method for record in records})),
        "command": command,
        "mlflow.source.name": command,
        "mlflow.source.git.commit": commits.pop() if len(commits) == 1 else None,
        "mlflow.note.content": _description(name, command, records),
    }


def _description(name: str, command: str, records: Sequence[Record]) -> str:
    # The UI renders a run's description as Markdown, tables included.
    from qsweep.results.markdown import results_markdown

    page = results_markdown(name, records, command)
    while len(page) > _LONGEST_TAG - 40 and "\n## " in page:
        page = page[: page.rindex("\n## ")] + "\n(more in results.md)"
    return page if len(page) <= _LONGEST_TAG else "See results.md among the artifacts."


def _headline(record: Record) -> Iterator[tuple[str, float]]:
    for column in TABLE:
        if column.best and (value := figure(record, column)) is not None:
            yield column.name, value


def _by_bits(records: Iterable[Record]) -> Iterator[Point]:
    # A curve per method, with bits as the step: what a sweep is mostly made to see.
    seen = set()
    for record in ranked(with_distinct_models(list(records))):
        bits, value = figure(record, BITS), figure(record, PPL_RATIO)
        place = (record.model, record.method, bits)
        if not isinstance(bits, int) or value is None or place in seen or record.implied:
            continue
        seen.add(place)
        prefix = _clean(f"by_bits/{record.model} {record.method}")
        for column in TABLE:
            value = figure(record, column) if column.by_bits else None
            if value is not None and math.isfinite(value):
                yield Point(f"{prefix}/{column.name}", value, bits, milliseconds(record.ended))


def _texts(record: Record) -> dict[str, str]:
    import yaml

    config = yaml.safe_dump(dict(record.config), sort_keys=False, allow_unicode=True)
    return {
        "config.yaml": config,
        "environment.json": json.dumps(dict(record.environment), indent=1, sort_keys=True),
        "record.json": json.dumps(content_of(record), indent=1, sort_keys=True),
    }


def _files(record: Record) -> dict[str, Path]:
    if record.draws is not None:
        return {}  # each draw's run has its own
    files = {"trial.log": Path(record.log)} if record.log else {}
    for measurement in record.measurements:
        if measurement.file:
            place = f"measurements/{file_word(measurement.corpus)}-{measurement.preset}"
            files[place] = Path(measurement.file)
            served = (run for run in measurement.served or () if run.file)
            files |= {f"{place}-{run.name}": Path(str(run.file)) for run in served}
    return files


def _tags(values: Mapping[str, Any]) -> dict[str, str]:
    # Only descriptions keep their line breaks.
    return {
        name: (str(value) if name == "mlflow.note.content" else one_line(value))[:_LONGEST_TAG]
        for name, value in values.items()
        if value is not None and value != ""
    }


def _clean(name: str) -> str:
    # What MLflow takes in a name; it also refuses names that are no tidy relative path.
    words = [re.sub(r"[^\w.\- ]", "_", part) for part in name.split("/")]
    return "/".join(word for word in words if word.strip("."))[:250]


def milliseconds(moment: str | None) -> int | None:
    """An ISO 8601 moment in milliseconds since 1970; None if there is none or it is no moment."""
    try:
        return round(datetime.fromisoformat(moment).timestamp() * 1000) if moment else None
    except ValueError:
        return None
