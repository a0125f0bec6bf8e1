"""Words for a perplexity ratio, and what the field expects it to be. No tensor library needed."""

import math
from typing import Any

# Upper bounds of the ratio, from the field's table of expected degradation.
BOUNDS = ((1.06, "yes"), (1.12, "usually"), (1.20, "marginal"))
BEYOND = "problematic"

# KLD in nats per token below which neither it nor perplexity ranks artifacts: near the reference both
# have lost all relation to scores of benchmarks (arXiv 2606.19558: over two cohorts of 28 and 41 files
# rho is -0.72 and -0.86, near the baseline 0.00 and -0.24). Where that zone ends depends on model and
# text; this is where the four-bit territory of the bands in common use begins.
SILENT_KLD = 0.01

# Upper bounds of the mean KLD in nats per token for the same words, from bands in common use (S. McLeod,
# "Measuring Model Quantisation Quality with KL Divergence", April 2026, on instruct models of the Qwen
# class: .001 to .005 very close, typical of good 6 bits; .01 to .05 typical four-bit territory; beyond
# .1 substantial, "ranking aids, not quality verdicts"). llama.cpp's own table lies along them: of
# Llama-3-8B on WikiText-2, Q8_0 .0014, Q4_K_M .031, Q3_K_M .10, Q2_K .45.
KLD_BOUNDS = ((SILENT_KLD, "yes"), (0.05, "usually"), (0.1, "marginal"))

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
    return _word(ratio, BOUNDS)


def verdict_by_kld(kld: float) -> str:
    """The same words by the mean divergence, in nats per token: what the text does not show of it.

    A ratio says how well this text is still predicted, a divergence how much the predictions changed,
    for better or worse; where the two words differ, the model answers otherwise than its reference
    without predicting worse.
    """
    return _word(kld, KLD_BOUNDS)


def _word(value: float, bounds: tuple[tuple[float, str], ...]) -> str:
    return next((word for bound, word in bounds if value <= bound), BEYOND)


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


def expected_ratio(method: str, kind: Any) -> tuple[float, float] | None:
    """The ratios that the field expects of a method at a GGUF type or a number of bits."""
    return _EXPECTED.get((method, kind)) if isinstance(kind, (str, int)) else None
