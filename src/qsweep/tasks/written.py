"""What a model writes by itself, as the tokens that it wrote."""

from collections.abc import Callable, Sequence

from qsweep.tasks.generation import answers
from qsweep.tasks.model import LanguageModel
from qsweep.tasks.requests import Ask, Sampling
from qsweep.text.chat_template import Answered

VERSION = 2
"""Raised whenever the same model and prompts would now give another text; it is in their keys."""


def write_on(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    progress: Callable[[float], None],
) -> list[Answered]:
    """Go on from each prompt by drawing from the model's own distribution, at temperature 1.

    The same on one kind of processor: each prompt has numbers of its own that draw its text.

    Args:
        lm: The model.
        prompts: Token ids, each with room for what follows.
        new_tokens: As many at most; the token that ends a text is the last of them.
        progress: Told the share that is done.

    Raises:
        TrialFailed: As of :func:`~qsweep.tasks.generation.answers`.
    """
    asks = [Ask(tuple(one), new_tokens, f"written {number}") for number, one in enumerate(prompts)]
    found = []
    for ask, answer in zip(asks, answers(lm, asks, Sampling(new_tokens), progress), strict=True):
        ids = [*ask.prompt, *answer.tokens]
        found.append(Answered(ids, [(len(ask.prompt), len(ids))]))
    return found
