"""From sweeps' records to what a page shows: trials grouped by what may be drawn together."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeGuard

from qsweep.evaluate.verdicts import judged
from qsweep.results.comparable import IDENTITY, apart, measured_by
from qsweep.results.labels import labelled, numbered, told_apart
from qsweep.results.model_names import models_apart
from qsweep.results.record import Record
from qsweep.results.record_file import is_measurement, is_record, with_preset_names_now
from qsweep.results.rows import Row, primary, rows

_TEXTS = ("name", "model", "method", "backend")
# A trial that failed or was skipped has no measurement; it belongs to no group.
_NOTHING: tuple[Any, ...] = ()


@dataclass(frozen=True)
class SweepData:
    """A sweep as it was found: its records, how it was started, and what could not be read."""

    name: str
    command: str
    records: list[Record]
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Group:
    """Trials measured alike, on the same tokens: all of them may stand on one axis.

    ``apart`` says what sets it apart from others of the same models, corpus and preset.
    """

    facts: dict[str, Any]
    records: list[Record]
    apart: str = ""

    @cached_property
    def rows(self) -> list[Row]:
        """A row per trial, corpus and preset, best quality per GB first."""
        several = len(self.models) > 1
        methods = {(r["method"], r["backend"]) for r in self.records}
        twice = {m for m, b in methods if sum(m == other for other, _ in methods) > 1}
        found = []
        for row in rows(self.records):
            method = str(row["method"])
            series = f"{method} ({row['backend']})" if method in twice else method
            series = "reference" if row.get("reference") else series
            name = str(row["name"])
            label = name if several else name.removeprefix(f"{row['model']} ")
            found.append({**row, "label": label, "series": series})
        return _told_apart(found, {str(r["key"]): r for r in self.records})

    @cached_property
    def primary_rows(self) -> list[Row]:
        """One row per finished trial: the measurement that its verdict rests on.

        What ran for a check alone is in the table, and drawn nowhere.
        """
        return [
            row
            for row in self.rows
            if row.get("primary")
            and is_finite(row.get("ppl"))
            and (row.get("reference") or not row.get("implied"))
        ]

    @cached_property
    def quantized(self) -> list[Row]:
        """The primary rows that have a ratio to their reference, the reference's own left out.

        A reference that predicts nothing is none, and what is compared with it is not drawn.
        """
        return [
            row
            for row in self.primary_rows
            if not row.get("reference")
            and not row.get("no_verdict")
            and is_finite(row.get("ppl_ratio"))
        ]

    @cached_property
    def no_verdicts(self) -> list[str]:
        """Why models have no verdict, a line for each that has none."""
        found = [(row["model"], row["no_verdict"]) for row in self.primary_rows]
        return [f"{model}: {why}" for model, why in dict.fromkeys(found) if why]

    @cached_property
    def named(self) -> list[Record]:
        """The records, called as their rows are."""
        labels = {str(row["key"]): row["label"] for row in self.rows}
        return [{**record, "name": labels[str(record["key"])]} for record in self.records]

    @property
    def models(self) -> list[str]:
        """The models in it."""
        return sorted({str(record["model"]) for record in self.records})

    @property
    def corpus(self) -> str:
        """What the verdicts rest on."""
        measurement = primary(self.records[0])
        return str(measurement["corpus"]) if measurement else ""

    @property
    def title(self) -> str:
        """Models, corpus and preset in a few words, and what else others of these do not share."""
        how = f"{self.facts.get('preset') or 'paper'}{self.apart and f', {self.apart}'}"
        return f"{', '.join(self.models)} on {self.corpus} ({how})"


def merge(sweeps: Iterable[SweepData]) -> list[Record]:
    """The records of all sweeps; a trial that several of them hold is there once, naming them.

    Models of one name are called by their paths.
    """
    found: dict[str, Record] = {}
    for sweep in sweeps:
        for record in sweep.records:
            if (earlier := found.get(record["key"])) is None:
                found[record["key"]] = {**record, "sweep": sweep.name}
            else:
                if sweep.name not in earlier["sweep"].split(", "):
                    earlier["sweep"] += f", {sweep.name}"
                # Asked for once is asked for.
                earlier["implied"] = bool(earlier.get("implied") and record.get("implied"))
    return [judged(record) for record in models_apart(list(found.values()))]


def groups(records: Iterable[Record]) -> list[Group]:
    """Finished trials by what they may be compared with, the largest group first."""
    found: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        if (key := identity(record)) != _NOTHING:
            found.setdefault(key, []).append(record)
    made = [Group(dict(zip(IDENTITY, key, strict=True)), held) for key, held in found.items()]
    alike: dict[str, list[Group]] = {}
    for group in made:
        alike.setdefault(group.title, []).append(group)
    named = [one for same in alike.values() for one in _named_apart(same)]
    return sorted(named, key=lambda group: (-len(group.records), group.title))


def _named_apart(same: Sequence[Group]) -> Sequence[Group]:
    if len(same) == 1:
        return same
    words = apart([primary(group.records[0]) or {} for group in same])
    return [replace(group, apart=word) for group, word in zip(same, words, strict=True)]


def identity(record: Record) -> tuple[Any, ...]:
    """What a trial's figures may be compared by; empty for a trial without figures."""
    measurement = primary(record)
    if record["status"] != "finished" or measurement is None:
        return _NOTHING
    return measured_by(measurement)


def why_apart(first: Group, second: Group) -> str:
    """Why two groups are not comparable, in a few words."""
    ours, theirs = first.facts, second.facts
    reasons = []
    if ours["protocol"] != theirs["protocol"]:
        reasons.append(f"protocol {ours['protocol']} against {theirs['protocol']}")
    if ours["preset"] != theirs["preset"]:
        reasons.append(f"preset {ours['preset']} against {theirs['preset']}")
    if first.corpus != second.corpus:
        reasons.append(f"corpus {first.corpus} against {second.corpus}")
    for name in ("context", "windows", "stride", "bos", "dtype", "device_type"):
        if ours[name] != theirs[name]:
            word = name.replace("_", " ")
            reasons.append(f"{word} {ours[name] or 'none'} against {theirs[name] or 'none'}")
    if not reasons or set(first.models) != set(second.models):
        same = first.corpus == second.corpus
        if ours["fingerprint"] != theirs["fingerprint"] and same:
            reasons.append("other tokens: the tokenizer or the text differs")
    return "; ".join(reasons) or "their measurements differ"


def normalised(content: Any) -> Record | None:
    """A record with every field that a page reads, None for what is no record at all.

    Older versions wrote fewer fields, and a file may hold anything.
    """
    if not is_record(content):
        return None
    record = with_preset_names_now(content)
    for name in _TEXTS:
        record[name] = str(record.get(name) or "unknown")
    for name in ("artifact", "speed"):
        record.setdefault(name, None)
    for name in ("options", "environment", "config"):
        record[name] = record.get(name) or {}
    record["measurements"] = [
        {**m, "facts": m.get("facts") or {}}
        for m in filter(is_measurement, record.get("measurements") or [])
    ]
    if record["measurements"] and not any(m.get("primary") for m in record["measurements"]):
        record["measurements"][0]["primary"] = True
    return record


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that can be drawn."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def varied(rows_: Sequence[Row], name: str) -> list[Any]:
    """The values of an option that occur in rows, numbers in their order; empty if it is one."""
    values = {row.get(name) for row in rows_} - {None}
    if len(values) < 2:
        return []
    return sorted(values, key=lambda v: (isinstance(v, str), v if is_finite(v) else 0, str(v)))


def _told_apart(found: list[Row], records: dict[str, Record]) -> list[Row]:
    # By what else they differ in, and only where that is nothing, by the sweep.
    labels = labelled({str(row["key"]): row["label"] for row in found}, records)
    labels = told_apart(labels, records, lambda record: {"sweep": record.get("sweep")})
    labels = numbered(labels)
    return [{**row, "label": labels[str(row["key"])]} for row in found]


def verdict_of(row: Row) -> str:
    """The verdict, with a question mark where its interval straddles a bound."""
    if row.get("no_verdict"):
        return "no verdict"
    return f"{row.get('verdict') or 'finished'}{'?' if row.get('verdict_open') else ''}"
