"""The search itself: screen by proxies, claim the most promising, measure few windows, then all."""

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from qsweep.base.errors import QsweepError
from qsweep.results.columns.derived import OWN_RUN
from qsweep.results.record import Record
from qsweep.search.answer import finding_of
from qsweep.search.candidate import Candidate, PlannedTrial, TrialRunner
from qsweep.search.fidelity import (
    CompletedTrial,
    Estimate,
    Fidelity,
    first_windows_of,
    most_promising,
    proxy_of,
    why_hopeless,
)
from qsweep.search.objectives import Constraint, Objective, figure, spans
from qsweep.search.proposals import Proposals
from qsweep.search.served import as_served
from qsweep.search.settings import SearchConfig
from qsweep.search.space import Params, Space, mix_key, mixed_bits
from qsweep.search.study import Study, StudyTrial, with_secrets


class Search:
    """One process's part in the search of a study.

    Args:
        settings: how to search.
        space: what to vary.
        objectives: what to aim at.
        constraints: what must hold.
        lab: runs the trials.
        study: remembers them.
        say: called with a line whenever there is something to tell.
    """

    def __init__(
        self,
        settings: SearchConfig,
        space: Space,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint],
        lab: TrialRunner,
        study: Study,
        say: Callable[[str], None] = lambda line: None,
    ):
        self.settings, self.space, self.lab, self.study = settings, space, lab, study
        self.objectives, self.constraints, self._say = objectives, constraints, say
        self._planned: dict[tuple[tuple[str, str], ...], PlannedTrial | None] = {}
        self._screened: dict[str, Estimate | None] = {}
        # What mixes are chosen from has to be quantized, so they come when all else is done.
        self._mixing = False
        self._taken_mixes: set[tuple[object, ...]] = set()
        names = [o.metric for o in objectives] + [c.metric for c in constraints]
        self._metrics = tuple(dict.fromkeys([*names, "size_gb", "ppl_ratio", "quality"]))
        limit = settings.enumerate_below
        self.enumerates = (
            settings.sampler == "brute_force" or space.count(20 * limit + 1) <= 20 * limit
        ) and self._few_possible(limit)
        self._proposals = None if self.enumerates else Proposals(settings, space, objectives)
        self._first: list[Params] = []

    def run(self, first: Sequence[Params] = ()) -> None:
        """Search until nothing is left that could win, or the budget is spent.

        ``first`` are combinations to try before all others. Stops at an exception of the lab, with
        everything told to the study that was completed.
        """
        orphans = [with_secrets(entry.params, self.space) for entry in self.study.recover()]
        self._first = [*orphans, *first]
        with self.study.alive():
            while batch := self._claim_next():
                self._measure(batch)

    def _few_possible(self, limit: int) -> bool:
        if self.settings.sampler == "brute_force":
            return True
        found = itertools.islice(self._possible(self.space.combinations(), set()), limit + 1)
        return len(list(found)) <= limit

    def _possible(self, combinations: Iterator[Params], taken: set[str]) -> Iterator[Candidate]:
        """The combinations that can exist and are not taken, of equal trials the first."""
        seen = set(taken)
        for params in combinations:
            trial = self._plan(params)
            if trial is not None and trial.key not in seen:
                seen.add(trial.key)
                yield Candidate(params, trial)

    def _plan(self, params: Params) -> PlannedTrial | None:
        key = tuple(params.items())
        if key not in self._planned:
            if mixed_bits(params) is not None and not self._may_mix(params):
                return None
            self._planned[key] = self.lab.plan(params)
        return self._planned[key]

    def _may_mix(self, params: Params) -> bool:
        # Not of one that the study has: to look at it again could mean to quantize again.
        return self._mixing and mix_key(params) not in self._taken_mixes

    # --- what next -----------------------------------------------------------------------------

    def _claim_next(self) -> list[tuple[int, Candidate]]:
        """Claim the most promising candidates; empty when the search is over."""
        while True:
            entries = self.study.entries()
            taken = {e.key for e in entries if self.study.is_taken(e)}
            self._taken_mixes = {
                mix_key(e.params)
                for e in entries
                if self.study.is_taken(e) and mixed_bits(e.params) is not None
            }
            width = min(self._width(), self._budget(entries))
            pool = self._pool(width, taken, entries) if width > 0 else []
            if not pool and width > 0 and not self._mixing:
                self._mixing = True
                continue
            if not pool:
                return []
            hopeful = self._drop(self._screen(pool), entries)
            order = most_promising([candidate.estimate for candidate in hopeful], self.objectives)
            claimed = []
            for position in order:
                candidate = hopeful[position]
                trial = candidate.trial
                number = self.study.claim(
                    trial.key,
                    trial.name,
                    candidate.params,
                    self.space,
                    candidate.estimate,
                    trial.mix,
                )
                if number is not None:
                    claimed.append((number, candidate))
                if len(claimed) == width:
                    break
            if claimed:
                return claimed

    def _width(self) -> int:
        return self.lab.width if self.settings.batch == "auto" else self.settings.batch

    def _budget(self, entries: Sequence[StudyTrial]) -> int:
        """How many more trials may be quantized; those dropped before it cost nothing."""
        limit = self.settings.trials
        if limit is None:
            if self.enumerates:
                return self._width()
            limit = _SAMPLED
        spent = [e for e in entries if self.study.is_taken(e) and e.reason not in _UNSPENT]
        return limit - sum(e.estimate is None or e.estimate.fidelity != "proxy" for e in spent)

    def _pool(self, width: int, taken: set[str], entries: Sequence[StudyTrial]) -> list[Candidate]:
        first = list(self._possible(iter(self._first), taken))[:width]
        if first:
            return first
        if self.enumerates:
            pool = list(self._possible(self.space.combinations(), taken))
            random.Random(self.settings.seed).shuffle(pool)  # noqa: S311
            return pool
        pool, proposed = [], set(taken)

        def key_of(params: Params) -> str | None:
            trial = self._plan(params)
            return None if trial is None else trial.key

        assert self._proposals is not None
        while len(pool) < width:
            params = self._proposals.propose(key_of, proposed, entries)
            trial = None if params is None else self._plan(params)
            if params is None or trial is None:
                break
            proposed.add(trial.key)
            pool.append(Candidate(params, trial))
        return pool

    def _screen(self, pool: Sequence[Candidate]) -> list[Candidate]:
        """The pool with what proxies say of it; what needs no proxy shows its own first windows."""
        if "proxy" in self.settings.rungs:
            new = [c for c in pool if c.trial.key not in self._screened]
            looks = [self._cheapest(candidate) for candidate in new]
            for candidate, estimate in zip(new, self._look(looks), strict=True):
                self._screened[candidate.trial.key] = estimate
        return [Candidate(c.params, c.trial, self._screened.get(c.trial.key)) for c in pool]

    def _cheapest(self, candidate: Candidate) -> Params:
        trial = candidate.trial
        proxy = proxy_of(candidate.overrides, trial.quant, trial.method, self.settings.proxy)
        if proxy is None:
            return first_windows_of(candidate.overrides, self.settings.few_windows, "few")
        return first_windows_of(proxy, self.settings.few_windows, "proxy")

    def _look(self, jobs: Sequence[Params]) -> list[Estimate | None]:
        """Measure at low fidelity, equal jobs once; None for what did not finish."""
        distinct = {tuple(job.items()): job for job in jobs}
        records = dict(zip(distinct, self._run(list(distinct.values())), strict=True))
        return [self._estimate(records[tuple(job.items())]) for job in jobs]

    def _run(self, batch: Sequence[Params]) -> list[Record]:
        """Run trials. Raises QsweepError where their reference is none to compare with."""
        records = [as_served(record, self.settings.card) for record in self.lab.run(batch)]
        for record in records:
            why = record.primary.no_verdict if record.finished and record.primary else ""
            if why:
                raise QsweepError(f"{record.name}: {why}: there is nothing to search for")
        return records

    def _estimate(self, record: Record) -> Estimate | None:
        if not record.finished:
            return None
        fidelity: Any = record.fidelity
        keeps = self.settings.keeps if fidelity == "proxy" else None
        return Estimate(fidelity, spans(record, self._metrics, keeps))

    def _drop(self, pool: Sequence[Candidate], entries: Sequence[StudyTrial]) -> list[Candidate]:
        rivals = self._rivals(entries)
        hopeful = []
        for candidate in pool:
            estimate = candidate.estimate
            reason = estimate and self._why_hopeless(estimate, rivals)
            if estimate is not None and reason:
                trial = candidate.trial
                self.study.drop_unclaimed(
                    trial.key, trial.name, candidate.params, self.space, estimate, reason
                )
            else:
                hopeful.append(candidate)
        return hopeful

    def _rivals(self, entries: Sequence[StudyTrial]) -> list[CompletedTrial]:
        """Trials that others may be dropped for: feasible, and fit to be the answer."""
        return [
            CompletedTrial(e.number, e.estimate)
            for e in entries
            if e.feasible and e.estimate is not None and e.finding is not None
            if e.finding["serves"] or not self.settings.serving
        ]

    def _why_hopeless(self, estimate: Estimate, rivals: Sequence[CompletedTrial]) -> str | None:
        references = self._references(estimate.fidelity)
        return why_hopeless(estimate, rivals, self.objectives, self.constraints, references)

    def _references(self, fidelity: Fidelity) -> dict[str, float]:
        record = self.lab.reference(fidelity)
        found = {}
        for constraint in self.constraints if record is not None else ():
            if constraint.of_reference:
                with contextlib.suppress(QsweepError):
                    found[constraint.metric] = figure(record, constraint.metric)  # type: ignore[arg-type]
        return found

    # --- what came out -------------------------------------------------------------------------

    def _measure(self, batch: Sequence[tuple[int, Candidate]]) -> None:
        for number, candidate in self._first_windows(batch):
            (record,) = self._run([candidate.overrides])
            self._take(number, candidate, record)

    def _first_windows(self, batch: Sequence[tuple[int, Candidate]]) -> list[tuple[int, Candidate]]:
        """Those of a batch that may still win after their first windows."""
        if "few" not in self.settings.rungs:
            return list(batch)
        windows = self.settings.few_windows
        jobs = [first_windows_of(candidate.overrides, windows, "few") for _, candidate in batch]
        left = []
        for (number, candidate), record in zip(batch, self._run(jobs), strict=True):
            estimate = self._estimate(record)
            if estimate is None:
                self.study.fail(number, record.reason or "no reason recorded")
                continue
            if self._is_too_large(number, candidate, record):
                continue
            known = candidate.estimate
            if known is None or known.fidelity == "proxy":
                self.study.note(number, estimate)
            reason = self._why_hopeless(estimate, self._rivals(self.study.entries()))
            if reason:
                self.study.drop(number, reason)
                self._say(f"{candidate.trial.name}: dropped after its first windows, {reason}")
            else:
                left.append((number, candidate))
        return left

    def _take(self, number: int, candidate: Candidate, record: Record) -> None:
        if not record.finished:
            self.study.fail(number, record.reason or "no reason recorded")
            return
        if reason := record.only_own_run:
            self.study.fail(number, f"{OWN_RUN}: {reason}")
            return
        if self._is_too_large(number, candidate, record):
            return
        references = self._references("full")
        violations = {
            str(c): c.excess(figure(record, c.metric), references.get(c.metric))
            for c in self.constraints
        }
        values = [figure(record, objective.metric) for objective in self.objectives]
        self.study.complete(number, values, violations, finding_of(record, candidate.params))

    def _is_too_large(self, number: int, candidate: Candidate, record: Record) -> bool:
        """Whether a mix turned out larger than it was asked to be, and so was dropped."""
        asked, artifact = mixed_bits(candidate.params), record.artifact
        if asked is None or artifact is None or artifact.bpw is None or artifact.bpw <= asked:
            return False
        reason = (
            f"its artifact has {artifact.bpw:.4g} stored bits per weight, {asked:g} are asked for"
        )
        self.study.drop(number, reason)
        self._say(f"{candidate.trial.name}: dropped, {reason}")
        return True


# How many trials a sampler gets where nobody says: it would never call a large space done.
_SAMPLED = 100
# Reasons of trials that were given up before they cost anything.
_UNSPENT = ("interrupted",)
