"""Tokens drawn by numbers that are fixed beforehand, so that no batch and no other row has a say. Pure.

A step of an answer has one number between 0 and 1, and the token is the one at which the
distribution's cumulated probability passes it. Two models that are asked the same with the same seed
see the same numbers: what differs between their answers is then the models' doing (common random
numbers; Glasserman and Yao, Management Science 38, 1992).
"""

import hashlib
from typing import TYPE_CHECKING

from qsweep.tasks.requests import Sampling

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

# Among so many of the likeliest tokens lies what ``top_p`` leaves, nearly always.
_LIKELY = 256


def uniforms(seed: str, count: int) -> "NDArray":
    """Numbers in [0, 1) for the steps of an answer: float64 [count], the same for a seed everywhere."""
    import numpy

    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "big")
    return numpy.random.Generator(numpy.random.Philox(key)).random(count)


def draw(logits: "Tensor", numbers: "Tensor", sampling: Sampling) -> "Tensor":
    """A token for each row.

    Temperature comes first, then ``top_k``, then ``top_p`` of what that leaves: the smallest set of
    likeliest tokens that has so much probability (Holtzman et al., arXiv 1904.09751).

    Args:
        logits: Float [rows, vocabulary].
        numbers: In [0, 1), float [rows].
        sampling: Its temperature, top_p and top_k; a top_k of 0 is none.

    Returns:
        Token ids, int64 [rows].
    """
    probabilities = (logits.float() / sampling.temperature).softmax(-1)
    numbers = numbers.double().to(logits.device).unsqueeze(-1)
    if not sampling.top_k and sampling.top_p >= 1:
        return _passed(probabilities, numbers).squeeze(-1)
    likely, tokens = _likeliest(probabilities, sampling)
    likely = likely / likely.sum(-1, keepdim=True) if sampling.top_k else likely
    kept = likely.masked_fill(likely.cumsum(-1) - likely >= sampling.top_p, 0.0)
    return tokens.gather(-1, _passed(kept, numbers)).squeeze(-1)


def _likeliest(probabilities: "Tensor", sampling: Sampling) -> "tuple[Tensor, Tensor]":
    # In descending order; no more than needed, as sorting a vocabulary costs as much as a step.
    size = probabilities.shape[-1]
    if sampling.top_k:
        return probabilities.topk(min(sampling.top_k, size))
    found, tokens = probabilities.topk(min(_LIKELY, size))
    if bool((found.sum(-1) >= sampling.top_p).all()):
        return found, tokens
    return probabilities.topk(size)


def _passed(weights: "Tensor", numbers: "Tensor") -> "Tensor":
    """Where the cumulated weights pass that share of their sum, int64 [rows, 1]."""
    cumulated = weights.double().cumsum(-1)
    # The last that has any weight, where rounding would lead beyond it.
    last = (weights > 0).long().mul(_places(weights)).amax(-1, keepdim=True)
    found = (cumulated <= numbers * cumulated[..., -1:]).sum(-1, keepdim=True)
    return found.minimum(last)


def _places(weights: "Tensor") -> "Tensor":
    import torch

    return torch.arange(weights.shape[-1], device=weights.device)
