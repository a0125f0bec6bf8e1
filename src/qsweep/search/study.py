"""A search's memory: an Optuna study that several processes, on several machines, may share.

Trials are added when they are claimed and told when they are done. Everything that another process
needs to know of one (what it measured, at which fidelity, where its artifact is) is an attribute.
"""

import contextlib
import math
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from qsweep.base.errors import ConfigError
from qsweep.base.schema import flat
from qsweep.base.secrets import hidden_tree, hidden_value
from qsweep.launch.tree import stat_fields
from qsweep.search.attributes import Attributes, estimate_to_json, read_attributes
from qsweep.search.fidelity import Estimate
from qsweep.search.objectives import Objective
from qsweep.search.space import Mix, Params, Space

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna.trial import FrozenTrial

State = Literal["running", "complete", "dropped", "failed"]
_STATES: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "dropped", "FAIL": "failed"}
_ALIVE_EVERY_S, _DEAD_AFTER_S = 30.0, 300.0


@dataclass(frozen=True)
class StudyTrial:
    """A trial of the study."""

    number: int
    state: State
    key: str
    name: str
    params: Params
    owner: str
    estimate: Estimate | None
    """At the highest fidelity below full."""
    values: tuple[float, ...] | None
    violations: dict[str, float]
    finding: dict[str, Any] | None
    reason: str | None
    mix: Mix | None = None
    """What a mix was found to be; None of others, and of one that was never claimed."""

    @property
    def feasible(self) -> bool:
        """Whether it is complete and within all constraints."""
        return self.state == "complete" and all(v <= 0 for v in self.violations.values())


class Study:
    """The study of one search.

    Args:
        storage: an Optuna storage.
        name: the study's name.
        objectives: what the values are.
        identity: what makes results comparable. A study of another identity is refused.

    Raises:
        ConfigError: the stored study searched something else, or by another protocol.
    """

    def __init__(
        self,
        storage: Any,
        name: str,
        objectives: Sequence[Objective],
        identity: Mapping[str, Any],
    ):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"
        self._label = name
        self._read: dict[int, StudyTrial] = {}
        self._ids: dict[int, int] = {}
        directions = [o.direction for o in objectives]
        existing = {s.study_name: s for s in optuna.get_all_study_summaries(storage, False)}
        if name in existing:
            stored = existing[name].user_attrs.get("qsweep.identity", {})
            require_same_study(name, stored, identity)
        self.optuna: OptunaStudy = optuna.create_study(
            storage=storage, study_name=name, directions=directions, load_if_exists=True
        )
        if name not in existing:
            self.optuna.set_user_attr("qsweep.identity", dict(identity))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # experimental since 2023
                self.optuna.set_metric_names([o.metric for o in objectives])

    def entries(self) -> list[StudyTrial]:
        """All trials, the other processes' too. Finished ones are read once."""
        found = []
        for trial in self.optuna.get_trials(deepcopy=False):
            self._ids[trial.number] = trial._trial_id
            entry = self._read.get(trial.number)
            if entry is None:
                entry = _study_trial(trial)
                if entry.state != "running":
                    self._read[trial.number] = entry
            found.append(entry)
        return found

    def claim(
        self,
        key: str,
        name: str,
        params: Params,
        space: Space,
        estimate: Estimate | None = None,
        mix: Mix | None = None,
    ) -> int | None:
        """Make a trial this process's own; None if another process was quicker.

        A trial appears with its key in one transaction, and of two with the same key the lower
        number counts: so no two processes run the same one.

        Args:
            key: What tells trials apart.
            name: What messages call it.
            params: The combination.
            space: Where it is from, for the values that each parameter could have had.
            estimate: What is known of it already.
            mix: What it was found to be, if it is one.

        Returns:
            The trial's number.
        """
        known = {} if estimate is None else {"outcome": estimate_to_json(estimate)}
        if mix is not None:
            known["mix"] = hidden_tree({**asdict(mix), "rules": list(mix.rules)})
        self._add("RUNNING", key, name, params, space, known)
        same = [entry for entry in self.entries() if entry.key == key]
        number = max(entry.number for entry in same if entry.owner == self.owner)
        for entry in same:
            if entry.number < number and self.is_taken(entry):
                self.fail(number, f"trial {entry.number} is the same")
                return None
        return number

    def is_taken(self, entry: StudyTrial) -> bool:
        """Whether an entry keeps others from running the same; another process's failure does not."""
        return entry.state != "failed" or entry.owner == self.owner

    def note(self, number: int, estimate: Estimate) -> None:
        """Keep what a trial measured at lower fidelity."""
        self._trial(number).set_user_attr("outcome", estimate_to_json(estimate))

    def complete(
        self,
        number: int,
        values: Sequence[float],
        violations: Mapping[str, float],
        finding: Mapping[str, Any],
    ) -> None:
        """A trial is done and measured in full.

        Args:
            number: The trial's.
            values: Of the objectives, in their order.
            violations: By how much each constraint is missed, by its text; at most 0 where it holds.
            finding: What the answer needs of it; see :mod:`qsweep.search.attributes`.
        """
        trial = self._trial(number)
        trial.set_user_attr("finding", hidden_tree(finding))
        for name, excess in violations.items():
            trial.set_constraint(name, excess)
        self.optuna.tell(number, [_finite(v) for v in values])

    def drop(self, number: int, reason: str) -> None:
        """A claimed trial cannot win: it ends here."""
        self._end(number, "PRUNED", reason)

    def drop_unclaimed(
        self, key: str, name: str, params: Params, space: Space, estimate: Estimate, reason: str
    ) -> None:
        """Record that a candidate was dropped before it was quantized; arguments as of :meth:`claim`.

        ``reason`` says in one line why it cannot win.
        """
        attributes = {"outcome": estimate_to_json(estimate), "reason": reason}
        self._add("PRUNED", key, name, params, space, attributes)

    def fail(self, number: int, reason: str) -> None:
        """A trial failed, or was given up."""
        self._end(number, "FAIL", reason)

    def recover(self) -> list[StudyTrial]:
        """Give up the trials of processes that died; they are free to be run again.

        A process of this host is dead if there is none of its number and start; one of another host
        if it has not said for five minutes that it is alive.
        """
        from optuna.exceptions import UpdateFinishedTrialError

        orphans = []
        for entry in self.entries():
            if entry.state == "running" and entry.owner != self.owner and self._is_dead(entry):
                with contextlib.suppress(UpdateFinishedTrialError):  # another process was quicker
                    self.fail(entry.number, f"its process died ({entry.owner})")
                    orphans.append(entry)
        return orphans

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Say regularly that this process lives; at the end, give up what it has not finished."""
        stop = threading.Event()

        def beat() -> None:
            while True:
                with contextlib.suppress(Exception):  # a storage that is gone is noticed elsewhere
                    self.optuna.set_user_attr(f"alive:{self.owner}", time.time())
                if stop.wait(_ALIVE_EVERY_S):
                    return

        thread = threading.Thread(target=beat, name="qsweep-study", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(5.0)
            for entry in self.entries():
                if entry.state == "running" and entry.owner == self.owner:
                    self.fail(entry.number, "interrupted")

    def _is_dead(self, entry: StudyTrial) -> bool:
        host, _, rest = entry.owner.partition(":")
        pid, _, started = rest.partition(":")
        if host == socket.gethostname() and pid.isdigit():
            return _started(int(pid)) != started
        seen = self.optuna.user_attrs.get(f"alive:{entry.owner}", 0.0)
        return time.time() - float(seen) > _DEAD_AFTER_S

    def _add(
        self,
        state: str,
        key: str,
        name: str,
        params: Params,
        space: Space,
        more: Mapping[str, Any],
    ) -> None:
        from optuna.distributions import CategoricalDistribution
        from optuna.trial import TrialState, create_trial

        labels, distributions = study_params(params, space)
        # A study is shared, and lies on disk.
        labels = {label: hidden_value(value) for label, value in labels.items()}
        distributions = {
            label: CategoricalDistribution(tuple(dict.fromkeys(map(hidden_value, d.choices))))
            for label, d in distributions.items()
        }
        self.optuna.add_trial(
            create_trial(
                state=TrialState[state],
                params=labels,
                distributions=distributions,
                user_attrs={
                    "key": key,
                    "name": name,
                    "params": hidden_tree(params),
                    "owner": self.owner,
                    **more,
                },
            )
        )

    def _end(self, number: int, state: str, reason: str) -> None:
        from optuna.trial import TrialState

        self._trial(number).set_user_attr("reason", reason)
        # Another process may have given up a trial that failed.
        self.optuna.tell(number, state=TrialState[state], skip_if_finished=state == "FAIL")

    def _trial(self, number: int) -> Any:
        import optuna

        return optuna.trial.Trial(self.optuna, self._ids[number])


def require_same_study(name: str, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise ConfigError, saying what changed, if a stored study is not the one that is wanted."""
    before, after = dict(flat(stored)), dict(flat(wanted))
    changed = [k for k in sorted({*before, *after}) if before.get(k) != after.get(k)]
    if changed:
        first = changed[0]
        more = f" (and {', '.join(changed[1:4])})" if len(changed) > 1 else ""
        raise ConfigError(
            f"study {name!r} is stored with {first} = {before.get(first, 'nothing')}, "
            f"now it is {after.get(first, 'nothing')}{more}: results would not compare; "
            "sweep=NEWNAME starts another"
        )


def with_secrets(params: Params, space: Space) -> Params:
    """A stored combination with this process's own values where passwords were left out."""
    own = {(p.name, hidden_value(value)): value for p in space.parameters for value in p.values}
    return {name: own.get((name, value), value) for name, value in params.items()}


def study_params(params: Params, space: Space) -> tuple[dict[str, str], dict[str, Any]]:
    """A combination's varied parameters by their labels, and the values that each could have."""
    from optuna.distributions import CategoricalDistribution

    labels, distributions = {}, {}
    for parameter in space.parameters:
        if parameter.name in params and parameter.applies(params) and len(parameter.values) > 1:
            label = space.label(parameter)
            labels[label] = params[parameter.name]
            distributions[label] = CategoricalDistribution(parameter.values)
    return labels, distributions


def _study_trial(trial: "FrozenTrial") -> StudyTrial:
    attributes = read_attributes(trial.user_attrs)
    state = _STATES.get(trial.state.name, "running")
    if attributes is None:
        # Free to be run again: what it measured is in the store.
        attributes, state = Attributes(reason="what the study says of it is damaged"), "failed"
    return StudyTrial(
        number=trial.number,
        state=state,
        key=attributes.key,
        name=attributes.name,
        params=attributes.params,
        owner=attributes.owner,
        estimate=attributes.outcome.restored() if attributes.outcome else None,
        values=tuple(trial.values) if trial.values else None,
        violations=dict(trial.constraints),
        finding=attributes.finding,
        reason=attributes.reason,
        mix=attributes.mix,
    )


def _finite(value: float) -> float:
    return math.copysign(1e30, value) if math.isinf(value) else value


def _started(pid: int) -> str:
    """When a process of this host began, in clock ticks since boot; empty if there is none."""
    fields = stat_fields(pid)
    return "" if not fields or fields[0] == "Z" else fields[19]
