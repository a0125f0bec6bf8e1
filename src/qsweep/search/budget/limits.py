"""What a budget leaves for the layers that are chosen for, and what it leaves out. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qsweep.base import numbers
from qsweep.base.errors import ConfigError
from qsweep.evaluate.serving_memory import Footprint, footprint, kv_bytes_per_token
from qsweep.formats.kv_cache.spec import KVCache
from qsweep.search.budget.costs import Candidate, Costs
from qsweep.search.budget.settings import Budget


@dataclass(frozen=True)
class Limit:
    """A budget for one model.

    Attributes:
        budget: As it was asked for.
        bytes: Of the weight files, at most; None where bits per weight are asked for.
        beside: What else the memory is needed for; None where that is not asked.
    """

    budget: Budget
    bytes: int | None
    beside: Footprint | None = None

    @property
    def taken(self) -> int:
        """Bytes that are needed beside the weights."""
        return 0 if self.beside is None else self.beside.total

    def holds(self, size: int, bpw: float | None) -> bool:
        """Whether an artifact of so many bytes, and bits per weight, is within the budget."""
        if self.bytes is not None:
            return size <= self.bytes
        return bpw is not None and bpw <= self.budget.amount

    def takes(self, one: Candidate) -> bool:
        """Whether a candidate is within the budget."""
        return self.holds(one.bytes, one.bpw)


def limit_of(
    budget: Budget, config: Mapping[str, Any], context: int | None, cache: KVCache | None = None
) -> Limit:
    """What a budget means for a model.

    Args:
        budget: The budget.
        config: The model's, see :func:`~qsweep.evaluate.serving_memory.serving_config`.
        context: Tokens of the sequence that is served; None: no matter.
        cache: What its keys and values are stored as; None: in 16 bits.

    Raises:
        ConfigError: The context alone takes all of the memory.
    """
    if budget.kind == "bpw":
        return Limit(budget, None)
    total = int(budget.amount * 1e9)
    if budget.kind == "size_gb":
        return Limit(budget, total)
    assert context is not None
    beside = footprint(0, config, context)
    if cache:
        plain, own = (kv_bytes_per_token(config, one, context) for one in (KVCache(), cache))
        beside = replace(beside, cache=math.ceil(beside.cache - (plain - own) * context))
    if beside.total >= total:
        raise ConfigError(
            f"{budget} context={context}: the cache and buffers of so many tokens take "
            f"{numbers.gigabytes(beside.total / 1e9)} GB, which leaves nothing for the model; a "
            "shorter context or a smaller kv_cache"
        )
    return Limit(budget, total - beside.total, beside)


def bits_left(limit: Limit, costs: Costs, excess: int = 0) -> tuple[float, Costs]:
    """Stored bits that all groups may take together, and the costs to choose by.

    Where bits per weight are asked for, which count linear layers alone, everything else becomes
    what it is in the best candidate within the budget: it is not to grow for nothing.

    Args:
        limit: The budget.
        costs: Of the groups.
        excess: Bytes by which an artifact turned out larger than was counted.
    """
    if limit.bytes is not None:
        return (limit.bytes - excess) * 8.0 - costs.rest, costs
    import numpy as np

    fixed = _fixed(costs, _nearest(costs, limit))
    left = limit.budget.amount * costs.weights - costs.settled - 8 * excess
    free = ~costs.linear
    others = fixed.bits[free][np.isfinite(fixed.losses[free])].sum()
    return left + float(others), fixed


def range_of(limit: Limit, costs: Costs) -> tuple[float, float]:
    """The smallest and the largest budget of its kind that means anything for some costs."""
    if limit.bytes is None:
        return costs.linear_range
    return (costs.smallest + limit.taken) / 1e9, (costs.largest + limit.taken) / 1e9


def _nearest(costs: Costs, limit: Limit) -> int:
    within = [n for n, one in enumerate(costs.candidates) if limit.takes(one)]
    if not within:
        return min(range(len(costs.candidates)), key=lambda n: costs.candidates[n].bpw)
    return min(within, key=lambda n: costs.candidates[n].loss)


def _fixed(costs: Costs, candidate: int) -> Costs:
    import numpy as np

    losses = costs.losses.copy()
    for number in np.flatnonzero(~costs.linear):
        group, own = costs.groups[number], costs.candidates[candidate]
        # It may have this from another candidate, which gives it the same.
        same = [
            place
            for place, one in enumerate(costs.candidates)
            if np.isfinite(losses[number, place])
            and all(one.values.get(name) == own.values.get(name) for name in group)
        ]
        losses[number, [place for place in range(losses.shape[1]) if place not in same]] = np.inf
    return replace(costs, losses=losses)
