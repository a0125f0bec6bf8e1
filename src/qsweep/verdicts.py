"""Words for a perplexity ratio, and what the field expects it to be. No tensor library needed."""

from typing import Any

# Upper bounds of the ratio, from the field's table of expected degradation.
BOUNDS = ((1.06, "yes"), (1.12, "usually"), (1.20, "marginal"))
BEYOND = "problematic"

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


def expected_range(record: dict[str, Any]) -> tuple[float, float] | None:
    """The ratios that the field expects of a trial's method; None where it names none.

    A K-quant that fell back on other types for some rows is not what its name says, so nothing is
    expected of it either.
    """
    details = (record.get("artifact") or {}).get("details") or {}
    return None if details.get("fallback") else _EXPECTED.get(_row(record))


def in_the_fields_table(record: dict[str, Any]) -> bool:
    """Whether the field's table has a row for a trial, whatever its artifact became."""
    return _row(record) in _EXPECTED


def _row(record: dict[str, Any]) -> tuple[str, Any]:
    options = record.get("options") or {}
    return record["method"], options.get("type") or options.get("bits")
