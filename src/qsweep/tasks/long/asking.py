"""Problems put to a model: each answered greedily once, and by samples that nothing else has a say in."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qsweep.base.contents import is_number
from qsweep.tasks.batches import end_tokens
from qsweep.tasks.generation import answers, cut
from qsweep.tasks.long.loops import ends_in_loop
from qsweep.tasks.long_answers import LongAnswers
from qsweep.tasks.requests import Answer, Ask, Sampling
from qsweep.tasks.text_model import TextModel

# Where a model says nothing of how it is to be sampled: what reasoning models' cards say most often.
DEFAULTS = {"temperature": 0.6, "top_p": 0.95, "top_k": 0}
_OFF = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
# Raised whenever answers may be drawn otherwise, or other things told of them.
VERSION = 2


@dataclass(frozen=True)
class Said:
    """All that a model said: what is kept of it, and its texts by problem."""

    kept: LongAnswers
    greedy: list[str]
    samples: list[list[str]]


def settings(stated: Mapping[str, Any]) -> dict[str, float]:
    """How a model is sampled: as it says itself, else by :data:`DEFAULTS`.

    Of temperature, top_p and top_k what a model leaves out is off, if it says any of them. A value
    that makes no sense counts as left out, a temperature as the default one: a model that says 0
    wants to be sampled no hotter than others.

    Args:
        stated: The model's ``generation_config.json``.
    """
    fair = {
        "temperature": lambda value: value > 0,
        "top_p": lambda value: 0 < value <= 1,
        "top_k": lambda value: value >= 0 and float(value).is_integer(),
    }
    own = {
        n: stated[n]
        for n, is_fair in fair.items()
        if is_number(stated.get(n)) and math.isfinite(stated[n]) and is_fair(stated[n])
    }
    cold = stated.get("temperature") is not None and "temperature" not in own
    missing = {**_OFF, "temperature": DEFAULTS["temperature"]} if cold else _OFF
    found = {**missing, **own} if own else DEFAULTS
    return {**found, "top_k": int(found["top_k"])}


def ask(
    lm: TextModel,
    asks: Sequence[Ask],
    ids: Sequence[str],
    sampling: Sampling,
    samples: int,
    progress: Callable[[float], None],
) -> Said:
    """Have each problem answered greedily once, and by so many samples.

    Args:
        lm: The model.
        asks: The problems' prompts.
        ids: What they are called, which with a sample's number is the seed of its tokens: a model
            is asked with the same numbers whatever else it is asked, and every model with the same.
        sampling: Stop texts, temperature, top_p and top_k.
        samples: How many there are of each.
        progress: Told the share that is done.
    """
    every = [
        Ask(one.prompt, one.new, seed)
        for one, name in zip(asks, ids, strict=True)
        for seed in (None, *(f"{VERSION} {name} {number}" for number in range(samples)))
    ]
    found = answers(lm, every, sampling, progress)
    tokens = [list(answer.tokens) for answer in found]
    whole = lm.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    texts = [cut(text, sampling.until) for text in whole]
    size, ends = samples + 1, set(end_tokens(lm))
    by_problem = [found[begin : begin + size] for begin in range(0, len(found), size)]
    said = [texts[begin : begin + size] for begin in range(0, len(found), size)]

    def looped(answer: Answer) -> bool:
        tokens = answer.tokens
        return ends_in_loop(tokens[:-1] if tokens[-1] in ends else tokens)

    kept = LongAnswers(
        greedy=[list(first.tokens) for first, *_ in by_problem],
        lengths=[[len(one.tokens) for one in rest] for _, *rest in by_problem],
        truncated=[[not one.ended for one in rest] for _, *rest in by_problem],
        loops=[[looped(one) for one in rest] for _, *rest in by_problem],
    )
    return Said(kept, [first for first, *_ in said], [rest for _, *rest in said])
