"""What a task is, what it may be told, and what running one leaves behind."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from qsweep.base.errors import ArtifactCorrupt, QsweepError
from qsweep.base.files import read_json, write_bytes, write_json
from qsweep.base.progress import Progress
from qsweep.tasks.long_answers import LongAnswers

if TYPE_CHECKING:
    from qsweep.tasks.model import LanguageModel

CAPABILITIES = (
    "knowledge",
    "chinese",
    "code",
    "math",
    "reasoning",
    "instruction",
    "completion",
)
# Raised whenever a change may move a score; it is part of every result's key.
TASKS_VERSION = 1

# What is counted while a task runs: its name among the facts, and how a person reads it.
COUNTED = {
    "fused_contexts": "questions have a choice that shares a token with the prompt's end; all their "
    "choices are scored from that token on",
    "choices_alike": "questions have choices that are the same tokens, which no model tells apart",
    "contexts_cut": "texts are longer than the model's context and lost their begin",
    "prompts_cut": "prompts leave too little room in the model's context and lost their begin",
    "fewer_new_tokens": "prompts leave room for fewer new tokens than were asked for",
}

_RESULT, _SAMPLES = "result.json", "samples.jsonl"


class TaskUnavailable(QsweepError):
    """A task that cannot be run here: its data, a package or a sandbox is missing. It fails alone."""


@dataclass(frozen=True)
class TaskOptions:
    """What the configuration says of all tasks alike.

    Attributes:
        limit: Only so many of each task's first samples; None: all.
        num_fewshot: Solved examples before each question; None: the task's own number.
        chat_template: Put prompts into the model's chat template.
        unsafe_code: Run generated programs even where no sandbox can be had.
        samples: Of long answers: how many are drawn for each question.
        steps: Of long answers to qsweep's own problems: how many; None: the task's own number.
        max_new_tokens: Of long answers: how long they may be; None: what the task allows.
        sampling: What the model's ``generation_config.json`` says.
    """

    limit: int | None = None
    num_fewshot: int | None = None
    chat_template: bool = False
    unsafe_code: bool = False
    samples: int = 4
    steps: int | None = None
    max_new_tokens: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass
class TaskResult:
    """A task on one model.

    Attributes:
        metric: What a score is, such as ``acc``; ``nll`` for a perplexity.
        scores: One per sample, in the task's order: 0 to 1; for ``nll`` the sample's sum in nats.
        ids: What each sample was, so that only equal ones are ever compared.
        chance: The score of blind guessing.
        weights: For ``nll``: the tokens of each sample.
        chosen: For multiple choice: which of its choices each sample was answered by, from 0; None
            where there are none, and in results of before it was noted.
        facts: How it was run.
        samples: Each sample as a person would look at it: prompt, answer, what the model said.
        long: Of long answers: what is compared beside scores.
    """

    metric: str
    scores: list[float]
    ids: list[str]
    chance: float
    weights: list[float] | None = None
    chosen: list[int] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list, repr=False)
    long: LongAnswers | None = field(default=None, repr=False)


@runtime_checkable
class Task(Protocol):
    """Something that can be asked of a model, sample by sample.

    Attributes:
        name: Its own name, unique among all tasks.
        group: The name it was asked for by; several tasks of a group are reported as one.
        capability: One of :data:`CAPABILITIES`, or the user's own word.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def group(self) -> str: ...  # noqa: D102

    @property
    def capability(self) -> str: ...  # noqa: D102

    def identity(self) -> dict[str, Any]:
        """What determines its samples and how they are scored, for the store's key."""
        ...

    def prepare(self) -> None:
        """Get the data, before any model is loaded. Raises TaskUnavailable."""
        ...

    def run(self, lm: "LanguageModel", progress: Progress) -> TaskResult:
        """Ask the model every sample. Raises TaskUnavailable, TrialFailed."""
        ...


def save_result(result: TaskResult, directory: Path) -> None:
    """Write a result into an existing directory: figures, and the samples one per line."""
    left_out = ("samples",) if result.long else ("samples", "long")
    figures = {k: v for k, v in asdict(result).items() if k not in left_out}
    write_json(directory / _RESULT, figures)
    lines = [json.dumps(sample, ensure_ascii=False, default=str) for sample in result.samples]
    write_bytes(directory / _SAMPLES, "".join(f"{line}\n" for line in lines).encode())


def read_result(directory: Path) -> TaskResult:
    """Read what :func:`save_result` wrote, without the samples.

    Raises:
        ArtifactCorrupt: It is missing or unreadable.
    """
    try:
        found: dict[str, Any] = read_json(directory / _RESULT)
        if (long := found.pop("long", None)) is not None:
            found["long"] = LongAnswers(**long)
        return TaskResult(**found)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ArtifactCorrupt(f"{directory}: not a task's result ({error})") from error
