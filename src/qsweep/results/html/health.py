"""Whether the figures can be trusted, and how to get them again."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qsweep.base import numbers
from qsweep.evaluate.intervals import is_sequential
from qsweep.evaluate.measurement import PROTOCOL_VERSION
from qsweep.results import own_run
from qsweep.results.checks import check
from qsweep.results.comparable import facts_of
from qsweep.results.draws import singles
from qsweep.results.html.data import Group, SweepData
from qsweep.results.labels import with_distinct_names
from qsweep.results.record import Measurement, Record
from qsweep.results.rows import counts, noise_floors, ranked

# More lines than this are counted, not listed.
_MOST = 100
_PROTOCOL = (
    "protocol", "preset", "context", "stride", "windows", "tokens_scored", "bos", "dtype",
    "device_type", "fingerprint", "reference",
)  # fmt: skip


@dataclass(frozen=True)
class Health:
    """Everything below the pictures; plain texts."""

    counts: dict[str, int]
    warnings: list[str]
    checks: list[str]
    floors: list[tuple[str, str]]
    unfinished: list[tuple[str, str, str]]
    own_run: list[list[str]]
    protocols: list[tuple[str, list[tuple[str, str]]]]
    environments: list[tuple[int, list[tuple[str, str]]]]
    commands: list[tuple[str, str]]
    more: dict[str, int]


def health(
    sweeps: Sequence[SweepData], records: Sequence[Record], groups: Sequence[Group]
) -> Health:
    """Noise floors, violations, failures, protocol, environments, commands."""
    checks = [line for group in groups for line in check(group.named)]
    unfinished = [r for r in ranked(with_distinct_names(records)) if not r.finished]
    return Health(
        counts={status: count for status, count in counts(singles(records)).items() if count},
        warnings=[*_warnings(sweeps, groups)],
        checks=checks[:_MOST],
        floors=_floors(groups),
        unfinished=[
            (r.status, r.name, numbers.one_line(r.reason or "no reason recorded"))
            for r in unfinished[:_MOST]
        ],
        own_run=own_run.lines(with_distinct_names(records))[:_MOST],
        protocols=[(group.title, _protocol(group)) for group in groups],
        environments=_environments(records),
        commands=[(sweep.name, sweep.command) for sweep in sweeps if sweep.command],
        more={"checks": max(0, len(checks) - _MOST), "unfinished": len(unfinished[_MOST:])},
    )


def _warnings(sweeps: Sequence[SweepData], groups: Sequence[Group]) -> list[str]:
    lines = [f"{sweep.name}: {problem}" for sweep in sweeps for problem in sweep.problems]
    for sweep in sweeps:
        if not sweep.records:
            lines.append(f"{sweep.name}: no trial has been recorded")
        elif not any(record.finished for record in sweep.records):
            lines.append(f"{sweep.name}: no trial finished")
    for group in groups:
        version = group.facts.get("protocol")
        if version != PROTOCOL_VERSION:
            lines.append(
                f"{group.title}: measured by protocol {_known(version)}, this version's is "
                f"{PROTOCOL_VERSION}: run the sweep again before comparing it with new ones"
            )
        measurement = _measurement(group)
        if measurement is None:
            continue
        changed = {k: v for k, v in measurement.overrides.items() if k != "max_windows"}
        if changed:
            changes = ", ".join(f"{name} {value}" for name, value in changed.items())
            lines.append(f"{group.title}: measured with {changes}, which is not the preset's own")
        if measurement.windows_cut:
            lines.append(
                f"{group.title}: a quick look at {group.facts.get('windows')} windows, not the "
                "preset's full measurement: intervals are wide"
            )
    return lines


def _known(version: Any) -> str:
    return "unknown" if version is None else str(version)


def _measurement(group: Group) -> Measurement | None:
    """The reference's where it is there, else that of one that read the whole text, if any did."""

    def how_far(record: Record) -> tuple[bool, bool]:
        measured = record.primary
        return not record.reference, measured is not None and is_sequential(measured.facts)

    return min(group.records, key=how_far).primary


def _floors(groups: Sequence[Group]) -> list[tuple[str, str]]:
    found = []
    for group in groups:
        floors = noise_floors(group.records)
        for (model, corpus, preset), floor in sorted(floors.items()):
            found.append((f"{model} on {corpus} ({preset})", numbers.divergence(floor)))
    return found


def _protocol(group: Group) -> list[tuple[str, str]]:
    measurement = _measurement(group)
    facts = facts_of(measurement) if measurement else {}
    if is_sequential(facts):
        facts.pop("tokens_scored", None)  # which are of the windows that one row read
    packs = [
        m.facts["reference"] for r in group.records if (m := r.primary) and m.facts.get("reference")
    ]
    facts = {"reference": next(iter(packs), None), **facts, "preset": group.facts.get("preset")}
    return [(n.replace("_", " "), str(facts[n])) for n in _PROTOCOL if facts.get(n) is not None]


def _environments(records: Sequence[Record]) -> list[tuple[int, list[tuple[str, str]]]]:
    found = Counter(tuple(_environment(r.environment)) for r in records if r.environment)
    return [(count, list(facts)) for facts, count in found.most_common(10)]


def _environment(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    gpus = facts.get("gpus") or []
    commit = str(facts.get("git_commit") or "")[:12]
    packages = facts.get("packages") or {}
    shown = {
        "qsweep": " ".join(
            str(part)
            for part in (facts.get("qsweep"), commit, "modified" if facts.get("git_dirty") else "")
            if part
        ),
        "Python": facts.get("python"),
        "platform": facts.get("platform"),
        "processor": f"{facts.get('cpu')}, {facts.get('cpu_cores')} cores, "
        f"{facts.get('memory_gb')} GB",
        "GPUs": ", ".join(
            f"{gpu.get('name')} ({gpu.get('memory_gb')} GB)" for gpu in gpus if _is_dict(gpu)
        ),
        "packages": ", ".join(f"{name} {version}" for name, version in sorted(packages.items())),
    }
    return [(name, str(value)) for name, value in shown.items() if value]


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)
