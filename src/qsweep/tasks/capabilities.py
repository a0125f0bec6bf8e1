"""From tasks' scores to capabilities: what a model kept of each, and which suffered most."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt
from qsweep.evaluate.metrics import quality
from qsweep.tasks.long.compare import compare_long
from qsweep.tasks.long_answers import LongAnswers
from qsweep.tasks.significance import (
    REPLICATES,
    Interval,
    interval,
    measurable,
    paired_p,
    paired_replicates,
    samples_needed,
    wilson,
)
from qsweep.tasks.task import CAPABILITIES, TaskResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A loss of fewer points is of no consequence: what is ruled out beyond it is "no measurable loss".
MARGIN = 0.02


@dataclass(frozen=True)
class Comparison:
    """A task on a model beside its reference.

    Attributes:
        summary: Figures for the record.
        retention: Bootstrap replicates of what was kept; None where the reference is at chance.
        difference: Replicates of the score's difference; None for a perplexity.
        pairs: The two models' scores, sample by sample.
        choices: The choices that the two took, sample by sample, where there were some.
        long: The two models' long answers, by part.
    """

    summary: dict[str, Any]
    retention: "NDArray | None" = None
    difference: "NDArray | None" = None
    pairs: tuple[tuple[float, float], ...] = ()
    choices: tuple[tuple[int, int], ...] = ()
    long: tuple[tuple[LongAnswers, LongAnswers], ...] = ()


def compare_task(parts: Sequence[tuple[TaskResult, TaskResult]]) -> Comparison:
    """Compare a task, which may be one of several parts, with the reference's.

    Retention is (score - chance) / (reference - chance); for a perplexity it is ``quality``.

    Args:
        parts: By part, the model's result and the reference's.

    Raises:
        ArtifactCorrupt: The two were asked different samples.
    """
    for result, reference in parts:
        if result.ids != reference.ids:
            raise ArtifactCorrupt("the reference was asked other samples")
    if parts[0][0].metric == "nll":
        return _compare_nll(parts)
    own = [s for result, _ in parts for s in result.scores]
    base = [s for _, reference in parts for s in reference.scores]
    count = len(own)
    chance = sum(result.chance * len(result.scores) for result, _ in parts) / count
    score, expected = sum(own) / count, sum(base) / count
    summary: dict[str, Any] = {
        "metric": parts[0][0].metric,
        "score": score,
        "chance": chance,
        "samples": count,
        "reference_score": expected,
        "measurable": measurable(expected, chance, count),
    }
    bound = wilson(score, count)
    summary |= {"score_low": bound.low, "score_high": bound.high}
    means, base_means = paired_replicates(own, base)
    difference = means - base_means
    summary |= _named("difference", interval(score - expected, difference))
    summary["p"], summary["test"] = paired_p(own, base)
    pairs = tuple(zip(own, base, strict=True))
    choices = _choices(parts)
    summary |= flips(pairs) | changed(choices)
    long = tuple((a.long, b.long) for a, b in parts if a.long and b.long)
    if long:
        summary["long"] = asdict(compare_long([long]))
    if not summary["measurable"]:
        return Comparison(summary, None, difference, pairs, choices, long)
    # Replicates in which the reference comes near chance would be divided by nearly nothing.
    room = (base_means - chance).clip(min=0.01)
    kept = (means - chance) / room
    summary |= _named("retention", interval((score - chance) / (expected - chance), kept))
    return Comparison(summary, kept, difference, pairs, choices, long)


def flips(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Answers that went from right to wrong or back, which a score nets against each other.

    As of Dutta et al., "Accuracy is Not All You Need" (arXiv 2407.09141).

    Args:
        pairs: The model's score and the reference's, sample by sample.

    Returns:
        ``lost`` and ``gained``, how many went wrong and right; ``flips``, the share of all samples
        that did either, with Wilson's 95 % interval. Nothing where a score is neither 0 nor 1.
    """
    if not pairs or not {score for pair in pairs for score in pair} <= {0.0, 1.0}:
        return {}
    lost = sum(own < base for own, base in pairs)
    gained = sum(own > base for own, base in pairs)
    share = wilson((lost + gained) / len(pairs), len(pairs))
    return {"lost": lost, "gained": gained, **_named("flips", share)}


def changed(choices: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The share of samples with another choice than the reference's, from one wrong to another too.

    ``changed``, with Wilson's 95 % interval; nothing where nobody chose.
    """
    if not choices:
        return {}
    share = sum(own != base for own, base in choices) / len(choices)
    return _named("changed", wilson(share, len(choices)))


def _choices(parts: Sequence[tuple[TaskResult, TaskResult]]) -> tuple[tuple[int, int], ...]:
    # Of all samples or of none: a share of some would be of other samples than the flips'.
    if any(result.chosen is None for part in parts for result in part):
        return ()
    return tuple(
        pair
        for own, base in parts
        for pair in zip(own.chosen or (), base.chosen or (), strict=True)
    )


def _compare_nll(parts: Sequence[tuple[TaskResult, TaskResult]]) -> Comparison:
    import numpy

    own = numpy.asarray([s for result, _ in parts for s in result.scores])
    base = numpy.asarray([s for _, reference in parts for s in reference.scores])
    weights = numpy.asarray([w for result, _ in parts for w in result.weights or ()])
    log_ratio = float((own - base).sum() / weights.sum())
    rng = numpy.random.default_rng(7)
    drawn = rng.multinomial(len(own), numpy.full(len(own), 1 / len(own)), size=REPLICATES)
    logs = drawn @ (own - base) / (drawn @ weights)
    kept = numpy.asarray([quality(float(ratio)) for ratio in numpy.exp(logs)])
    summary: dict[str, Any] = {
        "metric": "perplexity",
        "score": float(numpy.exp(own.sum() / weights.sum())),
        "reference_score": float(numpy.exp(base.sum() / weights.sum())),
        "chance": None,
        "samples": len(own),
        "measurable": True,
        **_named("retention", interval(quality(float(numpy.exp(log_ratio))), kept)),
    }
    return Comparison(summary, kept)


def perplexity_comparison(metrics: Mapping[str, Any]) -> Comparison | None:
    """The trial's perplexity as a task: its retention is ``quality``."""
    import numpy

    if metrics.get("ppl_ratio") is None or metrics.get("ppl_ratio_low") is None:
        return None
    logs = numpy.log([metrics[f"ppl_ratio{end}"] for end in ("", "_low", "_high")])
    rng = numpy.random.default_rng(7)
    draws = rng.normal(logs[0], (logs[2] - logs[1]) / (2 * 1.96), REPLICATES)
    kept = numpy.asarray([quality(float(ratio)) for ratio in numpy.exp(draws)])
    return Comparison(
        {
            "metric": "perplexity",
            "score": metrics["ppl"],
            "chance": None,
            "measurable": True,
            **_named("retention", interval(metrics["quality"], kept)),
        },
        kept,
    )


def capabilities(
    tasks: Mapping[str, tuple[str, Comparison]], perplexity: Comparison | None = None
) -> dict[str, dict[str, Any]]:
    """What was kept of each capability: the mean over its measurable tasks.

    Differences are pooled over samples, and so is the test. Perplexity stands for *completion* only
    where no other task does: its scale, made for verdicts, is another than that of right answers.

    Args:
        tasks: By name, capability and comparison.
        perplexity: That of the trial's primary corpus.
    """
    by_capability: dict[str, list[tuple[str, Comparison]]] = defaultdict(list)
    for name, (capability, comparison) in tasks.items():
        by_capability[capability].append((name, comparison))
    if perplexity is not None and not any(
        c.retention is not None for _, c in by_capability["completion"]
    ):
        by_capability["completion"].append(("perplexity", perplexity))
    order = [c for c in (*CAPABILITIES, *by_capability) if by_capability.get(c)]
    return {c: _capability(by_capability[c]) for c in dict.fromkeys(order)}


def _capability(members: Sequence[tuple[str, Comparison]]) -> dict[str, Any]:
    usable = [(name, c) for name, c in members if c.retention is not None]
    found: dict[str, Any] = {
        "measurable": bool(usable),
        "tasks": [name for name, _ in members],
        "at_chance": [name for name, c in members if c.retention is None],
    }
    if not usable:
        return found
    replicates = sum(c.retention for _, c in usable) / len(usable)  # type: ignore[misc]
    value = sum(c.summary["retention"] for _, c in usable) / len(usable)
    found |= _named("retention", interval(value, replicates))  # type: ignore[arg-type]
    pairs = [pair for _, c in usable for pair in c.pairs]
    if pairs:
        own, base = zip(*pairs, strict=True)
        means, base_means = paired_replicates(own, base)
        difference = (sum(own) - sum(base)) / len(pairs)
        found |= _named("difference", interval(difference, means - base_means))
        found["p"], found["test"] = paired_p(own, base)
        # Of right and wrong the share that differs; of other scores what the formula means by it.
        differing = sum((a - b) ** 2 for a, b in pairs) / len(pairs)
        found |= {"samples": len(pairs), "samples_needed": samples_needed(differing, MARGIN)}
        found |= flips(pairs)
        if all(c.choices for _, c in usable if c.pairs):
            found |= changed([pair for _, c in usable for pair in c.choices])
    return found


def suffers_most(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The capability of which least was kept; None where none can be measured."""
    usable = {name: c for name, c in found.items() if c["measurable"]}
    if not usable:
        return None
    name = min(usable, key=lambda n: usable[n]["retention"])
    return {"capability": name, "retention": usable[name]["retention"]}


def verdict(found: Mapping[str, Any], p_adjusted: float | None = None) -> str:
    """A capability in words; ``p_adjusted`` is corrected for the sweep's other comparisons."""
    if not found["measurable"]:
        return "not measurable on this model"
    if "difference" not in found:
        return f"{100 * found['retention']:.0f} % kept, by perplexity"
    difference = Interval(*(found[f"difference{end}"] for end in ("", "_low", "_high")))
    p = found["p"] if p_adjusted is None else p_adjusted
    if p < 0.05 and difference.value != 0:
        word = "loss" if difference.value < 0 else "gain"
        half = (difference.high - difference.low) / 2
        return f"{word} of {100 * abs(difference.value):.1f} ± {100 * half:.1f} points"
    low = difference.low
    if low == difference.high:
        # Answers that are all the same come out of every resample the same, however few they are.
        low -= wilson(0.0, found["samples"]).high
    if low > -MARGIN:
        return "no measurable loss"
    needed = max(found["samples_needed"], found["samples"] + 1)
    return (
        f"too few samples to tell ({found['samples']}; a loss of {100 * MARGIN:.0f} points would "
        f"take {needed})"
    )


def _named(name: str, estimate: Interval) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
