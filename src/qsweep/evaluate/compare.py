"""A quantized model's measurement laid beside its reference's."""

from typing import Any

from qsweep.base.errors import ArtifactCorrupt
from qsweep.evaluate.measurement import WindowScores
from qsweep.evaluate.metrics import ppl_ratio, quality
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
    if measured.facts["fingerprint"] != reference.facts["fingerprint"]:
        raise ArtifactCorrupt("the reference was measured on other tokens")
    ratio = ppl_ratio(
        measured.arrays["window_nll"],
        reference.arrays["window_nll"],
        measured.arrays["window_tokens"],
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
