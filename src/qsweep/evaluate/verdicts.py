"""Words for a perplexity ratio, and what the field expects it to be. No tensor library needed."""

import math
from typing import Any

# Upper bounds of the ratio, from the field's table of expected degradation.
BOUNDS = ((1.06, "yes"), (1.12, "usually"), (1.20, "marginal"))
BEYOND = "problematic"

# A model that knows nothing has a perplexity of its whole vocabulary, whichever way it knows nothing:
# the mean of -ln q is at least that of ln V where the predictions are independent of the text. Half
# of it leaves room for noise, and a text that says so little is a chance level all the same.
_OF_CHANCE = 0.5
# Where a record does not say how large the vocabulary was: no tokenizer has more tokens.
_MOST_TOKENS = 2**20

# Expected ratios by method and bits, or by GGUF type, to lay beside the measured ones.
_EXPECTED: dict[tuple[str, Any], tuple[float, float]] = {
    ("gptq", 8): (1.02, 1.05),
    ("gptq", 4): (1.05, 1.10),
    ("awq", 4): (1.04, 1.08),
    ("gguf", "Q8_0"): (1.03, 1.06),
    ("gguf", "Q4_K_M"): (1.05, 1.12),
    ("gguf", "Q3_K_M"): (1.10, 1.20),
    ("gguf", "Q2_K"): (1.15, 1.30),
}


def verdict(ratio: float) -> str:
    """Whether one can ship it: yes, usually, marginal or problematic (NaN too)."""
    for bound, word in BOUNDS:
        if ratio <= bound:
            return word
    return BEYOND


def is_open(low: float | None, high: float | None) -> bool:
    """Whether an interval of the ratio straddles a bound, so that the verdict could be another.

    A missing end is an unknown one: a single window has no interval.
    """
    return low is None or high is None or verdict(low) != verdict(high)


def predicts_nothing(ppl: float, vocab_size: int | None = None) -> str | None:
    """Why a reference of this perplexity is none to compare with; None where it is one.

    A quantized model keeps a perplexity that means nothing as well as any other: the ratio to it is
    about 1 and says nothing.
    """
    if not math.isfinite(ppl):
        return f"the reference predicts nothing: its perplexity is {ppl:g}"
    if ppl < _OF_CHANCE * (vocab_size or _MOST_TOKENS):
        return None
    of = f" with {vocab_size} tokens to choose from" if vocab_size else ""
    return f"the reference predicts nothing: its perplexity is {ppl:.4g}{of}, which is chance"


def judged(record: dict[str, Any]) -> dict[str, Any]:
    """A record without the claims that its reference cannot bear.

    Where the reference predicts nothing, a measurement has no verdict and no quality, and says why
    in ``no_verdict``. Its perplexity is the measurement's ``reference_ppl``, where its own perplexity
    and ratio do not tell it.
    """
    measurements = record.get("measurements") or []
    reasons = [_no_verdict(record, measurement) for measurement in measurements]
    if not any(reasons):
        return record
    return {
        **record,
        "measurements": [
            measurement if reason is None else _without_claims(measurement, reason)
            for measurement, reason in zip(measurements, reasons, strict=True)
        ],
    }


def told_reference_ppl(metrics: dict[str, Any], *, is_reference: bool) -> float | None:
    """The reference's perplexity, as far as a measurement's own figures tell it."""
    ppl, ratio = _number(metrics.get("ppl")), _number(metrics.get("ppl_ratio"))
    if is_reference or ppl is None:
        return ppl
    return ppl / ratio if ratio and math.isfinite(ratio) else None


def _number(value: Any) -> float | None:
    # Records are read from files, which may hold anything.
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if known else None


def _no_verdict(record: dict[str, Any], measurement: dict[str, Any]) -> str | None:
    if measurement.get("no_verdict"):
        return str(measurement["no_verdict"])
    ppl = _number(measurement.get("reference_ppl"))
    if ppl is None:
        ppl = told_reference_ppl(measurement["metrics"], is_reference=bool(record.get("reference")))
    return None if ppl is None else predicts_nothing(ppl, _vocabulary(record))


def _vocabulary(record: dict[str, Any]) -> int | None:
    size = _number(record.get("vocab_size"))
    return int(size) if size and math.isfinite(size) else None


def _without_claims(measurement: dict[str, Any], reason: str) -> dict[str, Any]:
    claims = ("quality", "quality_per_gb", "verdict_sure")
    metrics = {k: v for k, v in measurement["metrics"].items() if k not in claims}
    return {**measurement, "metrics": metrics, "verdict": None, "no_verdict": reason}


def expected_range(record: dict[str, Any]) -> tuple[float, float] | None:
    """The ratios that the field expects of a trial's method; None where it names none.

    A K-quant that fell back on other types for some rows is not what its name says, so nothing is
    expected of it either; nor of a file whose ratio cannot be measured.
    """
    details = (record.get("artifact") or {}).get("details") or {}
    no_row = details.get("fallback") or details.get("unexplained")
    return None if no_row else _EXPECTED.get(_row(record))


def in_the_fields_table(record: dict[str, Any]) -> bool:
    """Whether the field's table has a row for a trial, whatever its artifact became."""
    return _row(record) in _EXPECTED


def _row(record: dict[str, Any]) -> tuple[str, Any]:
    options = record.get("options") or {}
    return record["method"], options.get("type") or options.get("bits")
