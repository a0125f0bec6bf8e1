"""Many prompts continued at once: a row that is done makes room for the next prompt.

A batch that is decoded to its end costs as many steps as its longest answer has tokens, and long
answers end far apart. Here no row waits for another (as servers do: Yu et al., Orca, OSDI 2022), and
a prompt that several answers begin with is read once.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qsweep.tasks.batches import StopTexts, end_tokens, require_finite
from qsweep.tasks.drawing import draw, uniforms
from qsweep.tasks.requests import Answer, Ask, Sampling
from qsweep.tasks.text_model import TextModel

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from qsweep.tasks.cache_rows import Kept


def decode(
    lm: TextModel,
    sampling: Sampling,
    asks: Sequence[Ask],
    size: int,
    done: Callable[[int, Answer], None],
) -> None:
    """Continue prompts, so many rows at a time.

    Args:
        lm: A model whose layers keep keys and values of every token, and see what a mask shows them.
        sampling: Stop texts, and how tokens of asks with a seed are drawn.
        asks: What is asked, the longest prompts first.
        size: Rows at once.
        done: Told of every answer as soon as it is there, by the ask's place.

    Raises:
        TrialFailed: A logit is not finite.
    """
    if asks:
        _Decoding(lm, sampling, asks, size, done).run()


def first_steps(lm: TextModel, prompts: Sequence[Sequence[int]], steps: int) -> "list[Tensor]":
    """Log-probabilities of the first tokens after each prompt: per step float32 [prompts, vocabulary].

    The first prompt must be the longest.
    """
    import torch

    from qsweep.tasks.cache_rows import Rows, read_prompt

    rows = Rows(lm.model, len(prompts), len(prompts[0]))
    logits = []
    for slot, prompt in enumerate(prompts):
        kept, after = read_prompt(lm.model, prompt)
        rows.place(slot, kept)
        logits.append(after)
    found = [torch.stack(logits)]
    while len(found) < steps:
        found.append(rows.step(found[-1].argmax(-1)))
    return [one.log_softmax(-1) for one in found]


@dataclass
class _Row:
    """One answer while it grows."""

    place: int
    ask: Ask
    numbers: "NDArray | None"
    tokens: list[int] = field(default_factory=list)
    over: bool = False

    @property
    def read(self) -> tuple[int, ...]:
        """All that the model has read for it."""
        return (*self.ask.prompt, *self.tokens)


class _Decoding:
    def __init__(
        self,
        lm: TextModel,
        sampling: Sampling,
        asks: Sequence[Ask],
        size: int,
        done: Callable[[int, Answer], None],
    ):
        from qsweep.tasks.cache_rows import Rows

        self._lm, self._sampling, self._done = lm, sampling, done
        self._waiting = deque(enumerate(asks))
        # How many of those that wait begin with each prompt, and those that were read for them.
        self._alike = Counter(ask.prompt for ask in asks)
        self._read: dict[tuple[int, ...], tuple[Kept, Tensor]] = {}
        self._ends = set(end_tokens(lm))
        self._stops = StopTexts(lm.tokenizer, sampling.until)
        size = min(size, len(asks))
        self._rows = Rows(lm.model, size, len(asks[0].prompt))
        self._live: list[_Row] = []
        self._logits: Any = None
        for slot in range(size):
            self._admit(slot, size)

    def run(self) -> None:
        import torch

        size = len(self._live)
        fresh = list(range(size))
        while True:
            over, fresh = self._take(fresh), []
            for slot in over:
                if self._waiting:
                    self._admit(slot, size)
                    fresh.append(slot)
            if fresh:  # the first tokens of these come from their prompts
                continue
            left = [slot for slot, row in enumerate(self._live) if not row.over]
            if not left:
                return
            if len(left) < len(self._live):
                self._rows.keep(left)
                self._live = [self._live[slot] for slot in left]
            last = [row.tokens[-1] for row in self._live]
            self._logits = self._rows.step(torch.tensor(last, device=self._logits.device))
            fresh = list(range(len(self._live)))

    def _admit(self, slot: int, size: int) -> None:
        """Give a place to the next that waits; its prompt is read unless it was for another."""
        from qsweep.tasks.cache_rows import read_prompt

        place, ask = self._waiting.popleft()
        if ask.prompt not in self._read:
            self._read[ask.prompt] = read_prompt(self._lm.model, ask.prompt)
        kept, logits = self._read[ask.prompt]
        self._alike[ask.prompt] -= 1
        if not self._alike[ask.prompt]:
            del self._read[ask.prompt]
        self._rows.place(slot, kept)
        if self._logits is None:
            self._logits = logits.new_zeros(size, len(logits))
        self._logits[slot] = logits
        numbers = None if ask.seed is None else uniforms(ask.seed, ask.new)
        row = _Row(place, ask, numbers)
        if slot == len(self._live):
            self._live.append(row)
        else:
            self._live[slot] = row

    def _take(self, slots: Sequence[int]) -> list[int]:
        """Choose the next token of these rows; those that are over with it."""
        rows = [self._live[slot] for slot in slots]
        logits = self._logits if len(slots) == len(self._logits) else self._logits[slots]
        require_finite(self._lm, logits, lambda n: (rows[n].read, len(rows[n].tokens) + 1))
        for row, token in zip(rows, choose(logits, rows, self._sampling), strict=True):
            row.tokens.append(token)
        reached = self._stops.reached([row.tokens for row in rows])
        for row, stop in zip(rows, reached, strict=True):
            ended = stop or row.tokens[-1] in self._ends
            row.over = ended or len(row.tokens) >= row.ask.new
            if row.over:
                self._done(row.place, Answer(tuple(row.tokens), ended))
        return [slot for slot, row in zip(slots, rows, strict=True) if row.over]


def choose(logits: "Tensor", rows: Sequence[_Row], sampling: Sampling) -> list[int]:
    """The next token of each row: the likeliest, or drawn where the row has numbers for that."""
    import torch

    tokens = logits.argmax(-1)
    drawn = [n for n, row in enumerate(rows) if row.numbers is not None]
    if drawn:
        numbers = [float(rows[n].numbers[len(rows[n].tokens)]) for n in drawn]  # type: ignore[index]
        of_drawn = torch.tensor(numbers, dtype=torch.float64)
        tokens[drawn] = draw(logits[drawn], of_drawn, sampling)
    return [int(token) for token in tokens.tolist()]
