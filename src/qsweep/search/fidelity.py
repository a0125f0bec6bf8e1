"""Cheaper stand-ins for a trial: what they run, and what they prove.

Quantizing costs more than measuring, so fidelity begins there: a *proxy* is quantized by something
that takes seconds, *few* is the real artifact on its first windows, *full* the trial itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qsweep.search.objectives import Constraint, Objective, Span
from qsweep.search.space import Params

Fidelity = Literal["proxy", "few", "full"]
# What a proxy stands in for; the others take seconds themselves.
_SLOW = ("gptq", "awq")


@dataclass(frozen=True)
class Estimate:
    """What is known of a candidate: spans of the metrics that count, at some fidelity."""

    fidelity: Fidelity
    spans: dict[str, Span]


@dataclass(frozen=True)
class CompletedTrial:
    """A completed, feasible trial, by what it showed at the fidelity that others are dropped at."""

    number: int
    estimate: Estimate


def first_windows_of(overrides: Mapping[str, str], windows: int, fidelity: Fidelity) -> Params:
    """A trial's overrides on its first windows only, without what is slow and decides nothing.

    These few are all read: an interval that holds wherever one stops excludes next to nothing there.
    """
    return {
        **overrides,
        "eval.max_windows": str(windows),
        "eval.until": "null",
        "eval.noise_floor": "false",
        "eval.speed": "false",
        "eval.kld_native": "false",
        "eval.tasks": "[]",
        "search.fidelity": fidelity,
    }


def proxy_of(
    overrides: Mapping[str, str], quant: Mapping[str, Any], method: str, kind: str
) -> Params | None:
    """The overrides of a trial's proxy; None where the trial itself is as cheap.

    Args:
        overrides: the trial's.
        quant: its composed group ``quant``.
        method: gptq, awq, rtn, gguf.
        kind: ``rtn`` rounds to nearest at the same bits and groups; ``native`` is qsweep's own
            quantizer, which for GPTQ skips the propagation from layer to layer.
    """
    if method not in _SLOW:
        return None
    if kind == "rtn":
        # Of a method's own options only what says which layer gets which bits.
        own = {k: k.lstrip("+~") for k in overrides}
        kept = {
            k: v
            for k, v in overrides.items()
            if own[k] == "quant.rules" or not own[k].startswith("quant.")
        }
        # In the asymmetric form of the papers' baseline, whatever the method's own grid.
        return {**kept, "quant": "rtn", "desc_act": "false"}
    if quant.get("backend") == "native" and (method == "awq" or quant.get("sequential") is False):
        return None
    changed = {**overrides, "quant.backend": "native"}
    return {**changed, "++quant.sequential": "false"} if method == "gptq" else changed


def why_hopeless(
    candidate: Estimate,
    rivals: Sequence[CompletedTrial],
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
    references: Mapping[str, float],
) -> str | None:
    """Why a candidate cannot win, at the optimistic end of all its intervals; None if it may.

    It cannot where a constraint is out of reach, or where some rival at the *pessimistic* end of its
    own intervals is no worse in any objective and better in one.

    Args:
        candidate: What is known of it.
        rivals: Completed trials, seen at the same fidelity.
        objectives: What the search aims at.
        constraints: What must hold.
        references: The reference's figures, for constraints that are relative to it.
    """
    for constraint in constraints:
        best = constraint.best(candidate.spans[constraint.metric])
        if constraint.excess(best, references.get(constraint.metric)) > 0:
            return f"{constraint} is out of reach ({best:.4g} at best)"
    for rival in rivals:
        pairs = [
            (o, o.worst(rival.estimate.spans[o.metric]), o.best(candidate.spans[o.metric]))
            for o in objectives
        ]
        if any(o.better(best, worst) for o, worst, best in pairs):
            continue
        if any(o.better(worst, best) for o, worst, best in pairs):
            limits = ", ".join(f"{o.metric} {best:.4g} at best" for o, _, best in pairs)
            return f"cannot beat trial {rival.number} ({limits})"
    return None


def most_promising(
    estimates: Sequence[Estimate | None], objectives: Sequence[Objective]
) -> list[int]:
    """Positions of candidates, most promising first: those that fewest others dominate.

    Optimistic ends are compared; what nothing is known of comes first. A front of several
    objectives is gone through from both of its ends and its middle, by the order of positions.
    """
    points = [
        None if o is None else tuple(_cost(goal, o) for goal in objectives) for o in estimates
    ]

    def dominated(point: tuple[float, ...] | None) -> int:
        if point is None:
            return -1
        others = [other for other in points if other is not None]
        return sum(
            all(a <= b for a, b in zip(other, point, strict=True)) and other != point
            for other in others
        )

    order = {i: (dominated(p), p if p and len(p) == 1 else (), i) for i, p in enumerate(points)}
    return sorted(order, key=lambda i: order[i])


def _cost(objective: Objective, estimate: Estimate) -> float:
    best = objective.best(estimate.spans[objective.metric])
    return -best if objective.direction == "maximize" else best
