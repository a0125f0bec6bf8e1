"""A quantized model's measurement laid beside its reference's."""

import math
from typing import Any

from qsweep.base.errors import ArtifactCorrupt
from qsweep.evaluate.intervals import half_width, is_sequential
from qsweep.evaluate.measurement import WindowScores
from qsweep.evaluate.metrics import Mean, clustered_mean, ppl_ratio, quality, window_sums
from qsweep.evaluate.verdicts import is_open, verdict


def compare(measured: WindowScores, reference: WindowScores) -> dict[str, Any]:
    """Figures relative to the reference.

    Returns:
        ``ppl_ratio``, with more than one window its paired interval ``ppl_ratio_low`` and
        ``ppl_ratio_high`` (95 %), ``quality``, ``verdict`` and ``verdict_sure``: whether the whole
        interval gets the same verdict.

    Raises:
        ArtifactCorrupt: The two were measured on different tokens.
    """
    _require_same_tokens(measured, reference, "the reference")
    ratio = ppl_ratio(
        measured.arrays["window_nll"],
        reference.arrays["window_nll"],
        measured.arrays["window_tokens"],
        sequential=is_sequential(measured.facts),
    )
    known = ratio.low > 0
    interval = {"ppl_ratio_low": ratio.low, "ppl_ratio_high": ratio.high} if known else {}
    return {
        "ppl_ratio": ratio.value,
        **interval,
        "quality": quality(ratio.value),
        "verdict": verdict(ratio.value),
        "verdict_sure": known and not is_open(ratio.low, ratio.high),
    }


def compare_kld(measured: WindowScores, before: WindowScores) -> dict[str, float]:
    """How much further from the reference a run is than the run before it, which serves less.

    Returns:
        ``kld_added``, the mean over tokens of the difference of their divergences, in nats; with
        more than one window its 95 % interval, mean ± t·se over windows, ``kld_added_low`` and
        ``kld_added_high``. It is paired: both runs read the same tokens, so what is common to
        both, the weights' part, is no part of its error. The reference's own measurement, which has
        no divergence, is 0 away from itself. Nothing where ``measured`` has none.

    Raises:
        ArtifactCorrupt: The two were measured on different tokens.
    """
    _require_same_tokens(measured, before, "the run that it is compared with")
    if "token_kld" not in measured.arrays:
        return {}
    counts, added = measured.arrays["window_tokens"], measured.arrays["token_kld"].double()
    if (earlier := before.arrays.get("token_kld")) is not None:
        added = added - earlier.double()
    mean = clustered_mean(window_sums(added, counts), counts)
    sequential = is_sequential(measured.facts)
    return {"kld_added": mean.value, **ends("kld_added", mean, len(counts), sequential=sequential)}


def ends(name: str, mean: Mean, windows: int, *, sequential: bool) -> dict[str, float]:
    """The ends of a mean's 95 % interval over windows as figures; none where it has none."""
    if mean.stderr is None:
        return {}
    half = half_width(mean.stderr, windows, sequential=sequential)
    if math.isinf(half):
        return {}
    return {f"{name}_low": mean.value - half, f"{name}_high": mean.value + half}


def _require_same_tokens(measured: WindowScores, other: WindowScores, what: str) -> None:
    if measured.facts["fingerprint"] != other.facts["fingerprint"]:
        raise ArtifactCorrupt(f"{what} was measured on other tokens")
