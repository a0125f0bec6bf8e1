"""Passes: trials of one sweep whose artifacts are made together, before they are measured.

A pass is a job of its own, on which its trials depend, and those whose quantizers want no more of
the calibration text than its importance matrix. It saves work and decides nothing: each
configuration goes into the store under the key that it would have had alone, and what a pass
leaves unmade a trial makes for itself. So one that dies is split in halves, and a configuration
that no pass survives fails in its own trial, by its own fault.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

from qsweep.base.keys import key_of
from qsweep.base.memory import available_bytes
from qsweep.base.progress import Progress
from qsweep.base.store import Store
from qsweep.formats.artifact import Artifact
from qsweep.launch import Job
from qsweep.models.room import held_parameters
from qsweep.quantizers.protocol import PassResult, SharedPass
from qsweep.sweep.artifacts import (
    calibration_tokens,
    keep_importance,
    made,
    plan_here,
    source_model,
)
from qsweep.sweep.config import own_config
from qsweep.sweep.plan import Plan
from qsweep.text.calibration import CalibrationTokens

# Share of the free memory that passes plan with; what else runs needs some, and no estimate is exact.
_SHARE_OF_MEMORY = 0.7


@dataclass(frozen=True)
class Pass:
    """Plans with artifacts of different keys that one pass can make.

    ``waiting`` are the keys of artifacts of others, made from the importance matrix of its
    calibration text.
    """

    plans: tuple[Plan, ...]
    waiting: frozenset[str] = frozenset()

    @cached_property
    def keys(self) -> frozenset[str]:
        """The keys of the artifacts that it makes."""
        return frozenset(plan.artifact_key for plan in self.plans)

    @property
    def id(self) -> str:
        """The id of its job."""
        return "pass-" + key_of(sorted(self.keys))

    @property
    def name(self) -> str:
        """What the person sees."""
        also = " and an importance matrix" if self.waiting else ""
        return (
            f"{self.plans[0].trial.model.name} one pass for {len(self.plans)} configurations{also}"
        )

    def serves(self, plan: Plan) -> bool:
        """Whether it makes a trial's artifact, or the importance matrix that this waits for."""
        return plan.artifact_key in self.keys | self.waiting

    def halves(self) -> list["Pass"]:
        """What to try where this one died; a single configuration needs no pass."""
        middle = len(self.plans) // 2
        return _passes((self.plans[:middle], self.plans[middle:]), self.waiting)

    def job(self, store: Store, log: Path, timeout_s: float | None, device: str) -> Job:
        """The job that runs it; it has the time that its trials would have had one by one."""
        return Job(
            id=self.id,
            name=self.name,
            target="qsweep.sweep.shared_calibration:run",
            payload={
                "configs": {plan.key: own_config(plan.trial) for plan in self.plans},
                "store": store.address,
                "model": store.portable(self.plans[0].setting.facts.path),
                "importance": bool(self.waiting),
            },
            log=log,
            timeout_s=None if timeout_s is None else timeout_s * len(self.plans),
            device=device,
            counts=False,
        )


class Passes:
    """The passes of a sweep.

    Args:
        plans: The trials to come.
        store: Where artifacts are; those that are there are left out.
        slots: How many jobs run at once and share the memory.
        memory: Free bytes on the host, by default those that are.
    """

    def __init__(
        self, plans: Iterable[Plan], store: Store, slots: int = 1, memory: int | None = None
    ):
        budget = available_bytes() if memory is None else memory
        plans = list(plans)
        waiting = _waiting(plans, store)
        self._passes: dict[str, Pass] = {}
        for group in _groups(plans, store):
            # GPUs work side by side; more passes on one processor would only repeat work.
            at_least = slots if group[0].setting.device.startswith("cuda") else 1
            parts = _parts(group, int(budget * _SHARE_OF_MEMORY / slots), at_least)
            self._add(_passes(parts, waiting.pop(_text_of(group[0]), frozenset())))

    def __iter__(self) -> Iterator[Pass]:
        return iter(self._passes.values())

    def needs(self, plan: Plan) -> tuple[str, ...]:
        """The ids of the passes that a trial waits for."""
        return tuple(one.id for one in self if one.serves(plan))

    def split(self, id: str) -> list[Pass]:
        """Put a pass's halves in its place, and give them."""
        failed = self._passes.pop(id, None)
        halves = failed.halves() if failed else []
        self._add(halves)
        return halves

    def _add(self, some: Iterable[Pass]) -> None:
        self._passes |= {one.id: one for one in some}


def run(payload: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The job's target: quantize what ``configs`` describe and the store lacks."""
    store = Store.at(payload["store"])
    plans = [
        plan_here(config, payload["model"], store, key)
        for key, config in payload["configs"].items()
    ]
    maker = _Making({plan.artifact_key: plan for plan in plans}, payload["importance"], progress)
    store.build_all("artifacts", [plan.artifact for plan in plans], maker.make)
    # Only now that no artifact can be lost by it: others may be making the same.
    result = maker.result
    if result is not None and result.importance is not None:
        keep_importance(plans[0], store, lambda: result)
    return {}


@dataclass
class _Making:
    """One pass under way: what it makes by key, and what came of it."""

    plans: Mapping[str, Plan]
    importance: bool
    progress: Progress
    result: PassResult | None = None

    def make(self, folders: Mapping[str, Path]) -> Mapping[str, dict[str, Any]]:
        """Fill the folders of artifacts, by key; gives what their manifests say."""
        device = self.plans[next(iter(folders))].setting.device
        return dict(zip(folders, made(device, partial(self._quantize, folders)), strict=True))

    def _quantize(
        self, folders: Mapping[str, Path]
    ) -> tuple[list[Artifact], CalibrationTokens | None]:
        chosen = [self.plans[key] for key in folders]
        pairs = [
            (cast(SharedPass, plan.trial.quant), folder)
            for plan, folder in zip(chosen, folders.values(), strict=True)
        ]
        tokens = calibration_tokens(chosen[0])
        self.result = pairs[0][0].quantize_together(
            source_model(chosen[0]), tokens, pairs, self.progress, importance=self.importance
        )
        return self.result.artifacts, tokens


def _groups(plans: Iterable[Plan], store: Store) -> list[list[Plan]]:
    found: dict[str, dict[str, Plan]] = {}
    for plan in plans:
        quant = plan.trial.quant
        if not isinstance(quant, SharedPass) or plan.trial.model.device_map:
            continue
        if quant.pass_name is None:
            continue
        own = ("method", "backend", "options", "version")
        artifact = {k: v for k, v in plan.artifact.items() if k not in own}
        key = key_of(
            [
                quant.pass_name,
                artifact,
                plan.setting.device,
                plan.trial.device,
                plan.trial.model.trust_remote_code,
            ]
        )
        if store.look("artifacts", plan.artifact_key) is None:
            found.setdefault(key, {}).setdefault(plan.artifact_key, plan)
    return [list(group.values()) for group in found.values() if len(group) > 1]


def _passes(parts: Iterable[tuple[Plan, ...]], waiting: frozenset[str]) -> list[Pass]:
    """A pass for each part that needs one, of which the first is the one that is waited for."""
    worthwhile = [part for part in parts if len(part) > 1]
    return [
        Pass(part, waiting if number == 0 else frozenset())
        for number, part in enumerate(worthwhile)
    ]


def _waiting(plans: Iterable[Plan], store: Store) -> dict[str, frozenset[str]]:
    """By calibration text, the keys of missing artifacts that its importance matrix goes into."""
    found: dict[str, frozenset[str]] = {}
    for plan in plans:
        if (
            plan.uses_importance
            and store.look("artifacts", plan.artifact_key) is None
            and store.look("importances", key_of(plan.importance)) is None
        ):
            text = _text_of(plan)
            found[text] = found.get(text, frozenset()) | {plan.artifact_key}
    return found


def _text_of(plan: Plan) -> str:
    return key_of([plan.importance, plan.setting.device])


def _parts(group: Sequence[Plan], budget: int, at_least: int) -> list[tuple[Plan, ...]]:
    """As few parts of about equal size as fit into ``budget`` bytes, none of a single plan."""
    sampling = group[0].trial.calibration
    tokens = sampling.num_samples * min(sampling.max_seq_len, group[0].setting.facts.max_length)
    needs = [
        cast(SharedPass, plan.trial.quant).pass_bytes(plan.setting.facts, tokens) for plan in group
    ]
    itself = max(alone for alone, _ in needs)
    added = sum(more for _, more in needs)
    facts = group[0].setting.facts
    if (stream := group[0].trial.model.stream) is True or (stream == "auto" and itself > budget):
        itself -= 4 * (facts.parameters - held_parameters(facts))
    room = max(budget - itself, 1)
    count = max(-(-added // room), at_least)
    # Where not even two fit, a pass may still try: what dies is split.
    count = min(count, len(group) // 2)
    bounds = [round(number * len(group) / count) for number in range(count + 1)]
    return [tuple(group[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]
