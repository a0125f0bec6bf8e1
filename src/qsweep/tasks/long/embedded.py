"""Long answers offline, on any model: running totals, and operations on lists, as long as one wants."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qsweep.base.errors import QsweepError
from qsweep.base.progress import Progress
from qsweep.tasks.long import asking
from qsweep.tasks.long.checks import THINKS, Read, stated_lists, stated_totals, steps_right
from qsweep.tasks.long.problems import Make, Problem, lists, problems, totals
from qsweep.tasks.model import LanguageModel
from qsweep.tasks.requests import Ask, Sampling
from qsweep.tasks.task import TaskOptions, TaskResult, TaskUnavailable
from qsweep.tasks.text_model import labelled

SEED = 20
COUNT = 32
# Steps of a problem where nothing is said, and of the solved examples before it.
STEPS, EXAMPLE_STEPS = 16, 4
EXAMPLES, _POOL = 3, 8
# Between a problem's answer and the next problem; where a model is continued, it ends the answer.
_JOINT = "\n\n"
# An answer may be so much longer than the longest right one, in tokens, before it is cut off.
_TIMES, _MORE = 2, 64
# Where a prompt is looked at for what its template opens.
_LAST_TOKENS = 32
_KINDS: dict[str, tuple[Make, Read, str]] = {
    "long_totals": (
        totals,
        stated_totals,
        "Keep a running total. Write one line for each step, as in the examples.",
    ),
    "long_lists": (
        lists,
        stated_lists,
        "Change the list step by step. Write one line for each step, as in the examples.",
    ),
}
NAMES = tuple(_KINDS)


@dataclass(frozen=True)
class EmbeddedLong:
    """Problems that are made from a seed; see :class:`qsweep.tasks.task.Task`.

    A score is the share of a problem's steps that are right before the first that is not, the mean
    over its samples. Blind guessing gives next to nothing.
    """

    name: str
    options: TaskOptions
    capability: str = "long answers"

    @property
    def group(self) -> str:
        """Its own name: it is no part of another."""
        return self.name

    @property
    def fewshot(self) -> int:
        """Solved examples before each problem."""
        given = self.options.num_fewshot
        return EXAMPLES if given is None else given

    @property
    def steps(self) -> int:
        """Of each problem."""
        return self.options.steps or STEPS

    def identity(self) -> dict[str, Any]:
        """What determines its samples and their scores."""
        return {
            "task": self.name,
            "long": asking.VERSION,
            "seed": SEED,
            "count": COUNT,
            "limit": self.options.limit,
            "steps": self.steps,
            "fewshot": self.fewshot,
            "chat_template": self.options.chat_template,
            "samples": self.options.samples,
            "sampling": asking.settings(self.options.sampling),
            "max_new_tokens": self.options.max_new_tokens,
        }

    def prepare(self) -> None:
        """Look whether there are as many examples as are asked for. Raises TaskUnavailable."""
        if self.fewshot > _POOL:
            raise TaskUnavailable(
                f"{self.name}: {self.fewshot} solved examples are asked for, it has {_POOL}"
            )

    def run(self, lm: LanguageModel, progress: Progress) -> TaskResult:
        """Have every problem answered, and look at each step."""
        asked = self._problems(self.steps)
        asks = self._asks(asked, lm)
        sampling = Sampling(0, self._stop, **asking.settings(self.options.sampling))  # type: ignore[arg-type]
        said = asking.ask(
            lm,
            asks,
            [f"{self.name} {problem.prompt}" for problem in asked],
            sampling,
            self.options.samples,
            labelled(progress, f"task {self.name}"),
        )
        # Some templates open what is thought themselves: the model then only closes it.
        opened = lm.tokenizer.decode(asks[0].prompt[-_LAST_TOKENS:]).rstrip().endswith(THINKS)
        begin = THINKS if opened else ""
        shares = [
            [self._share(problem, begin + text) for text in texts]
            for problem, texts in zip(asked, said.samples, strict=True)
        ]
        every = [share for of_problem in shares for share in of_problem]
        greedy = [self._share(p, begin + text) for p, text in zip(asked, said.greedy, strict=True)]
        return TaskResult(
            metric="steps_right",
            scores=[sum(of_problem) / len(of_problem) for of_problem in shares],
            ids=[f"{self.steps} {problem.prompt}" for problem in asked],
            chance=0.0,
            facts={
                "fewshot": self.fewshot,
                "chat_template": self.options.chat_template,
                "steps": self.steps,
                "samples": self.options.samples,
                "sampling": asking.settings(self.options.sampling),
                "max_new_tokens": max(ask.new for ask in asks),
                "solved": sum(share == 1 for share in every) / len(every),
                "greedy_score": sum(greedy) / len(greedy),
            },
            samples=[
                {
                    "prompt": p.prompt,
                    "answer": p.answer,
                    "greedy": first,
                    "said": texts,
                    "score": own,
                }
                for p, first, texts, own in zip(
                    asked, said.greedy, said.samples, shares, strict=True
                )
            ],
            long=said.kept,
        )

    @property
    def _stop(self) -> tuple[str, ...]:
        # In a chat the model ends its turn by itself, and may leave lines blank.
        return () if self.options.chat_template else (_JOINT,)

    def _problems(self, steps: int) -> list[Problem]:
        return problems(_KINDS[self.name][0], COUNT, steps, f"{self.name} {SEED}")[
            : self.options.limit
        ]

    def _share(self, problem: Problem, text: str) -> float:
        stated = _KINDS[self.name][1](text)
        return steps_right(stated, problem.states) / len(problem.states)

    def _prompt(self, problem: Problem, lm: LanguageModel) -> list[int]:
        make, _, instruction = _KINDS[self.name]
        pool = problems(make, _POOL, EXAMPLE_STEPS, f"{self.name} examples {SEED}")
        solved = [example.text for example in pool[: self.fewshot]]
        text = _JOINT.join([instruction, *solved, problem.prompt])
        if self.options.chat_template:
            return lm.encode(lm.chat([{"role": "user", "content": text}]))
        return lm.encode(f"{text}\n")

    def _asks(self, asked: Sequence[Problem], lm: LanguageModel) -> list[Ask]:
        """The problems with room for their answers. Raises QsweepError where there is none."""
        prompts = [self._prompt(problem, lm) for problem in asked]
        needed = [self._needed(problem, lm) for problem in asked]
        given = self.options.max_new_tokens
        if given is not None and given < max(needed):
            raise QsweepError(
                f"{self.name}: eval.max_new_tokens={given}: right answers take up to {max(needed)} "
                f"tokens; set eval.max_new_tokens={max(needed)} or more, or null"
            )
        longest = max(len(p) + n for p, n in zip(prompts, needed, strict=True))
        if longest > lm.max_length:
            raise QsweepError(
                f"{self.name}: a problem of {self.steps} steps and its answer take {longest} tokens, "
                f"the model's context has {lm.max_length}{self._way_out(lm)}"
            )
        # One limit for all: transformers' loop decodes only such together.
        wanted = given or _TIMES * max(needed) + _MORE
        room = [lm.max_length - len(prompt) for prompt in prompts]
        lm.count("fewer_new_tokens", sum(r < wanted for r in room))
        return [Ask(tuple(p), min(wanted, r)) for p, r in zip(prompts, room, strict=True)]

    def _needed(self, problem: Problem, lm: LanguageModel) -> int:
        # The answer's tokens, and the one that ends it.
        return len(lm.encode(problem.answer)) + 1

    def _way_out(self, lm: LanguageModel) -> str:
        def fits(steps: int) -> bool:
            asked = self._problems(steps)
            sizes = (len(self._prompt(p, lm)) + self._needed(p, lm) for p in asked)
            return max(sizes) <= lm.max_length

        fitting, too_many = 0, self.steps
        while too_many - fitting > 1:
            middle = (fitting + too_many) // 2
            fitting, too_many = (middle, too_many) if fits(middle) else (fitting, middle)
        return f"; set eval.steps={fitting} or fewer" if fitting else ""
