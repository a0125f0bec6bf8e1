"""The dense model as tasks see it: texts in, log-likelihoods and continuations out."""

from collections.abc import Callable, Sequence

from qsweep.tasks.generation import generate
from qsweep.tasks.likelihood import score_pairs
from qsweep.tasks.requests import Likelihood, Pair, Sampling
from qsweep.tasks.text_model import TextModel


class LanguageModel(TextModel):
    """A dense model that scores and continues texts."""

    def loglikelihoods(
        self, pairs: Sequence[Pair], progress: Callable[[float], None] = lambda _: None
    ) -> list[Likelihood]:
        """Score continuations; contexts that several share are computed once."""
        return score_pairs(self, pairs, progress)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        progress: Callable[[float], None] = lambda _: None,
    ) -> list[str]:
        """Continue prompts, each up to its first stop text, which is cut off."""
        return generate(self, prompts, sampling, progress)
