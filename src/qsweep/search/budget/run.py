"""From budgets to an answer: candidates, what each layer costs, mixes, measurements."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial

from qsweep.base.errors import QsweepError
from qsweep.evaluate.serving_memory import serving_config
from qsweep.results.arrays import stored_arrays
from qsweep.results.budget import rows_of
from qsweep.results.record import Record
from qsweep.results.windows import windows_of
from qsweep.search.budget.candidates import Family, Made, Planned, Workshop
from qsweep.search.budget.costs import Costs
from qsweep.search.budget.estimate import estimate
from qsweep.search.budget.families import family_of
from qsweep.search.budget.limits import Limit, limit_of
from qsweep.search.budget.proposals import Proposal, propose, rivals, uniforms_within
from qsweep.search.budget.reach import require_in_range, require_in_reach
from qsweep.search.budget.settings import Budget, BudgetConfig
from qsweep.search.budget.verdict import Verdict, judge
from qsweep.sweep.compose import Composed
from qsweep.sweep.session import Session

# How often a mix is made anew because it turned out larger than was counted, and by how many bytes
# at least the next one is smaller.
_TRIES, _STEP = 3, 1024
# A mix for a smaller budget that is predicted to cost no more than so many times the best.
_NEAR = 1.05


@dataclass(frozen=True)
class Mix:
    """A proposal that was made."""

    proposal: Proposal
    made: Made

    @property
    def rules(self) -> list[str]:
        """All of its rules, those of its candidates among them."""
        found: list[str] = self.made.plan.trial.quant.options()["rules"]
        return found


@dataclass(frozen=True)
class BudgetResult:
    """What came of it.

    Attributes:
        verdicts: For each budget what was measured.
        mixes: All that were made, by the key of their trial.
        families: What there was to choose from.
        left_out: What could not be made, and why.
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
        seconds: What was spent on what so far.
        families: What is chosen from, once the candidates are made.
    """

    session: Session
    configs: Sequence[Composed]
    budgets: Sequence[Budget]
    context: int | None
    settings: BudgetConfig
    seconds: dict[str, float] = field(default_factory=dict)

    families: Sequence[Family] = ()

    @cached_property
    def workshop(self) -> Workshop:
        """Where candidates and mixes are made."""
        return Workshop(self.session, self.settings.fuse)

    def run(self) -> BudgetResult:
        """Make, measure and judge.

        Raises:
            ConfigError: There is nothing to mix, a budget is out of range, or the context alone
                takes all of the memory.
            QsweepError: No candidate could be made.
        """
        planned = self.workshop.plan(self.configs)
        for one in planned:
            family_of(one.plan.trial.quant, one.name)
        self.workshop.require_several(planned)
        limits = self._limits(planned[0])
        sizes = [estimate(one.plan.trial.quant, one.plan.setting.facts) for one in planned]
        require_in_reach(limits, sizes)
        with self._timed("candidates"):
            candidates = self.workshop.make(planned)
        self.workshop.require_several(candidates)
        with self._timed("sensitivities"):
            families = self.families = self.workshop.families(candidates)
        require_in_range(limits, [family.costs for family in families])
        with self._timed("mixes"):
            mixes = self._mixes(limits, families)
        with self._timed("measuring"):
            records, uniform = self._measured(limits, families, mixes)
        return BudgetResult(
            verdicts=tuple(_verdicts(limits, families, mixes, records, uniform)),
            mixes=mixes,
            families=tuple(family.costs for family in families),
            left_out=self.workshop.left_out,
            seconds=self.seconds,
        )

    def _limits(self, one: Planned) -> list[Limit]:
        setting, cache = one.plan.setting, one.plan.trial.kv_cache
        config = serving_config(setting.facts.path) if self.context is not None else {}
        return [limit_of(budget, config, self.context, cache) for budget in self.budgets]

    def _mixes(self, limits: Sequence[Limit], families: Sequence[Family]) -> dict[str, Mix]:
        # All of one round share a pass; whoever turns out too large is made again, smaller.
        others = self.settings.others(len(limits))
        several = [place for place, family in enumerate(families) if len(family.members) > 1]
        excess = {(n, place): 0 for n in range(len(limits)) for place in several}
        kept: dict[str, Mix] = {}
        for _ in range(_TRIES):
            proposed = self._planned(limits, families, excess, others)
            distinct = {one.plan.key: one for _, _, one in proposed}
            made = {one.plan.key: one for one in self.workshop.make(list(distinct.values()))}
            again: dict[tuple[int, int], int] = {}
            for key, proposal, planned in proposed:
                if (one := made.get(planned.plan.key)) is None:
                    continue
                size = one.artifact.size
                if proposal.limit.holds(size.weight_bytes, size.bpw):
                    kept.setdefault(one.plan.key, Mix(proposal, one))
                    continue
                over = size.weight_bytes - proposal.costs.bytes_of(proposal.choice)
                again[key] = max(excess[key] + max(over, _STEP), again.get(key, 0))
            excess = again
            if not excess:
                break
        for number, _ in excess:
            name = f"a mix for {limits[number].budget}"
            self.workshop.left_out[name] = "it came out larger than its budget, three times"
        return kept

    def _planned(
        self,
        limits: Sequence[Limit],
        families: Sequence[Family],
        excess: Mapping[tuple[int, int], int],
        others: int,
    ) -> list[tuple[tuple[int, int], Proposal, Planned]]:
        found = []
        for key, over in excess.items():
            limit, family = limits[key[0]], families[key[1]]
            for proposal in propose(limit, family.costs, others, over):
                if not proposal.uniform:
                    config = family.mixed(proposal)
                    found += [(key, proposal, one) for one in self.workshop.plan([config])]
        return found

    def _measured(
        self, limits: Sequence[Limit], families: Sequence[Family], mixes: Mapping[str, Mix]
    ) -> tuple[list[Record], set[str]]:
        costs = [family.costs for family in families]
        names = {one.name for limit in limits for one in rivals(uniforms_within(limit, costs))}
        uniform = [m for family in families for m in family.members if m.name in names]
        made = [*uniform, *(mix.made for mix in mixes.values())]
        if not made:
            raise QsweepError("budget: nothing could be made that is within it")
        records = self.session.run_configs([one.config for one in made])
        return records, {one.plan.key for one in uniform}

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[what] = time.perf_counter() - began


def _verdicts(
    limits: Sequence[Limit],
    families: Sequence[Family],
    mixes: Mapping[str, Mix],
    records: Sequence[Record],
    uniform: set[str],
) -> Iterator[Verdict]:
    rows, windows = rows_of(records), partial(windows_of, find=stored_arrays)
    costs = [family.costs for family in families]
    for limit in limits:
        own = _hopeful(limit, mixes)
        yield judge(
            limit,
            [row for row in rows if row.key in own],
            [row for row in rows if row.key in uniform],
            windows,
            [one.name for one in uniforms_within(limit, costs)],
        )


def _hopeful(limit: Limit, mixes: Mapping[str, Mix]) -> set[str]:
    # Those made for a smaller budget are within a larger one, too, and may be as good; more of them
    # than may be would only make intervals wider.
    within = {
        key: mix.proposal.loss
        for key, mix in mixes.items()
        if limit.holds(mix.made.artifact.size.weight_bytes, mix.made.artifact.size.bpw)
    }
    least = min(within.values(), default=0.0)
    return {key for key, loss in within.items() if loss <= _NEAR * least}
