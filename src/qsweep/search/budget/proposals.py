"""Which mixes are worth making for a budget. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from qsweep.search.budget.costs import Costs
from qsweep.search.budget.families import rules_of
from qsweep.search.budget.knapsack import solve
from qsweep.search.budget.limits import Limit, bits_left

# A neighbour differs from a proposal in this share of the groups, at least in one.
_APART = 0.1


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
        groups, candidates = self.costs.groups, self.costs.candidates
        alike = [0.0] * len(candidates)
        for group, bits, chosen in zip(groups, self.costs.bits, self.choice, strict=True):
            values = candidates[chosen].values
            for number, one in enumerate(candidates):
                if all(one.values[name] == values[name] for name in group):
                    # Per weight, every candidate's bits say as much of a group's size.
                    alike[number] += bits.min()
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
        return rules_of(self.costs.groups, chosen, candidates[self.base].values)

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


def uniforms_within(limit: Limit, families: Sequence[Costs], near: float = 1.15) -> set[str]:
    """Names of the uniform candidates within a budget that may be the best of these.

    Args:
        limit: The budget.
        families: All candidates.
        near: Those are left out that are predicted to cost more than so many times the least.
    """
    within = [one for costs in families for one in costs.candidates if limit.takes(one)]
    least = min((one.loss for one in within), default=0.0)
    return {one.name for one in within if one.loss <= near * least}
