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
from qsweep.results.peers import windows_of
from qsweep.results.record import Record
from qsweep.search.budget.candidates import Family, Made, Planned, Workshop
from qsweep.search.budget.costs import Costs
from qsweep.search.budget.estimate import estimate
from qsweep.search.budget.families import family_of
from qsweep.search.budget.limits import Limit, limit_of
from qsweep.search.budget.proposals import Proposal, propose, uniforms_within
from qsweep.search.budget.reach import require_in_range, require_in_reach
from qsweep.search.budget.settings import Budget, BudgetConfig
from qsweep.search.budget.verdict import Verdict, judge
from qsweep.sweep.compose import Composed
from qsweep.sweep.session import Session

# How often a mix is made anew because it turned out larger than was counted, and by how many bytes
# at least the next one is smaller.
_TRIES, _STEP = 3, 1024


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
            verdicts=tuple(_verdicts(limits, mixes, records, uniform)),
            mixes=mixes,
            families=tuple(family.costs for family in families),
            left_out=self.workshop.left_out,
            seconds=self.seconds,
        )

    def _limits(self, one: Planned) -> list[Limit]:
        setting, cache = one.plan.setting, one.plan.trial.kv_cache
        config = serving_config(setting.facts.path) if self.context is not None else {}
        served = str(cache) if cache else "f16"
        return [limit_of(budget, config, self.context, served) for budget in self.budgets]

    def _mixes(self, limits: Sequence[Limit], families: Sequence[Family]) -> dict[str, Mix]:
        # All of one round share a pass; whoever turns out too large is made again, smaller.
        excess = {(n, place): 0 for n in range(len(limits)) for place in range(len(families))}
        kept: dict[str, Mix] = {}
        for _ in range(_TRIES):
            proposals = [
                (key, proposal)
                for key, over in excess.items()
                for proposal in propose(
                    limits[key[0]], families[key[1]].costs, self.settings.neighbours, over
                )
                if not proposal.uniform
            ]
            configs = [families[key[1]].mixed(proposal) for key, proposal in proposals]
            made = {id(m.config): m for m in self.workshop.make(self.workshop.plan(configs))}
            again: dict[tuple[int, int], int] = {}
            for (key, proposal), config in zip(proposals, configs, strict=True):
                if (one := made.get(id(config))) is None:
                    continue
                size = one.artifact.size
                if proposal.limit.holds(size.weight_bytes, size.bpw):
                    kept[one.plan.key] = Mix(proposal, one)
                    continue
                over = size.weight_bytes - proposal.costs.bytes_of(proposal.choice)
                again[key] = max(over, _STEP, again.get(key, 0))
            excess = again
            if not excess:
                break
        return kept

    def _measured(
        self, limits: Sequence[Limit], families: Sequence[Family], mixes: Mapping[str, Mix]
    ) -> tuple[list[Record], set[str]]:
        costs = [family.costs for family in families]
        names = {name for limit in limits for name in uniforms_within(limit, costs)}
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
    limits: Sequence[Limit], mixes: Mapping[str, Mix], records: Sequence[Record], uniform: set[str]
) -> Iterator[Verdict]:
    rows, windows = rows_of(records), partial(windows_of, find=stored_arrays)
    for limit in limits:
        own = [r for r in rows if r.key in mixes and mixes[r.key].proposal.limit == limit]
        yield judge(limit, own, [r for r in rows if r.key in uniform], windows)
