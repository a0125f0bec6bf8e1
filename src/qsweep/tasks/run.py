"""A trial's tasks: each an entry of the store by itself, so that a killed evaluation loses one."""

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt, QsweepError, TrialFailed
from qsweep.base.keys import key_of
from qsweep.base.progress import Progress
from qsweep.base.secrets import hidden
from qsweep.base.store import Entry, Store
from qsweep.tasks.capabilities import (
    Comparison,
    capabilities,
    compare_task,
    perplexity_comparison,
    suffers_most,
)
from qsweep.tasks.long.compare import compare_long
from qsweep.tasks.task import COUNTED, Task, read_result, save_result

if TYPE_CHECKING:
    from qsweep.tasks.model import LanguageModel


@dataclass(frozen=True)
class TaskPlan:
    """One task on one artifact. ``reference`` is its identity on the unquantized model."""

    task: Task
    identity: dict[str, Any]
    reference: dict[str, Any]

    @property
    def key(self) -> str:
        """The key of the result."""
        return key_of(self.identity)

    @property
    def reference_key(self) -> str:
        """The key of the reference's result."""
        return key_of(self.reference)


def missing(plans: Sequence[TaskPlan], store: Store) -> list[TaskPlan]:
    """The tasks without a result; one that failed is tried again."""
    return [plan for plan in plans if not _finished(_find(store, plan.key))]


def lacks_reference(plans: Sequence[TaskPlan], store: Store) -> bool:
    """Whether the reference has no result at all of some task, not even that it failed."""
    return any(_find(store, plan.reference_key) is None for plan in plans)


def run_tasks(
    plans: Sequence[TaskPlan],
    store: Store,
    open_model: Callable[[], "LanguageModel"],
    progress: Progress,
) -> None:
    """Bring every task's result into the store. A task that cannot be run leaves its reason there.

    Args:
        plans: The trial's tasks; those with a result are left out.
        store: Where results go.
        open_model: Loads the dense model; called once, and only if some task can be run.
        progress: Told of each task.

    Raises:
        TrialFailed: The model itself is broken, or memory does not suffice.
    """
    opened = cache(open_model)
    for plan in missing(plans, store):
        store.remove("tasks", plan.key)
        base = _find(store, plan.reference_key)
        if base is not None and base.content["status"] == "failed":
            # Nothing could be compared, and it would fail for the same reason again.
            found = _failure(str(base.content["reason"]))
            store.build("tasks", plan.identity, partial(_as_before, found))
        else:
            make = partial(_run_task, plan.task, opened, progress)
            store.build("tasks", plan.identity, make)


def _run_task(
    task: Task, open_model: Callable[[], "LanguageModel"], progress: Progress, out: Path
) -> dict[str, Any]:
    """Ask a model one task and save its result; what the store keeps of it, or why it failed."""
    started = time.perf_counter()
    try:
        task.prepare()
        lm = open_model()
        progress(f"task {task.name}", 0.0)
        always = dict(lm.facts)
        try:
            result = task.run(lm, progress)
        finally:
            of_task, lm.facts = lm.facts, always
    except TrialFailed as error:
        raise TrialFailed(f"task {task.name}: {error}") from error
    except ArtifactCorrupt:
        raise
    except QsweepError as error:
        return _failure(str(error))
    except Exception as error:  # a task of others may raise anything; the rest stand
        traceback.print_exc()
        first = next(iter(str(error).splitlines()), "")
        return _failure(hidden(f"{task.name}: {type(error).__name__}: {first}"))
    result.facts = {**of_task, **result.facts}
    save_result(result, out)
    seconds = time.perf_counter() - started
    return {"status": "finished", "reason": None, "seconds": seconds, "facts": result.facts}


def task_records(
    plans: Sequence[TaskPlan], store: Store, metrics: dict[str, Any]
) -> dict[str, Any] | None:
    """What a trial's record says of its tasks; None if one of them, or of the reference's, has not been run.

    Args:
        plans: The trial's tasks.
        store: Where their results are.
        metrics: Of the trial's primary measurement, for the perplexity's share.
    """
    groups: dict[str, list[tuple[TaskPlan, Entry, Entry]]] = {}
    for plan in plans:
        entry, base = _find(store, plan.key), _find(store, plan.reference_key)
        if entry is None or base is None:
            return None
        groups.setdefault(plan.task.group, []).append((plan, entry, base))
    records, comparisons = [], {}
    for name, members in groups.items():
        record, comparison = _task_record(name, members)
        records.append(record)
        if comparison is not None:
            comparisons[name] = (record["capability"], comparison)
    found_capabilities = capabilities(comparisons, perplexity_comparison(metrics))
    reference = all(plan.key == plan.reference_key for plan in plans)
    long = [comparison.long for _, comparison in comparisons.values() if comparison.long]
    return {
        "tasks": records,
        **({"long": asdict(compare_long(long))} if long else {}),
        "capabilities": found_capabilities,
        "suffers_most": None if reference else suffers_most(found_capabilities),
    }


def _task_record(
    name: str, members: Sequence[tuple[TaskPlan, Entry, Entry]]
) -> tuple[dict[str, Any], Comparison | None]:
    failed = [e.content["reason"] for _, e, _ in members if e.content["status"] != "finished"]
    reason = None
    if failed:
        parts = f"{len(failed)} of {len(members)} parts: " if len(members) > 1 else ""
        reason = f"{parts}{failed[0]}"
    finished = [(e, b) for _, e, b in members if _finished(e) and _finished(b)]
    record: dict[str, Any] = {
        "name": name,
        "capability": members[0][0].task.capability,
        "status": "finished" if not failed else "failed" if not finished else "partial",
        "reason": reason,
        "parts": len(members),
        "seconds": sum(e.content.get("seconds", 0.0) for _, e, _ in members),
        "keys": [plan.key for plan, _, _ in members],
    }
    if not finished:
        return record, None
    comparison = compare_task([(read_result(e.path), read_result(b.path)) for e, b in finished])
    facts = dict(finished[0][0].content["facts"])
    # What is counted is counted over all parts.
    for name in COUNTED:
        number = sum(entry.content["facts"].get(name, 0) for entry, _ in finished)
        facts |= {name: number} if number else {}
    return {**record, **comparison.summary, "facts": facts}, comparison


def _find(store: Store, key: str) -> Entry | None:
    # Its scores are compared with others', so they must be what was written.
    return store.find("tasks", key, full=True)


def _finished(entry: Entry | None) -> bool:
    return entry is not None and entry.content["status"] == "finished"


def _as_before(found: dict[str, Any], out: Path) -> dict[str, Any]:
    return found


def _failure(reason: str) -> dict[str, Any]:
    return {"status": "failed", "reason": " ".join(reason.split())}
