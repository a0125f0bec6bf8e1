"""From sweeps' records to what a page shows: trials grouped by what may be drawn together."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeGuard

from qsweep.results.arrays import FindArrays, stored_arrays
from qsweep.results.columns.column import Column
from qsweep.results.columns.table import PPL, PPL_RATIO, SIZE_GB
from qsweep.results.comparable import IDENTITY, differences, measured_by
from qsweep.results.draws import pooled, singles
from qsweep.results.front import pareto_front
from qsweep.results.labels import distinguish, labelled, numbered
from qsweep.results.model_names import with_distinct_models
from qsweep.results.record import Record, Row
from qsweep.results.rows import rows

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

    ``distinction`` says what sets it apart from others of the same models, corpus and preset.
    """

    facts: dict[str, Any]
    records: list[Record]
    distinction: str = ""

    @cached_property
    def rows(self) -> list[Row]:
        """A row per trial, corpus and preset, best quality per GB first."""
        several = len(self.models) > 1
        methods = {(r.method, r.backend) for r in self.records}
        twice = {m for m, b in methods if sum(m == other for other, _ in methods) > 1}
        found, names = rows(self.records), []
        for row in found:
            record = row.record
            series = (
                f"{record.method} ({record.backend})" if record.method in twice else record.method
            )
            series = "reference" if record.reference else series
            label = record.name if several else record.name.removeprefix(f"{record.model} ")
            names.append((label, series))
        labels = _with_sweep_names(
            {row.key: label for row, (label, _) in zip(found, names, strict=True)},
            {r.key: r for r in self.records},
        )
        return [
            replace(row, label=labels[row.key], series=series)
            for row, (_, series) in zip(found, names, strict=True)
        ]

    @cached_property
    def primary_rows(self) -> list[Row]:
        """One row per finished trial: the measurement that its verdict rests on.

        What ran for a check alone is in the table, and drawn nowhere.
        """
        return [
            row
            for row in self.rows
            if row.measurement is not None
            and row.measurement.primary
            and is_finite(PPL.get(row))
            and (row.record.reference or not row.record.implied)
        ]

    @cached_property
    def quantized(self) -> list[Row]:
        """The primary rows that have a ratio to their reference, the reference's own left out.

        A reference that predicts nothing is none, and what is compared with it is not drawn.
        """
        return [
            row
            for row in self.primary_rows
            if not row.record.reference and not row.no_verdict and is_finite(PPL_RATIO.get(row))
        ]

    @cached_property
    def no_verdicts(self) -> list[str]:
        """Why models have no verdict, a line for each that has none."""
        found = [(row.record.model, row.no_verdict) for row in self.primary_rows]
        return [f"{model}: {why}" for model, why in dict.fromkeys(found) if why]

    @cached_property
    def named(self) -> list[Record]:
        """The records, called as their rows are."""
        labels = {row.key: row.label for row in self.rows}
        return [replace(record, name=labels[record.key]) for record in self.records]

    @property
    def models(self) -> list[str]:
        """The models in it."""
        return sorted({record.model for record in self.records})

    @property
    def corpus(self) -> str:
        """What the verdicts rest on."""
        measurement = self.records[0].primary
        return measurement.corpus if measurement else ""

    @property
    def title(self) -> str:
        """Models, corpus and preset in a few words, and what else others of these do not share."""
        how = f"{self.facts.get('preset') or 'paper'}{self.distinction and f', {self.distinction}'}"
        return f"{', '.join(self.models)} on {self.corpus} ({how})"


def merge(sweeps: Iterable[SweepData], find: FindArrays = stored_arrays) -> list[Record]:
    """The records of all sweeps; a trial that several of them hold is there once, naming them.

    Models of one name are called by their paths, and the draws of a setting are pooled.
    """
    found: dict[str, Record] = {}
    for sweep in sweeps:
        for record in singles(sweep.records):
            earlier = found.get(record.key)
            if earlier is None:
                found[record.key] = replace(record, sweep=sweep.name)
                continue
            names = (earlier.sweep or "").split(", ")
            found[record.key] = replace(
                earlier,
                sweep=", ".join(dict.fromkeys([*names, sweep.name])),
                # Asked for once is asked for.
                implied=bool(earlier.implied and record.implied),
            )
    return with_distinct_models(pooled(found.values(), find))


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
    named = [one for same in alike.values() for one in _with_distinct_titles(same)]
    return sorted(named, key=lambda group: (-len(group.records), group.title))


def _with_distinct_titles(same: Sequence[Group]) -> Sequence[Group]:
    if len(same) == 1:
        return same
    words = differences([m for group in same if (m := group.records[0].primary)])
    return [replace(group, distinction=word) for group, word in zip(same, words, strict=True)]


def identity(record: Record) -> tuple[Any, ...]:
    """What a trial's figures may be compared by; empty for a trial without figures."""
    if not record.finished or record.primary is None:
        return _NOTHING
    return measured_by(record.primary)


def why_not_comparable(first: Group, second: Group) -> str:
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


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that can be drawn."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def front(rows_: Iterable[Row], loss: Column = PPL_RATIO) -> list[Row]:
    """The Pareto front of size and loss, smallest first."""

    def point(row: Row) -> tuple[float, float] | None:
        size, value = SIZE_GB.get(row), loss.get(row)
        return (size, value) if is_finite(size) and is_finite(value) else None

    return pareto_front(rows_, point)


def varied(rows_: Sequence[Row], column: Column) -> list[Any]:
    """The values of an option that occur in rows, numbers in their order; empty if it is one."""
    values = {column.get(row) for row in rows_} - {None}
    if len(values) < 2:
        return []
    return sorted(values, key=lambda v: (isinstance(v, str), v if is_finite(v) else 0, str(v)))


def _with_sweep_names(labels: dict[str, str], records: dict[str, Record]) -> dict[str, str]:
    # By what else they differ in, and only where that is nothing, by the sweep.
    labels = labelled(labels, records)
    return numbered(distinguish(labels, records, lambda record: {"sweep": record.sweep}))
