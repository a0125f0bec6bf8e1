"""What came of a search: the front, the best per GB, the knee, the smallest of each verdict. Pure.

Also what it could not try, and what of its answer is open.
"""

import math
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qsweep.base.contents import is_number
from qsweep.evaluate.verdicts import BOUNDS, SILENT_KLD
from qsweep.results.columns.column import Column
from qsweep.results.columns.table import (
    ARTIFACT,
    BPW,
    DECODE_TPS,
    KLD,
    PPL,
    PPL_RATIO,
    PPL_RATIO_HIGH,
    PPL_RATIO_LOW,
    QUALITY,
    QUALITY_PER_GB,
    SIZE_GB,
    VERDICT,
    VERDICT_OPEN,
    WINDOWS,
)
from qsweep.results.columns.views import figure
from qsweep.results.front import pareto_front as front_of
from qsweep.results.labels import distinguish, numbered
from qsweep.results.record import ArtifactFacts, Figures, Measurement, Record, Row
from qsweep.results.traits import is_draw
from qsweep.results.winner import (
    Contender,
    Decision,
    Tell,
    contender,
    decide,
    how_many_read,
    says_nothing,
)
from qsweep.search.objectives import Constraint, Objective
from qsweep.search.served import counted_run, leaves_cache_out
from qsweep.search.space import Params
from qsweep.search.study import StudyTrial

_FIGURES = (PPL, PPL_RATIO, PPL_RATIO_LOW, PPL_RATIO_HIGH, KLD, QUALITY, QUALITY_PER_GB)
_FACTS = (SIZE_GB, BPW, VERDICT, VERDICT_OPEN, WINDOWS, ARTIFACT, DECODE_TPS)
DEFAULT_FRONT = (Objective(SIZE_GB.name, "minimize"), Objective(QUALITY.name, "maximize"))


@dataclass(frozen=True)
class Answer:
    """The entries that answer a question each; None where nothing does.

    Attributes:
        front: smallest first.
        best_per_gb: the one that leads in quality per GB; ``decision`` tells whether it is the best.
        knee: of the front.
        smallest: by verdict, the smallest whose verdict is at least that good.
        untried: of each combination that failed and was never measured, its last failure.
    """

    front: list[StudyTrial]
    best_per_gb: StudyTrial | None
    knee: StudyTrial | None
    smallest: dict[str, StudyTrial | None]
    decision: Decision = Decision(None)
    untried: list[StudyTrial] = field(default_factory=list)


def finding_of(record: Record, params: Params) -> dict[str, Any]:
    """What a study keeps of a finished trial, so that every machine can give the answer."""
    figures = {column.name: figure(record, column) for column in _FIGURES}
    return {
        **{k: v for k, v in figures.items() if v is not None and math.isfinite(v)},
        **{column.name: figure(record, column) for column in _FACTS},
        "params": params,
        **how_many_read(record.primary),
        "runtimes": list(record.runtimes),
        "serves": record.can_serve,
        "counted": counted_run(record),
        "cache_left_out": leaves_cache_out(record),
        "record": record.key,
        **({"draws": [draw.key for draw in record.draws]} if record.draws else {}),
        "host": socket.gethostname(),
    }


def row_of(entry: StudyTrial) -> Row:
    """An entry as a row of a table, of what the study keeps of it."""
    finding = entry.finding or {}
    verdict = finding.get(VERDICT.name)
    measurement = Measurement(
        corpus="",
        preset="",
        metrics=Figures({c.name: finding.get(c.name) for c in _FIGURES}),
        verdict=verdict,
        no_verdict=None if verdict else "none",
    )
    artifact = ArtifactFacts(
        runtimes=tuple(finding.get("runtimes") or ()), size_gb=finding.get(SIZE_GB.name)
    )
    record = Record(entry.key, "finished", entry.name, artifact=artifact)
    return Row(record, measurement, entry.name)


def answer(
    entries: Iterable[StudyTrial],
    objectives: Sequence[Objective],
    serving: bool,
    tell: Tell = lambda *_: None,
    silent_kld: float = SILENT_KLD,
) -> Answer:
    """The answer to a search, from its feasible entries.

    The front is that of the search's objectives; of size and quality where there is only one.

    Args:
        entries: Of the study.
        objectives: Of the search.
        serving: Whether only what a runtime serves counts.
        tell: Whether windows tell two records apart, by their keys; None of those that are not here.
        silent_kld: The divergence below which only size orders entries.
    """
    entries = with_distinct_names(list(entries))
    usable = [e for e in entries if e.feasible and e.finding is not None]
    usable = [e for e in usable if not serving or _finding(e)["serves"]]
    goals = objectives if len(objectives) > 1 else DEFAULT_FRONT
    front = pareto_front([e for e in usable if _point(e, goals) is not None], goals)
    rated = {e.key: e for e in usable}
    kept = {e.key: str(_finding(e)["record"]) for e in usable}
    decision = decide(
        [c for e in rated.values() if (c := _contender(e, silent_kld)) is not None],
        lambda one, other: tell(kept[one], kept[other]),
    )
    words = [word for _, word in BOUNDS]
    smallest = {}
    for place, word in enumerate(words):
        keeping = [e for e in usable if _finding(e)[VERDICT.name] in words[: place + 1]]
        smallest[word] = min(keeping, key=lambda e: _value(e, SIZE_GB), default=None)
    return Answer(
        front=front,
        best_per_gb=None if decision.leader is None else rated[decision.leader],
        knee=knee(pareto_front([e for e in usable if _point(e, DEFAULT_FRONT)], DEFAULT_FRONT)),
        smallest=smallest,
        decision=decision,
        untried=untried(entries),
    )


def with_distinct_names(entries: Sequence[StudyTrial]) -> list[StudyTrial]:
    """Entries of which no two of different keys are called alike."""
    by_key = {e.key: {"params": {_option(k): v for k, v in e.params.items()}} for e in entries}
    names = {e.key: e.name for e in entries}
    labels = numbered(distinguish(names, by_key, lambda record: record["params"]))
    return [replace(entry, name=labels[entry.key]) for entry in entries]


def untried(entries: Sequence[StudyTrial]) -> list[StudyTrial]:
    """Of each combination that failed, at whatever fidelity, and was never measured, the last entry."""
    measured = {e.key for e in entries if e.state != "failed"}
    failed = {e.key: e for e in entries if e.state == "failed" and e.key not in measured}
    return list(failed.values())


def open_question(entry: StudyTrial) -> str | None:
    """Why what an entry's interval says is nothing; None where it says something."""
    one = _contender(entry)
    return None if one is None else says_nothing(one)


def _contender(entry: StudyTrial, silent_kld: float = 0.0) -> Contender | None:
    drawn = [name for name in entry.params if is_draw(_option(name))]
    kept = {name: value for name, value in entry.params.items() if name not in drawn}
    setting = repr(sorted(kept.items())) if drawn else ""
    finding = _finding(entry)
    kld = finding.get(KLD.name)
    silent = kld is not None and is_number(kld) and kld < silent_kld
    draws = len(finding.get("draws") or ())
    return contender(entry.key, entry.name, {**finding, "silent": silent, "draws": draws}, setting)


def _option(name: str) -> str:
    return name.lstrip("+~")


def pareto_front(
    entries: Sequence[StudyTrial], objectives: Sequence[Objective]
) -> list[StudyTrial]:
    """The entries that no other is better than in one objective and no worse in the others.

    Smallest first; of equal ones the first.
    """
    front = front_of(entries, lambda entry: _point(entry, objectives))
    return sorted(front, key=lambda e: _value(e, SIZE_GB))


def knee(front: Sequence[StudyTrial]) -> StudyTrial | None:
    """Where a front of size and quality bends most: farthest above the line between its ends.

    Both axes are scaled to the front's own extent; a front of fewer than three has no knee.
    """
    if len(front) < 3:
        return None
    sizes = [_value(e, SIZE_GB) for e in front]
    qualities = [_value(e, QUALITY) for e in front]
    width, height = sizes[-1] - sizes[0], qualities[-1] - qualities[0]
    if width <= 0 or height <= 0:
        return None
    above = [
        (q - qualities[0]) / height - (s - sizes[0]) / width
        for s, q in zip(sizes, qualities, strict=True)
    ]
    return front[max(range(len(front)), key=lambda i: above[i])]


def infeasible(entries: Iterable[StudyTrial], constraints: Sequence[Constraint]) -> str | None:
    """Which constraint empties the feasible set, in one line; None if it is not empty."""
    done = [e for e in entries if e.state == "complete"]
    dropped = [e.reason or "" for e in entries if e.state == "dropped"]
    if any(e.feasible for e in done):
        return None
    for constraint in constraints:
        name = str(constraint)
        values = [e.violations.get(name, math.inf) for e in done]
        if all(v > 0 for v in values) and (values or any(name in r for r in dropped)):
            near = min((v for v in values if math.isfinite(v)), default=None)
            by = "" if near is None else f"; the nearest misses it by {near:.4g}"
            return f"no trial satisfies {name}{by}: relax it, or widen the space"
    if constraints and done:
        return "each constraint can be met, but no trial meets all: " + "; ".join(
            map(str, constraints)
        )
    return None


def _point(entry: StudyTrial, objectives: Sequence[Objective]) -> tuple[float, ...] | None:
    finding = _finding(entry)
    values = [finding.get(o.metric) for o in objectives]
    if any(v is None for v in values):
        if entry.values is None or len(entry.values) != len(objectives):
            return None
        values = list(entry.values)
    signs = [-1.0 if o.direction == "maximize" else 1.0 for o in objectives]
    return tuple(s * float(v) for s, v in zip(signs, values, strict=True))  # type: ignore[arg-type]


def _finding(entry: StudyTrial) -> Mapping[str, Any]:
    assert entry.finding is not None
    return entry.finding


def _value(entry: StudyTrial, column: Column) -> float:
    return float(_finding(entry)[column.name])
