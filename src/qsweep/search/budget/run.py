"""From budgets to an answer: candidates, what each layer costs, mixes, measurements."""

import copy
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from qsweep.base.errors import ConfigError, QsweepError
from qsweep.evaluate.serving_memory import serving_config
from qsweep.formats.artifact import Artifact
from qsweep.formats.encoder import fused_groups
from qsweep.formats.stored_bits import bits_of, stored_layers
from qsweep.models.facts import read_tensors
from qsweep.models.roles import EXPERT
from qsweep.results.arrays import stored_arrays
from qsweep.results.budget import rows_of
from qsweep.results.peers import windows_of
from qsweep.results.record import Record
from qsweep.search.budget.costs import Candidate, Costs, costs_of
from qsweep.search.budget.families import family_of, values_of
from qsweep.search.budget.limits import Limit, limit_of, range_of
from qsweep.search.budget.proposals import Proposal, propose, uniforms_within
from qsweep.search.budget.settings import Budget, BudgetConfig
from qsweep.search.budget.verdict import Verdict, judge
from qsweep.sweep.compose import Composed
from qsweep.sweep.config import trial_config
from qsweep.sweep.found import identified
from qsweep.sweep.make import make_artifacts
from qsweep.sweep.plan import Plan
from qsweep.sweep.planning import plan_all
from qsweep.sweep.sensitivity import sensitivities
from qsweep.sweep.session import Session

# How often a mix is made anew because it turned out larger than was counted.
_TRIES = 3


@dataclass(frozen=True)
class Made:
    """A configuration whose artifact is in the store."""

    config: Composed
    plan: Plan
    artifact: Artifact

    @property
    def name(self) -> str:
        """What its trial is called."""
        return self.plan.trial.name


@dataclass(frozen=True)
class Mix:
    """A proposal that was made."""

    proposal: Proposal
    made: Made


@dataclass(frozen=True)
class BudgetResult:
    """What came of it.

    Attributes:
        verdicts: For each budget what was measured.
        mixes: All that were made, by the key of their trial.
        families: What there was to choose from.
        left_out: Candidates that could not be made, and why.
        seconds: What was spent on what.
    """

    verdicts: tuple[Verdict, ...]
    mixes: Mapping[str, Mix]
    families: tuple[Costs, ...]
    left_out: Mapping[str, str]
    seconds: Mapping[str, float]


@dataclass
class BudgetSearch:
    """Looks for the best model within each of some budgets.

    Attributes:
        session: The sweep that all of it belongs to.
        configs: Of the candidates: each quantizes all layers alike.
        budgets: In ascending order.
        context: Tokens that are to fit beside the model; None: no matter.
        settings: How to look.
    """

    session: Session
    configs: Sequence[Composed]
    budgets: Sequence[Budget]
    context: int | None
    settings: BudgetConfig
    seconds: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def run(self) -> BudgetResult:
        """Make, measure and judge.

        Raises:
            ConfigError: There is nothing to mix, or the model does not fit beside its context.
            QsweepError: A budget is out of range, or no candidate could be made.
        """
        candidates = self._candidates()
        with self._timed("sensitivities"):
            families = self._families(candidates)
        limits = self._limits(candidates[0].plan)
        for limit in limits:
            _require_in_range(limit, families)
        with self._timed("mixes"):
            mixes = self._mixes(limits, families, candidates)
        with self._timed("measuring"):
            records, uniform = self._measured(limits, families, candidates, mixes)
        return self._judged(limits, families, mixes, records, uniform)

    # --- candidates and what they cost -----------------------------------------------------------

    def _candidates(self) -> list[Made]:
        plans, refused = self._plan(self.configs)
        self.left_out.update({one.trial.name: one.reason for one in refused})
        for _, plan in plans:
            family_of(plan.trial.quant, plan.trial.name)
        with self._timed("candidates"):
            made = self._make(plans)
        if len(made) < 2:
            why = "; ".join(f"{name}: {reason}" for name, reason in self.left_out.items())
            raise QsweepError(
                f"budget: {len(made)} candidate{'s' * (len(made) != 1)} to mix, two are the least"
                + (f": {why}" if why else "; give bits, or quant.type, several values")
            )
        return made

    def _plan(self, configs: Sequence[Composed]) -> tuple[list[tuple[Composed, Plan]], Any]:
        found, refused = {}, []
        for config in configs:
            trial = identified(trial_config(config), self.session.store)
            plans, no = plan_all([trial], self.session.store, self.session.settings)
            refused += no
            plan = next((one for one in reversed(plans.values()) if not one.is_reference), None)
            if not no and plan is None:
                raise ConfigError(
                    "budget: quant=none is no candidate; the reference is measured anyway"
                )
            if not no and plan is not None:
                found.setdefault(plan.key, (config, plan))
        return list(found.values()), refused

    def _make(self, plans: Sequence[tuple[Composed, Plan]]) -> list[Made]:
        artifacts, reasons = make_artifacts(self.session, {plan.key: plan for _, plan in plans})
        for _, plan in plans:
            if plan.key in reasons:
                self.left_out[plan.trial.name] = reasons[plan.key]
                _say(f"{plan.trial.name}: left out: {reasons[plan.key]}")
        return [Made(c, p, artifacts[p.key]) for c, p in plans if p.key in artifacts]

    def _families(self, candidates: Sequence[Made]) -> list[tuple[Costs, list[Made]]]:
        losses = sensitivities(self.session, [one.plan for one in candidates])
        groups: dict[Any, list[Made]] = {}
        for one in candidates:
            groups.setdefault(family_of(one.plan.trial.quant, one.name), []).append(one)
        found = []
        for members in groups.values():
            if len(members) > 1:
                found.append((self._costs(members, losses), members))
            else:
                self.left_out[members[0].name] = "nothing to mix it with"
        if not found:
            raise QsweepError(
                "budget: no two candidates can be mixed in one artifact; let bits, group_size or "
                "format have several values for one quantizer"
            )
        return found

    def _costs(self, members: Sequence[Made], losses: Mapping[str, Mapping[str, float]]) -> Costs:
        facts = members[0].plan.setting.facts
        shapes = dict(facts.all_linears)
        for name, tensor in read_tensors(facts.path).items():
            shapes.setdefault(name.removesuffix(".weight"), tensor.shape)
        made = []
        for one in members:
            own = losses[one.plan.artifact_key]
            stored = stored_layers(one.artifact, facts, own)
            size = one.artifact.size
            made.append(
                Candidate(
                    name=one.name,
                    values=values_of(one.plan.trial.quant, facts, stored),
                    bits=bits_of(stored, shapes),
                    losses=own,
                    bytes=size.weight_bytes,
                    linear_bits=size.linear_bits,
                    linear_weights=size.linear_weights,
                )
            )
        alike = _alike(list(made[0].losses), fuse=self.settings.fuse)
        return costs_of(made, alike, facts.all_linears)

    def _limits(self, plan: Plan) -> list[Limit]:
        config = serving_config(plan.setting.facts.path) if self.context is not None else {}
        cache = str(plan.trial.kv_cache)
        return [
            limit_of(budget, config, self.context, "f16" if cache == "none" else cache)
            for budget in self.budgets
        ]

    # --- mixes -----------------------------------------------------------------------------------

    def _mixes(
        self,
        limits: Sequence[Limit],
        families: Sequence[tuple[Costs, list[Made]]],
        candidates: Sequence[Made],
    ) -> dict[str, Mix]:
        # All of one round share a pass; whoever turns out too large is made again, smaller.
        excess = {(n, place): 0 for n in range(len(limits)) for place in range(len(families))}
        kept: dict[str, Mix] = {}
        for _ in range(_TRIES):
            round_ = [
                (key, proposal, self._mixed(proposal, families[key[1]][1]))
                for key in excess
                for proposal in propose(
                    limits[key[0]], families[key[1]][0], self.settings.neighbours, excess[key]
                )
                if not proposal.uniform
            ]
            plans, refused = self._plan([config for _, _, config in round_])
            self.left_out.update({one.trial.name: one.reason for one in refused})
            made = {id(one.config): one for one in self._make(plans)}
            again = {}
            for key, proposal, config in round_:
                if (one := made.get(id(config))) is None:
                    continue
                size, limit = one.artifact.size, proposal.limit
                if limit.holds(size.weight_bytes, size.bpw):
                    kept[one.plan.key] = Mix(proposal, one)
                else:
                    over = size.weight_bytes - proposal.costs.bytes_of(proposal.choice)
                    again[key] = max(excess[key] + over, excess[key] + 1024, again.get(key, 0))
            excess = again
            if not excess:
                break
        return kept

    def _mixed(self, proposal: Proposal, members: Sequence[Made]) -> Composed:
        config = copy.deepcopy(members[proposal.base].config)
        own = members[proposal.base].plan.trial.quant.options().get("rules", [])
        rules = [*own, *proposal.rules]
        written = copy.deepcopy(config.written)
        config["quant"] = {**config["quant"], "rules": rules}
        written["quant"] = {**written["quant"], "rules": rules}
        config.written = written
        return config

    # --- what was measured -----------------------------------------------------------------------

    def _measured(
        self,
        limits: Sequence[Limit],
        families: Sequence[tuple[Costs, list[Made]]],
        candidates: Sequence[Made],
        mixes: Mapping[str, Mix],
    ) -> tuple[list[Record], set[str]]:
        names = {
            name
            for limit in limits
            for name in uniforms_within(limit, [costs for costs, _ in families])
        }
        uniform = [one for one in candidates if one.name in names]
        made = [*uniform, *(mix.made for mix in mixes.values())]
        if not made:
            raise QsweepError("budget: nothing could be made that is within it")
        records = self.session.run_configs([one.config for one in made])
        return records, {one.plan.key for one in uniform}

    def _judged(
        self,
        limits: Sequence[Limit],
        families: Sequence[tuple[Costs, list[Made]]],
        mixes: Mapping[str, Mix],
        records: Sequence[Record],
        uniform: set[str],
    ) -> BudgetResult:
        rows = rows_of(records)
        windows = partial(windows_of, find=stored_arrays)
        verdicts = []
        for limit in limits:
            own = [row for row in rows if row.key in mixes]
            verdicts.append(judge(limit, own, [r for r in rows if r.key in uniform], windows))
        return BudgetResult(
            verdicts=tuple(verdicts),
            mixes=mixes,
            families=tuple(costs for costs, _ in families),
            left_out=self.left_out,
            seconds=self.seconds,
        )

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[what] = time.perf_counter() - began


def _require_in_range(limit: Limit, families: Sequence[tuple[Costs, list[Made]]]) -> None:
    ranges = [range_of(limit, costs) for costs, _ in families]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    budget = limit.budget
    if not low <= budget.amount:
        raise QsweepError(
            f"{budget}: the smallest that these candidates make is {budget.kind}={_up(low)}, the "
            f"largest {_up(high)}; ask for more, or add smaller candidates (bits, group_size)"
        )
    if budget.amount > high * 1.001:
        raise QsweepError(
            f"{budget}: the largest that these candidates make is {budget.kind}={_up(high)}, the "
            f"smallest {_up(low)}; ask for less, or add larger candidates (bits, group_size)"
        )


def _alike(names: Sequence[str], *, fuse: bool) -> list[tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    for group in fused_groups(names) if fuse else [(name,) for name in names]:
        for name in group:
            groups.setdefault(EXPERT.sub(".experts.*.", group[0]), []).append(name)
    return [tuple(group) for group in groups.values()]


def _up(amount: float) -> str:
    # Four digits that are no less than the amount.
    import math

    digits = 3 - math.floor(math.log10(amount))
    return f"{math.ceil(amount * 10**digits) / 10**digits:g}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
