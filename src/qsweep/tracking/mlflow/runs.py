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
from qsweep.base.numbers import one_line
from qsweep.base.schema import flat
from qsweep.evaluate.verdicts import judged
from qsweep.results.answers import answers, best_lines
from qsweep.results.labels import named_apart
from qsweep.results.model_names import models_apart
from qsweep.results.record import Record
from qsweep.results.rows import (
    OWN_RUN,
    counts,
    only_own_run,
    primary,
    primary_metric,
    ranked,
    total_seconds,
)

# Older servers refuse longer ones.
_LONGEST_PARAM, _LONGEST_TAG = 500, 5000
# The preset that needs no name: stable metric names must not depend on what else was measured.
_DEFAULT_PRESET = "gptq"
# So that only runs with results are FINISHED: a skipped trial never was one.
_MLFLOW_STATUS = {"finished": "FINISHED", "failed": "FAILED", "skipped": "KILLED"}
_OPTION_NAMES = ("bits", "group_size", "desc_act", "act_group_aware", "sym", "type", "damp_percent")
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
    """A trial as a child run."""
    record = judged(record)
    figures = dict(_figures(record))
    odd = {name: value for name, value in figures.items() if not math.isfinite(value)}
    ended = milliseconds(record.get("ended"))
    started = milliseconds(record.get("started"))
    if started is None and ended is not None:
        spent = record.get("seconds") or total_seconds(record) or 0
        started = ended - round(1000 * spent)
    tags = {
        **_trial_tags(record),
        # Charts cannot draw these, and some stores refuse them; a filter still finds them.
        "nonfinite_metrics": ", ".join(f"{name}={value}" for name, value in sorted(odd.items())),
    }
    return Run(
        name=record["name"],
        status=_MLFLOW_STATUS.get(record["status"], "FAILED"),
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
    number = counts(records)
    good = number["finished"] and not number["failed"]
    metrics = [Point(f"trials_{status}", value) for status, value in number.items()]
    tags = {**_sweep_tags(name, command, records), "status": "finished" if complete else "killed"}
    named = named_apart(records)
    # An earlier run of the sweep may have had a best; what it is now must stand in its place.
    tags |= {"answer": "; ".join(best_lines(named)), "best_trial": "none", "best_verdict": "none"}
    # A single figure speaks for the sweep only where there is a best, of a single model.
    found = answers(named)
    if len(found) == 1 and found[0].is_best:
        winner = found[0].record
        tags |= {
            "best_trial": winner["name"],
            "best_verdict": (primary(winner) or {}).get("verdict"),
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
    simple = (
        "quantize_s",
        "shared_s",
        "evaluate_s",
        "peak_memory_gb",
        "peak_host_memory_gb",
        "seconds",
    )
    named = [
        ("", (primary(record) or {}).get("metrics") or {}),
        ("", record.get("artifact") or {}),
        ("", {name: record.get(name) for name in simple}),
        ("", record.get("speed") or {}),
    ]
    for measurement in record.get("measurements") or []:
        prefix = metric_prefix(measurement["corpus"], measurement["preset"])
        named.append((prefix, measurement["metrics"]))
    for task in record.get("tasks") or ():
        named.append((f"task/{task['name']}/", {k: task.get(k) for k in ("score", "p")}))
    for capability, kept in (record.get("capabilities") or {}).items():
        names = ("retention", "retention_low", "retention_high", "difference", "p")
        named.append((f"capability/{capability}/", {k: kept.get(k) for k in names}))
    for prefix, values in named:
        for name, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                yield f"{prefix}{name}", float(value)


def _params(record: Record) -> Iterator[tuple[str, str]]:
    options = record.get("options") or {}
    plain = {k: record.get(k) for k in ("model", "method", "backend", "calibration")}
    facts = {
        f"{metric_prefix(m['corpus'], m['preset'])}{name}": value
        for m in record.get("measurements") or []
        for name, value in (m.get("facts") or {}).items()
        if isinstance(value, (str, int, float, bool))
    }
    config = {
        name: value
        for name, value in flat(record.get("config") or {})
        if name not in _OPTION_NAMES and name not in plain
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
    measurement = primary(record)
    options = record.get("options") or {}
    none = measurement.get("no_verdict") if measurement else None
    if reason := only_own_run(record):
        none = f"{OWN_RUN}: {reason}"
    shown = ("status", "model", "method", "backend", "calibration", "sweep", "reason", "device")
    return {
        **{name: record.get(name) for name in shown},
        **{name: options.get(name) for name in ("bits", "group_size", "type")},
        # Said, where there is none: an earlier record's may stand there.
        "verdict": "none" if none else measurement.get("verdict") if measurement else None,
        "no_verdict": none,
        "suffers_most": (record.get("suffers_most") or {}).get("capability"),
        "reference": "true" if record.get("reference") else None,
        "qsweep.key": record["key"],
        "mlflow.source.name": record.get("command"),
        "mlflow.source.git.commit": (record.get("environment") or {}).get("git_commit"),
        "mlflow.note.content": record.get("reason"),
    }


def _sweep_tags(name: str, command: str, records: Sequence[Record]) -> dict[str, Any]:
    commits = {(record.get("environment") or {}).get("git_commit") for record in records}
    return {
        "sweep": name,
        "model": ", ".join(sorted({record["model"] for record in records})),
        "method": ", ".join(sorted({record["method"] for record in records})),
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
    for name in ("quality_per_gb", "quality", "ppl", "ppl_ratio", "kld", "top1_agreement"):
        value = primary_metric(record, name)
        if value is not None:
            yield name, value
    for name in ("size_gb", "bpw"):
        value = (record.get("artifact") or {})[name]
        if value is not None:
            yield name, value


def _by_bits(records: Iterable[Record]) -> Iterator[Point]:
    # A curve per method, with bits as the step: what a sweep is mostly made to see.
    seen = set()
    for record in ranked(models_apart(list(records))):
        bits = (record.get("options") or {}).get("bits")
        place = (record["model"], record["method"], bits)
        value = primary_metric(record, "ppl_ratio")
        if not isinstance(bits, int) or value is None or place in seen or record.get("implied"):
            continue
        seen.add(place)
        prefix = _clean(f"by_bits/{record['model']} {record['method']}")
        time_ms = milliseconds(record.get("ended"))
        for name in ("ppl_ratio", "kld", "quality_per_gb"):
            figure = primary_metric(record, name)
            if figure is not None and math.isfinite(figure):
                yield Point(f"{prefix}/{name}", figure, bits, time_ms)


def _texts(record: Record) -> dict[str, str]:
    import yaml

    config = yaml.safe_dump(record.get("config") or {}, sort_keys=False, allow_unicode=True)
    return {
        "config.yaml": config,
        "environment.json": json.dumps(record.get("environment") or {}, indent=1, sort_keys=True),
        "record.json": json.dumps(record, indent=1, sort_keys=True),
    }


def _files(record: Record) -> dict[str, Path]:
    files = {"trial.log": Path(record["log"])} if record.get("log") else {}
    for measurement in record.get("measurements") or []:
        if measurement.get("file"):
            name = file_word(str(measurement["corpus"]))
            place = f"measurements/{name}-{measurement['preset']}"
            files[place] = Path(measurement["file"])
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
