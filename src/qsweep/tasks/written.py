"""What a model writes by itself, as the tokens that it wrote."""

from collections.abc import Callable, Sequence

from qsweep.tasks.generation import end_tokens, generate_tokens
from qsweep.tasks.model import LanguageModel
from qsweep.tasks.requests import Sampling
from qsweep.text.chat_template import Answered

VERSION = 1
"""Raised whenever the same model and prompts would now give another text; it is in their keys."""
_SEED = 0


def write_on(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    progress: Callable[[float], None],
) -> list[Answered]:
    """Go on from each prompt by drawing from the model's own distribution, at temperature 1.

    The same on one kind of processor: what is drawn follows from a fixed seed and the batch.

    Args:
        lm: The model.
        prompts: Token ids, each with room for what follows.
        new_tokens: As many at most; the token that ends a text is the last of them.
        progress: Told the share that is done.

    Raises:
        TrialFailed: As of :func:`~qsweep.tasks.generation.generate`.
    """
    sampling = Sampling(new_tokens, do_sample=True, seed=_SEED)
    ends = set(end_tokens(lm))
    found = []
    produced = generate_tokens(lm, prompts, sampling, progress)
    for prompt, row in zip(prompts, produced, strict=True):
        last = next((n for n, token in enumerate(row) if token in ends), len(row) - 1)
        ids = [*prompt, *row[: last + 1]]
        found.append(Answered(ids, [(len(prompt), len(ids))]))
    return found
