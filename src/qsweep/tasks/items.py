"""Tasks made of plain items: the embedded suite and users' own are asked and scored by this code."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qsweep.base.progress import Progress
from qsweep.tasks.model import LanguageModel
from qsweep.tasks.requests import Sampling
from qsweep.tasks.sandbox import Limits, find_sandbox, run_programs
from qsweep.tasks.task import TaskOptions, TaskResult, TaskUnavailable
from qsweep.tasks.text_model import labelled

Kind = Literal["multiple_choice", "exact_match", "regex", "code"]
KINDS: tuple[Kind, ...] = ("multiple_choice", "exact_match", "regex", "code")


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        prompt: What the model reads.
        answer: What is right: one of the choices; the text to be generated; for ``regex`` what the
            pattern must find; for ``code`` a solution, or nothing.
        choices: For ``multiple_choice``: what the model chooses from.
        also: Further answers that count as right.
        pattern: For ``regex``: searched for in what was generated; its first group, if it has one,
            must be the answer.
        test: For ``code``: what runs after the prompt and its continuation, and raises where they
            are wrong.
    """

    prompt: str
    answer: str = ""
    choices: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    pattern: str = ""
    test: str = ""

    @property
    def id(self) -> str:
        """A hash of all that it is."""
        content = [self.prompt, self.answer, self.choices, self.also, self.pattern, self.test]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Format:
    """How items are put to a model.

    Attributes:
        separator: Between prompt and answer.
        joint: Between solved examples.
        normalise: Compare choices by their log-probability per byte, for choices that differ in
            length; else by its sum.
        fewshot: Solved examples before each question.
        max_new_tokens: What may be generated.
        stop: Texts that end a generation.
        ignore_case: For ``exact_match``.
        chance: Score of blind guessing; None: one over the number of choices, else 0.
    """

    separator: str = " "
    joint: str = "\n\n"
    normalise: bool = False
    fewshot: int = 0
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ("\n",)
    ignore_case: bool = False
    chance: float | None = None


@dataclass(frozen=True)
class _Answers:
    """Of each item the score, what the model said, and which choice that is if there are choices."""

    scores: list[float]
    said: Sequence[Any]
    facts: dict[str, Any]
    chosen: list[int] | None = None


@dataclass(frozen=True)
class ItemTask:
    """A task of plain items; see :class:`qsweep.tasks.task.Task`.

    Attributes:
        name: Its name.
        capability: What it measures.
        kind: How it is asked and scored.
        source: What determines the items, for the key.
        load: Makes them: solved examples, and questions.
        format: How they are put.
        options: What the configuration says.
    """

    name: str
    capability: str
    kind: Kind
    source: dict[str, Any]
    load: Callable[[], tuple[Sequence[Item], Sequence[Item]]]
    format: Format = Format()
    options: TaskOptions = TaskOptions()

    @property
    def group(self) -> str:
        """Its own name: it is no part of another."""
        return self.name

    @property
    def fewshot(self) -> int:
        """Solved examples before each question."""
        given = self.options.num_fewshot
        return self.format.fewshot if given is None or self.kind == "code" else given

    def identity(self) -> dict[str, Any]:
        """What determines its samples and their scores."""
        return {
            "task": self.name,
            "kind": self.kind,
            "source": self.source,
            "format": vars(self.format),
            "limit": self.options.limit,
            "fewshot": self.fewshot,
            "chat_template": self.options.chat_template,
        }

    def prepare(self) -> None:
        """Look for what it needs before a model is loaded. Raises TaskUnavailable."""
        self.load()
        if self.kind == "code":
            find_sandbox(unsafe=self.options.unsafe_code)

    def run(self, lm: LanguageModel, progress: Progress) -> TaskResult:
        """Ask every item."""
        pool, items = self.load()
        items = list(items)[: self.options.limit]
        if not items:
            raise TaskUnavailable(f"{self.name}: it has no items")
        if self.fewshot > len(pool):
            raise TaskUnavailable(
                f"{self.name}: {self.fewshot} solved examples are asked for, it has {len(pool)}"
            )
        examples = list(pool)[: self.fewshot]
        prompts = [self._prompt(item, examples, lm) for item in items]
        ask = self._choose if self.kind == "multiple_choice" else self._generate
        found = ask(items, prompts, lm, progress)
        guess = [1 / len(item.choices) if item.choices else 0.0 for item in items]
        chance = self.format.chance
        return TaskResult(
            metric="pass@1" if self.kind == "code" else "acc",
            scores=found.scores,
            ids=[item.id for item in items],
            chance=sum(guess) / len(guess) if chance is None else chance,
            chosen=found.chosen,
            facts={
                "fewshot": self.fewshot,
                "chat_template": self.options.chat_template,
                **found.facts,
            },
            samples=[
                {"prompt": prompt, "answer": item.answer, "said": words, "score": score}
                for item, prompt, words, score in zip(
                    items, prompts, found.said, found.scores, strict=True
                )
            ],
        )

    def _prompt(self, item: Item, examples: Sequence[Item], lm: LanguageModel) -> str:
        solved = [f"{e.prompt}{self.format.separator}{e.answer}" for e in examples]
        text = self.format.joint.join([*solved, item.prompt])
        return lm.chat([{"role": "user", "content": text}]) if self._chat else text

    @property
    def _chat(self) -> bool:
        # A program is continued, not talked about.
        return self.options.chat_template and self.kind != "code"

    def _choose(
        self,
        items: Sequence[Item],
        prompts: Sequence[str],
        lm: LanguageModel,
        progress: Progress,
    ) -> "_Answers":
        separator = "" if self._chat else self.format.separator
        pairs = [
            lm.pairs(prompt, [separator + choice for choice in item.choices])
            for item, prompt in zip(items, prompts, strict=True)
        ]
        flat = [pair for of_item in pairs for pair in of_item]
        found = iter(lm.loglikelihoods(flat, labelled(progress, f"task {self.name}")))
        lm.count("choices_alike", sum(len(set(of_item)) < len(of_item) for of_item in pairs))
        scores, answers, chosen = [], [], []
        for item, of_item in zip(items, pairs, strict=True):
            values = []
            for choice, pair in zip(item.choices, of_item, strict=True):
                likelihood = next(found)
                size = pair.fused + len((separator + choice).encode())
                values.append(likelihood.logprob / (size if self.format.normalise else 1))
            best = max(range(len(values)), key=values.__getitem__)
            chosen.append(best)
            scores.append(float(item.choices[best] == item.answer))
            answers.append(dict(zip(item.choices, values, strict=True)))
        return _Answers(scores, answers, {"normalised": self.format.normalise}, chosen)

    def _generate(
        self,
        items: Sequence[Item],
        prompts: Sequence[str],
        lm: LanguageModel,
        progress: Progress,
    ) -> "_Answers":
        stop = () if self._chat and self.format.stop == Format().stop else self.format.stop
        sampling = Sampling(self.format.max_new_tokens, stop)
        texts = lm.generate(
            [lm.encode(prompt) for prompt in prompts],
            sampling,
            labelled(progress, f"task {self.name}"),
        )
        facts = {"max_new_tokens": self.format.max_new_tokens}
        if self.kind == "code":
            return self._run_code(items, texts, progress, facts)
        scores = [self._right(item, text) for item, text in zip(items, texts, strict=True)]
        return _Answers(scores, texts, facts)

    def _right(self, item: Item, text: str) -> float:
        if self.kind == "exact_match":
            accepted = {_plain(answer, self.format) for answer in (item.answer, *item.also)}
            return float(_plain(text, self.format) in accepted)
        match = re.search(item.pattern, text)
        if match is None:
            return 0.0
        if not match.groups():
            return 1.0
        found = next((group for group in match.groups() if group is not None), "")
        accepted = {_plain(answer, self.format) for answer in (item.answer, *item.also)}
        return float(_plain(found, self.format) in accepted)

    def _run_code(
        self, items: Sequence[Item], texts: list[str], progress: Progress, facts: dict[str, Any]
    ) -> "_Answers":
        sandbox = find_sandbox(unsafe=self.options.unsafe_code)
        programs = [
            (f"{item.prompt}{text}\n", f"{item.test}\n")
            for item, text in zip(items, texts, strict=True)
        ]
        outcomes = run_programs(
            sandbox, programs, Limits(), labelled(progress, f"task {self.name}, run")
        )
        answers = [
            {"program": text, "outcome": outcome.reason}
            for text, outcome in zip(texts, outcomes, strict=True)
        ]
        scores = [float(o.passed) for o in outcomes]
        return _Answers(scores, answers, {**facts, "sandbox": sandbox.name})


def _plain(text: str, form: Format) -> str:
    text = " ".join(text.split()).rstrip(".")
    return text.casefold() if form.ignore_case else text
