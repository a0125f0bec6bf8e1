"""Budgets that no mix of some candidates can have: refused, with both ends of what there is. Pure."""

import math
from collections.abc import Sequence

from qsweep.base.errors import ConfigError
from qsweep.search.budget.costs import Costs
from qsweep.search.budget.estimate import UNSURE, Estimate, reach
from qsweep.search.budget.limits import Limit, range_of
from qsweep.search.budget.settings import Budget

# A budget this little above what there is costs nobody anything.
_ROUNDED = 1e-3


def require_in_reach(limits: Sequence[Limit], found: Sequence[Estimate | None]) -> None:
    """Refuse budgets before anything is made, as far as sizes can be told then.

    Args:
        limits: The budgets.
        found: What the candidates are estimated to store.

    Raises:
        ConfigError: One is out of reach; the line names both ends.
    """
    known = [one for one in found if one is not None]
    for limit in limits if len(known) == len(found) else ():
        low, high = reach(known, limit.budget.kind, limit.taken)
        if not low * (1 - UNSURE) <= limit.budget.amount <= high * (1 + UNSURE):
            raise _out_of_range(limit.budget, low, high, "about ")


def require_in_range(limits: Sequence[Limit], families: Sequence[Costs]) -> None:
    """The same of what was made."""
    for limit in limits:
        ranges = [range_of(limit, costs) for costs in families]
        low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
        if not low <= limit.budget.amount <= high * (1 + _ROUNDED):
            raise _out_of_range(limit.budget, low, high)


def _out_of_range(budget: Budget, low: float, high: float, about: str = "") -> ConfigError:
    ends = [f"the smallest that these candidates make is {about}{budget.kind}={_up(low)}"]
    ends.append(f"the largest {about}{budget.kind}={_up(high)}")
    ask = "ask for less, or add larger"
    if budget.amount < low:
        ask = "ask for more, or add smaller"
    return ConfigError(f"{budget}: {', '.join(ends)}; {ask} candidates (bits, group_size)")


def _up(amount: float) -> str:
    # Four digits that are no less than the amount.
    digits = 3 - math.floor(math.log10(amount))
    return f"{math.ceil(amount * 10**digits) / 10**digits:g}"
