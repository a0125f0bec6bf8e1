"""Which option each group of layers gets so that all of it is small enough and costs the least. Pure.

The multiple-choice knapsack, solved exactly as an integer program by HiGHS (``scipy.optimize.milp``).
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from qsweep.base.errors import TrialFailed

if TYPE_CHECKING:
    import numpy as np

# Seconds for one solution, and how far from the best it may be: far more, and far less, than errors
# of what it is made of. A model of 80 layers takes a fraction of a second.
_SECONDS, _GAP = 60.0, 1e-4


def solve(
    losses: "np.ndarray",
    bits: "np.ndarray",
    limit: float,
    other_than: "tuple[tuple[int, ...], ...]" = (),
    distance: int = 1,
) -> tuple[int, ...] | None:
    """The option of each group that makes the sum of losses least.

    Args:
        losses: Of each group with each option, float64 [groups, options]; not finite where a group
            cannot have it.
        bits: What it stores then, [groups, options].
        limit: Stored bits of all groups together, at most.
        other_than: Solutions that are not wanted.
        distance: In how many groups the solution is to differ from each of these, at least.

    Returns:
        For each group the number of its option; None where nothing is small enough.

    Raises:
        TrialFailed: The solver gives up.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, kron, vstack

    groups, options = losses.shape
    able = np.isfinite(losses)
    if not able.any(1).all() or np.where(able, bits, np.inf).min(1).sum() > limit:
        return None
    each = kron(csr_array(np.eye(groups)), csr_array(np.ones((1, options))))
    size = csr_array(np.where(able, bits, 0).reshape(1, -1) / limit)
    rows = [each, size]
    low, high = [1.0] * groups + [-np.inf], [1.0] * (groups + 1)
    for solution in other_than:
        same = np.zeros((groups, options))
        same[np.arange(groups), list(solution)] = 1
        rows.append(csr_array(same.reshape(1, -1)))
        low.append(-np.inf)
        high.append(float(groups - min(distance, groups)))
    # Losses span orders of magnitude: without a scale the smallest would lie below the solver's
    # tolerance.
    scaled = np.where(able, losses, 0.0)
    scale = np.abs(scaled).max() or 1.0
    with _silent():
        found = milp(
            (scaled / scale).ravel(),
            constraints=LinearConstraint(vstack(rows, format="csr"), low, high),
            integrality=np.ones(groups * options),
            bounds=Bounds(0, able.astype(float).ravel()),
            options={"time_limit": _SECONDS, "mip_rel_gap": _GAP},
        )
    if found.x is None:
        if found.status == 2:  # infeasible
            return None
        raise TrialFailed(f"budget: the solver found no assignment: {found.message}")
    return tuple(int(n) for n in found.x.reshape(groups, options).argmax(1))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Nothing written to the standard output: HiGHS prints some lines whatever it is told."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
