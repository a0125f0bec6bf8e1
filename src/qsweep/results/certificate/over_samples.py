"""Losses of what tasks asked, sample by sample."""

import math
from collections.abc import Iterable, Sequence

from qsweep.base import numbers
from qsweep.base.errors import ConfigError
from qsweep.base.store import Store
from qsweep.evaluate.equivalence import Evidence, OfAnswers, OfScores, OfWindows, Same
from qsweep.evaluate.metrics import clustered_mean
from qsweep.results.certificate.sides import Measure, Sides, again, names, telling
from qsweep.results.record import Record, TaskScore
from qsweep.tasks.task import TaskResult, read_result


def of_task(name: str, task: TaskScore, sides: Sides) -> Measure:
    """A task. Raises ConfigError: it did not run whole, or not on both sides alike."""
    if task.score is None or task.status != "finished":
        whole = "not run" if task.score is None else "not run whole"
        reason = numbers.one_line(task.reason or "no reason recorded")
        raise ConfigError(f"--margin {name}: was {whole}: {reason}")
    own, base = _both_results(name, [task], sides)
    if task.metric == "perplexity":
        return _of_texts(name, task, own, base)
    return _of_samples(name, [task], own, base)


def of_capability(name: str, sides: Sides) -> Measure:
    """All samples of those of its tasks that tell of it, pooled as the trial's own figure is."""
    able = telling(name, sides.trial)
    if not able:
        raise ConfigError(
            f"--margin {name}: none of its tasks says anything on this model; name another of "
            f"{', '.join(names(sides.trial))}"
        )
    return _of_samples(name, able, *_both_results(name, able, sides))


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
