"""Tasks of lm-evaluation-harness whose answers are generated, asked as long answers are.

The harness makes prompts and reads answers as ever; each set of samples is given to it as if a model
had just said it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from qsweep.base.progress import Progress
from qsweep.tasks.generation import with_room
from qsweep.tasks.harness import HarnessTask
from qsweep.tasks.long import asking
from qsweep.tasks.model import LanguageModel
from qsweep.tasks.requests import Sampling
from qsweep.tasks.task import TaskResult, TaskUnavailable
from qsweep.tasks.text_model import labelled

PREFIX = "long_"


@dataclass(frozen=True)
class HarnessLong:
    """One task of the harness, with samples; see :class:`qsweep.tasks.task.Task`.

    A score is the mean over a question's samples (avg@k).
    """

    of: HarnessTask
    capability: str = "long answers"

    @property
    def name(self) -> str:
        """The harness's name of it, with a word before it."""
        return f"{PREFIX}{self.of.name}"

    @property
    def group(self) -> str:
        """What it was asked for by."""
        return f"{PREFIX}{self.of.group}"

    def identity(self) -> dict[str, Any]:
        """That of the task, and how its answers are drawn."""
        options = self.of.options
        return {
            **self.of.identity(),
            "task": self.name,
            "long": asking.VERSION,
            "samples": options.samples,
            "sampling": asking.settings(options.sampling),
            "max_new_tokens": options.max_new_tokens,
        }

    def prepare(self) -> None:
        """Get its data. Raises TaskUnavailable."""
        self.of.prepare()
        kind = self.of.load().OUTPUT_TYPE
        if kind != "generate_until":
            raise TaskUnavailable(
                f"{self.name}: {self.of.name} is no task of generated answers ({kind}); name it "
                f"without {PREFIX}"
            )

    def run(self, lm: LanguageModel, progress: Progress) -> TaskResult:
        """Have every question answered once greedily and by samples, and let the harness score each."""
        from qsweep.tasks.harness_model import Collected, Given

        options = self.of.options
        collected = Collected(lm)
        self.of.ask(collected)
        contexts = list(dict.fromkeys(context for context, _ in collected.asked))
        stated = Sampling.of_harness(collected.asked[0][1])
        sampling = Sampling(0, stated.until, **asking.settings(options.sampling))  # type: ignore[arg-type]
        wanted = options.max_new_tokens or stated.max_new_tokens
        said = asking.ask(
            lm,
            with_room(lm, [lm.encode(context) for context in contexts], wanted),
            contexts,
            sampling,
            options.samples,
            labelled(progress, f"task {self.name}"),
        )
        passes = [
            self.of.ask(Given(lm, dict(zip(contexts, texts, strict=True))))
            for texts in (said.greedy, *zip(*said.samples, strict=True))
        ]
        greedy, *drawn = passes
        return replace(
            greedy,
            scores=[sum(of) / len(of) for of in zip(*(one.scores for one in drawn), strict=True)],
            facts={
                **greedy.facts,
                "samples": options.samples,
                "sampling": asking.settings(options.sampling),
                "max_new_tokens": wanted,
                "greedy_score": sum(greedy.scores) / len(greedy.scores),
            },
            samples=[_joined(of) for of in zip(*(one.samples for one in passes), strict=True)],
            long=said.kept,
        )


def _joined(passes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    # One question as it was answered greedily, and by each sample.
    greedy, *drawn = passes
    return {
        **greedy,
        "greedy": greedy["said"],
        "said": [one["said"] for one in drawn],
        "score": [one["score"] for one in drawn],
    }
