"""From a measure's name to what was measured of it: the loss of a trial against what it is tested by."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from qsweep.base import numbers
from qsweep.base.errors import ConfigError
from qsweep.base.schema import nearest
from qsweep.base.store import Store
from qsweep.evaluate.equivalence import Evidence, OfAnswers, OfScores, OfWindows, Same
from qsweep.evaluate.metrics import clustered_mean
from qsweep.results.arrays import FindArrays
from qsweep.results.certificate.margins import Unit
from qsweep.results.comparable import measured_by
from qsweep.results.record import Measurement, Record, Row, TaskScore
from qsweep.results.windows import Windows, shared, windows_of
from qsweep.tasks.task import TaskResult, read_result

if TYPE_CHECKING:
    import numpy as np

# Of windows, by their first word; a run with more as it is served has its name behind that.
WINDOWED = ("ppl", "kld", "top1")


@dataclass(frozen=True)
class Measure:
    """A loss by one measure.

    Attributes:
        name: As it was typed.
        unit: Of its margin and of its losses.
        evidence: What was measured.
        units: What ``evidence`` counts.
        figures: Both sides' own figures in words.
        measured_on: Text and preset, or the task.
        how: How many windows or samples were taken, where that was decided by looking at them.
        identity: What says that another measures the same: a fingerprint, or keys of results.
    """

    name: str
    unit: Unit
    evidence: Evidence
    units: Literal["windows", "samples"]
    figures: str
    measured_on: str
    identity: str
    how: str = ""


@dataclass(frozen=True)
class Sides:
    """A trial, and what it is tested against.

    Attributes:
        trial: What is certified.
        against: Another trial of the same model; None: the unquantized model.
        references: Records of the unquantized model, from all sweeps.
        store: Where tasks' results are.
        find: Tells where a measurement's arrays are.
    """

    trial: Record
    against: Record | None
    references: Sequence[Record]
    store: Store
    find: FindArrays

    @property
    def bases(self) -> Sequence[Record]:
        """The records that it may be compared with."""
        return self.references if self.against is None else [self.against]

    @property
    def base_name(self) -> str:
        """What it is compared with, in words."""
        if self.against is None:
            return f"the unquantized model {self.trial.model}"
        return self.against.name


def find_measure(name: str, sides: Sides) -> Measure:
    """What was measured by a measure of this name.

    Raises:
        ConfigError: There is no such measure, or it was not measured, of the trial or of what it is
            compared with; the line says what measures it.
    """
    tasks = {task.name: task for task in sides.trial.tasks or ()}
    if name in tasks:
        return _of_task(name, tasks[name], sides)
    if name.partition(":")[0].partition("_")[0] in WINDOWED:
        return _of_windows(name, sides)
    if name in (sides.trial.capabilities or {}):
        return _of_capability(name, sides)
    lacking = "" if tasks else f"; it ran no tasks: eval.tasks=[{name}] runs one"
    raise ConfigError(
        f"--margin {name}: {sides.trial.name} has no such measure{nearest(name, names(sides.trial))}"
        f"{lacking}"
    )


def names(trial: Record) -> list[str]:
    """All measures that a trial may be certified by."""
    found: dict[str, None] = {}
    corpora = [measurement.corpus for measurement in trial.measurements]
    for measurement in trial.measurements:
        runs = ["", *(f"_{run.name}" for run in measurement.served or () if run.refused is None)]
        place = "" if measurement.primary else f":{measurement.corpus}"
        if place and corpora.count(measurement.corpus) > 1:
            place += f":{measurement.preset}"
        others = WINDOWED if "kld" in measurement.metrics or trial.reference else WINDOWED[:1]
        found |= {f"{kind}{run}{place}": None for run in runs for kind in others}
    run = [task for task in trial.tasks or () if task.score is not None]
    found |= {task.name: None for task in run if task.status == "finished"}
    able = [name for name in trial.capabilities or {} if _telling(name, trial)]
    return [*found, *(name for name in able if name not in found)]


# --- over windows ------------------------------------------------------------------------------


def _of_windows(name: str, sides: Sides) -> Measure:
    kind, _, run = name.partition(":")[0].partition("_")
    measurement = _measurement(name, sides.trial)
    own = _read(name, sides.trial, measurement, run, sides)
    base = _base_windows(name, measurement, kind, run, sides)
    if base is not None:
        pair = shared(own, base)
        if pair is None:
            raise ConfigError(f"--margin {name}: {_not_alike(sides)}")
        own, base = pair
    sums, unit, figures = _loss(name, kind, own, base)
    mean = clustered_mean(sums, own.tokens)
    sequential = own.sequential or (base is not None and base.sequential)
    sd = None if mean.stderr is None else mean.stderr * math.sqrt(len(own))
    facts = measurement.facts
    rule = (facts.get("until") or {}).get("rule")
    return Measure(
        name,
        unit,
        OfWindows(mean.value, sd, len(own), sequential),
        "windows",
        figures,
        f"{measurement.corpus} ({measurement.preset})",
        str(facts.get("fingerprint") or measurement.key),
        f"read until {rule}" if rule else "",
    )


def _measurement(name: str, record: Record) -> Measurement:
    """The measurement that ``ppl``, ``ppl:CORPUS`` or ``ppl:CORPUS:PRESET`` means."""
    _, *place = name.split(":")
    found = [record.primary] if not place and record.primary else list(record.measurements)
    for wanted, where in zip(place, ("corpus", "preset"), strict=False):
        there = {str(getattr(one, where)) for one in record.measurements}
        found = [one for one in found if getattr(one, where) == wanted]
        if not found:
            raise ConfigError(
                f"--margin {name}: {record.name} was not measured on {wanted}{nearest(wanted, there)}"
            )
    if not found:
        raise ConfigError(f"--margin {name}: {record.name} was measured on no text")
    return found[0]


def _read(name: str, record: Record, measurement: Measurement, run: str, sides: Sides) -> Windows:
    """The windows of a measurement, or of a run of it with more as it is served."""
    if run:
        runs = {one.name: one for one in measurement.served or () if one.refused is None}
        if run not in runs:
            raise ConfigError(
                f"--margin {name}: {record.name} was not run with its {run} as served"
                f"{nearest(name, names(record))}"
            )
        served = runs[run]
        measurement = replace(
            measurement, key=served.key, file=served.file, facts=served.facts, served=None
        )
    found = windows_of(Row(record, measurement), sides.find)
    if found is None:
        raise ConfigError(
            f"--margin {name}: what was measured of {record.name} on each window is gone from the "
            f"store{again(record)}"
        )
    if record.reference and found.kld is None:
        # Its divergence from itself is measured on some windows alone, and is 0 on all.
        return replace(found, kld=0 * found.nll, top1=found.tokens[None])
    return found


def _base_windows(
    name: str, measurement: Measurement, kind: str, run: str, sides: Sides
) -> Windows | None:
    """What the trial's windows are compared with; None where they are of the reference by themselves."""
    if sides.against is None and kind != "ppl":
        return None
    run = run if sides.against is not None else ""
    gone: ConfigError | None = None
    for base in sides.bases:
        for other in base.measurements:
            if other.place == measurement.place and measured_by(other) == measured_by(measurement):
                try:
                    return _read(name, base, other, run, sides)
                except ConfigError as error:  # another sweep's record may lead to what is there
                    gone = gone or error
    raise gone or ConfigError(f"--margin {name}: {_not_alike(sides)}")


def _not_alike(sides: Sides) -> str:
    return (
        f"{sides.base_name} was not measured on the windows that {sides.trial.name} was"
        f"{again(sides.trial) if sides.against is None else '; run both in one sweep'}"
    )


def _loss(
    name: str, kind: str, own: Windows, base: Windows | None
) -> "tuple[np.ndarray, Unit, str]":
    """Each window's loss, summed over its tokens, its unit, and the figures in words."""
    tokens = own.tokens.sum()
    if kind == "ppl":
        assert base is not None
        ppl = [math.exp(min(one.nll.sum() / tokens, 700.0)) for one in (own, base)]
        return (own.nll - base.nll)[0], "%", f"{ppl[0]:.4g} against {ppl[1]:.4g}"
    values = [one.kld if kind == "kld" else one.top1 for one in (own, base) if one is not None]
    known = [value[0] for value in values if value is not None]  # of an artifact, which is one draw
    if len(known) < len(values):
        raise ConfigError(f"--margin {name}: no divergence was measured; set eval.divergence=true")
    means = [float(value.sum() / tokens) for value in known]
    if kind == "kld":
        words = " against ".join(numbers.divergence(mean) for mean in means)
        return known[0] - known[1] if base is not None else known[0], "nats", words
    words = " against ".join(numbers.percent(mean) for mean in means)
    best = known[1] if base is not None else own.tokens
    return best - known[0], "points", words


# --- over samples ------------------------------------------------------------------------------


def _of_task(name: str, task: TaskScore, sides: Sides) -> Measure:
    if task.score is None or task.status != "finished":
        whole = "not run" if task.score is None else "not run whole"
        reason = numbers.one_line(task.reason or "no reason recorded")
        raise ConfigError(f"--margin {name}: was {whole}: {reason}")
    own, base = _both_results(name, [task], sides)
    if task.metric == "perplexity":
        return _of_texts(name, task, own, base)
    return _of_samples(name, [task], own, base)


def _of_capability(name: str, sides: Sides) -> Measure:
    """All samples of those of its tasks that tell of it, pooled as the trial's own figure is."""
    able = _telling(name, sides.trial)
    if not able:
        raise ConfigError(
            f"--margin {name}: none of its tasks says anything on this model; name another of "
            f"{', '.join(names(sides.trial))}"
        )
    return _of_samples(name, able, *_both_results(name, able, sides))


def _telling(capability: str, trial: Record) -> list[TaskScore]:
    """The tasks whose answers tell of a capability: a perplexity is none, nor is chance."""
    found = (trial.capabilities or {})[capability]
    return [
        task
        for task in trial.tasks or ()
        if task.name in (found.tasks or ()) and task.name not in (found.at_chance or ())
        if task.status == "finished" and task.metric != "perplexity"
    ]


def _of_samples(
    name: str, tasks: Sequence[TaskScore], own: Sequence[TaskResult], base: Sequence[TaskResult]
) -> Measure:
    mine, its = _scores(own), _scores(base)
    count = len(mine)
    losses = [b - a for a, b in zip(mine, its, strict=True)]
    evidence: Evidence
    if own is base:
        evidence = Same(count)
    elif {*mine, *its} <= {0.0, 1.0}:
        evidence = OfAnswers(sum(x > 0 for x in losses), sum(x < 0 for x in losses), count)
    else:
        evidence = OfScores(sum(losses) / count, sum(x * x for x in losses) / count, count)
    figures = " against ".join(numbers.percent(sum(scores) / count) for scores in (mine, its))
    keys = ", ".join(key for task in tasks for key in task.keys)
    words = ", ".join(task.name for task in tasks)
    return Measure(name, "points", evidence, "samples", figures, words, keys)


def _of_texts(
    name: str, task: TaskScore, own: Sequence[TaskResult], base: Sequence[TaskResult]
) -> Measure:
    """A perplexity that was measured as a task: its samples are as windows are."""
    import numpy as np

    mine, its = np.asarray(_scores(own)), np.asarray(_scores(base))
    weights = np.asarray([w for result in own for w in result.weights or ()], float)
    mean = clustered_mean(mine - its, weights)
    sd = None if mean.stderr is None else mean.stderr * math.sqrt(len(mine))
    figures = f"{numbers.fixed(task.score, 3)} against {numbers.fixed(task.reference_score, 3)}"
    evidence = OfWindows(mean.value, sd, len(mine))
    return Measure(name, "%", evidence, "samples", figures, task.name, ", ".join(task.keys))


def _scores(results: Iterable[TaskResult]) -> list[float]:
    return [float(score) for result in results for score in result.scores]


def _both_results(
    name: str, tasks: Sequence[TaskScore], sides: Sides
) -> tuple[list[TaskResult], list[TaskResult]]:
    """Both sides' results of the tasks, part by part; one list where they are the same results."""
    own: list[TaskResult] = []
    base: list[TaskResult] = []
    same = True
    for task in tasks:
        mine = _results(name, task, sides.trial, sides.store)
        other, its = _same_samples(name, task, mine, sides)
        same = same and other.keys == task.keys
        own += mine
        base += its
    return own, own if same else base


def _same_samples(
    name: str, task: TaskScore, own: Sequence[TaskResult], sides: Sides
) -> tuple[TaskScore, list[TaskResult]]:
    """The other side's results of the same samples of a task."""
    trial, elsewhere = sides.trial, ""
    gone: ConfigError | None = None
    for base in sides.bases:
        for other in base.tasks or ():
            if other.name != task.name or len(other.keys) != len(own):
                continue
            if _run_in(base) != _run_in(trial):
                elsewhere = _run_in(base)
                continue
            try:
                found = _results(name, other, base, sides.store)
            except ConfigError as error:  # another sweep's record may lead to what is there
                gone = gone or error
                continue
            if [result.ids for result in found] == [result.ids for result in own]:
                return other, found
    what = f"was not asked the same samples of {task.name}"
    if elsewhere:
        what = f"was asked {task.name} in {elsewhere}, and {trial.name} in {_run_in(trial)}"
    more = again(trial) if sides.against is None else "; run both in one sweep"
    raise gone or ConfigError(f"--margin {name}: {sides.base_name} {what}{more}")


def _run_in(record: Record) -> str:
    """The dtype and the kind of device that a trial's model was run in, in words."""
    return f"{record.dtype} on {(record.device or '').partition(':')[0]}"


def _results(name: str, task: TaskScore, record: Record, store: Store) -> list[TaskResult]:
    entries = [store.find("tasks", key, full=True) for key in task.keys]
    finished = [e for e in entries if e is not None and e.content.get("status") == "finished"]
    if len(finished) < len(entries) or not finished:
        raise ConfigError(
            f"--margin {name}: what {record.name} answered to each sample of {task.name} is gone "
            f"from the store{again(record)}"
        )
    return [read_result(entry.path) for entry in finished]


def again(record: Record) -> str:
    """What measures a record's trial again, and the reference with it."""
    return f"; {record.command} measures it again" if record.command else ""
