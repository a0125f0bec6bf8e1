"""Which mixes are worth making for a budget. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from qsweep.search.budget.costs import Candidate, Costs
from qsweep.search.budget.families import rules_of
from qsweep.search.budget.knapsack import solve
from qsweep.search.budget.limits import Limit, bits_left

# A neighbour differs from a proposal in this share of the groups, at least in one.
_APART = 0.1
# How many uniform candidates are measured at least, and how much worse they may be predicted to be.
_FEWEST, _NEAR = 2, 1.5


@dataclass(frozen=True)
class Proposal:
    """A mix that may be the best within a budget.

    Attributes:
        limit: The budget.
        costs: Of the groups that were chosen for.
        choice: By group the candidate that it gets.
    """

    limit: Limit
    costs: Costs
    choice: tuple[int, ...]

    @property
    def base(self) -> int:
        """The candidate whose configuration the mix is a variation of: it shares most weights."""
        costs, alike = self.costs, [0.0] * len(self.costs.candidates)
        for place, (group, chosen) in enumerate(zip(costs.groups, self.choice, strict=True)):
            values = costs.candidates[chosen].values
            for number, one in enumerate(costs.candidates):
                # The embedding says nothing of what the layers are.
                if costs.linear[place] and all(
                    one.values.get(name) == values.get(name) for name in group
                ):
                    # Per weight, every candidate's bits say as much of a group's size.
                    alike[number] += costs.bits[place].min()
        return max(range(len(alike)), key=lambda n: alike[n])

    @property
    def uniform(self) -> bool:
        """Whether it is no mix at all."""
        return not self.rules

    @property
    def rules(self) -> list[str]:
        """What ``quant.rules`` says of it beside the base's options."""
        candidates = self.costs.candidates
        chosen = [candidates[n].values for n in self.choice]
        base = candidates[self.base]
        return rules_of(self.costs.groups, chosen, base.values, self.costs.layers)

    @property
    def loss(self) -> float:
        """What it is predicted to cost, in nats per token."""
        return self.costs.loss_of(self.choice)


def propose(limit: Limit, costs: Costs, neighbours: int = 0, excess: int = 0) -> list[Proposal]:
    """The best mix within a budget, and others that are predicted to be nearly as good.

    Args:
        limit: The budget.
        costs: What there is to choose from.
        neighbours: How many others.
        excess: Bytes by which such a mix turned out larger than was counted.

    Returns:
        The best first; nothing where even the smallest is too large.
    """
    left, able = bits_left(limit, costs, excess)
    found: list[tuple[int, ...]] = []
    distance = max(1, round(_APART * len(costs.groups)))
    for _ in range(1 + neighbours):
        choice = solve(able.losses, able.bits, left, tuple(found), distance) if left > 0 else None
        if choice is None:
            break
        found.append(choice)
    return [Proposal(limit, able, choice) for choice in found]


def uniforms_within(limit: Limit, families: Sequence[Costs]) -> list[Candidate]:
    """The uniform candidates within a budget, those first that are predicted to cost the least.

    Args:
        limit: The budget.
        families: All candidates.
    """
    within = [one for costs in families for one in costs.candidates if limit.takes(one)]
    return sorted(within, key=lambda one: one.loss)


def rivals(within: Sequence[Candidate]) -> list[Candidate]:
    """Those of the uniform candidates within a budget that may be the best of these.

    They are the two that are predicted to cost the least, and whoever is predicted to cost no more
    than half as much again as the first: so far off predictions are, for mixtures of experts.
    """
    least = within[0].loss if within else 0.0
    return [one for place, one in enumerate(within) if place < _FEWEST or one.loss <= _NEAR * least]
