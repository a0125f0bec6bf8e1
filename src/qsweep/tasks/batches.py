"""Continuations by transformers' own loop, in batches: for models that carry a state along.

A batch is decoded until its last row is done, see :mod:`qsweep.tasks.decoding` for what does better
where a model allows it.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import TrialFailed
from qsweep.models.nonfinite import nonfinite_origin
from qsweep.tasks.attention import reset_rope_length
from qsweep.tasks.drawing import draw, uniforms
from qsweep.tasks.requests import Answer, Ask, Sampling
from qsweep.tasks.text_model import TextModel

if TYPE_CHECKING:
    from torch import Tensor

# Looked at for a stop text after every step, beyond the stop text's own length.
_TAIL_TOKENS = 8


def decode_batch(
    lm: TextModel, asks: Sequence[Ask], sampling: Sampling, cached: bool
) -> list[Answer]:
    """Continue prompts together, each by the same number of tokens at most.

    Args:
        lm: The model.
        asks: What is asked, either all with a seed or none.
        sampling: Stop texts, and how tokens are drawn: by each ask's seed, or where asks have none
            and it says so, by one seed for the whole batch.
        cached: Whether the model's cache can be used.

    Raises:
        TrialFailed: A logit is not finite.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    pad = _pad(lm)
    ids, mask = _left_padded([ask.prompt for ask in asks], pad)
    width, new, ends = ids.shape[1], asks[0].new, end_tokens(lm)
    seeds = [ask.seed for ask in asks if ask.seed is not None]
    by_batch = sampling.do_sample and not seeds
    sample = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
    }
    # The checkpoint's own defaults (temperature, repetition penalty) are no part of the protocol.
    config = GenerationConfig(
        max_new_tokens=new,
        do_sample=by_batch,
        eos_token_id=ends or None,
        pad_token_id=pad,
        use_cache=cached,
        **(sample if by_batch else {}),
    )
    if by_batch:
        torch.manual_seed(0)
    processors: list[Any] = [_FiniteLogits(lm, width)]
    if seeds:
        processors.append(_Drawn(seeds, new, width, sampling))
    model: Any = lm.model
    reset_rope_length(model)
    stops = StopTexts(lm.tokenizer, sampling.until)
    produced = model.generate(
        input_ids=ids.to(lm.model.device),
        attention_mask=mask.to(lm.model.device),
        generation_config=config,
        logits_processor=LogitsProcessorList(processors),
        stopping_criteria=StoppingCriteriaList([_stop_at(stops, width)]),
    )
    return [_answer(row, set(ends), stops) for row in produced[:, width:].tolist()]


def first_steps(
    lm: TextModel, prompts: Sequence[Sequence[int]], steps: int, cached: bool
) -> "list[Tensor]":
    """Log-probabilities of the first tokens after each prompt: per step float32 [prompts, vocabulary]."""
    from transformers import GenerationConfig

    pad = _pad(lm)
    ids, mask = _left_padded(prompts, pad)
    model: Any = lm.model
    reset_rope_length(model)
    found = model.generate(
        input_ids=ids.to(lm.model.device),
        attention_mask=mask.to(lm.model.device),
        generation_config=GenerationConfig(
            max_new_tokens=steps,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=pad,
            use_cache=cached,
            output_logits=True,
            return_dict_in_generate=True,
        ),
    )
    return [logits.float().log_softmax(-1) for logits in found.logits]


def end_tokens(lm: TextModel) -> list[int]:
    """The tokens that end a text: the checkpoint's and the tokenizer's."""
    own = getattr(lm.model.generation_config, "eos_token_id", None)
    own = own if isinstance(own, list) else [] if own is None else [own]
    ends = {int(token) for token in own} | {
        int(token) for token in [lm.tokenizer.eos_token_id] if token is not None
    }
    return sorted(ends)


class StopTexts:
    """Tells whether new tokens have come to one of the texts that end an answer."""

    def __init__(self, tokenizer: Any, until: Sequence[str]):
        self._tokenizer, self._stops = tokenizer, [stop for stop in until if stop]
        longest = max((len(tokenizer.encode(stop)) for stop in self._stops), default=0)
        self.tail = longest + _TAIL_TOKENS
        """So many of the last tokens are looked at."""

    def reached(self, rows: Sequence[Sequence[int]]) -> list[bool]:
        """Whether each row has one among its last tokens."""
        if not self._stops:
            return [False] * len(rows)
        tails = self._tokenizer.batch_decode([row[-self.tail :] for row in rows])
        return [any(stop in tail for stop in self._stops) for tail in tails]

    def first(self, tokens: Sequence[int]) -> int | None:
        """After how many tokens one is there; None: it never is."""
        if not self._stops:
            return None
        reached = self.reached(
            [tokens[max(0, n - self.tail) : n] for n in range(1, len(tokens) + 1)]
        )
        return next((number for number, found in enumerate(reached, 1) if found), None)


def require_finite(
    lm: TextModel, logits: "Tensor", read: Callable[[int], tuple[Sequence[int], int]]
) -> None:
    """Refuse logits that are no numbers.

    Args:
        lm: The model they are of.
        logits: Of the next token, float [rows, vocabulary].
        read: What a row has read, as token ids, and the step of its generation.

    Raises:
        TrialFailed: The line names the step, and where in the model it begins.
    """
    import torch

    # A row whose highest logit is a number has neither NaN nor +inf; -inf alone is a mask.
    finite = torch.isfinite(logits.amax(-1))
    if bool(finite.all()):
        return
    ids, step = read(int((~finite).nonzero()[0, 0]))
    row = torch.tensor(list(ids), device=lm.model.device)
    raise TrialFailed(
        f"the model's logits are not finite at step {step} of generation: "
        + nonfinite_origin(lm.model, row)
    )


def _answer(tokens: list[int], ends: set[int], stops: StopTexts) -> Answer:
    # Beyond its own end a row is filled up until the last of the batch is done.
    end = next((number for number, token in enumerate(tokens, 1) if token in ends), None)
    stop = stops.first(tokens[:end])
    return Answer(tuple(tokens[: stop or end]), bool(stop or end))


def _pad(lm: TextModel) -> int:
    pad = lm.tokenizer.pad_token_id
    return int(next(iter(end_tokens(lm)), 0) if pad is None else pad)


def _left_padded(batch: Sequence[Sequence[int]], pad: int) -> "tuple[Tensor, Tensor]":
    """Ids and attention mask, both int64 [b, n], filled up on the left."""
    import torch

    width = max(len(ids) for ids in batch)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in batch])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
    return ids, mask


class _FiniteLogits:
    """Raises at the step whose logits are not finite. A logits processor of transformers."""

    def __init__(self, lm: TextModel, prompt: int):
        self._lm, self._prompt = lm, prompt

    def __call__(self, ids: "Tensor", scores: "Tensor") -> "Tensor":
        """Ids int64 [b, n] so far and the next token's logits [b, vocab], handed on as they are."""
        step = ids.shape[1] - self._prompt + 1
        require_finite(self._lm, scores, lambda row: (ids[row].tolist(), step))
        return scores


class _Drawn:
    """Leaves of each row's logits the one token that its own numbers draw: greedy search takes that."""

    def __init__(self, seeds: Sequence[str], new: int, prompt: int, sampling: Sampling):
        self._numbers = [uniforms(seed, new) for seed in seeds]
        self._prompt, self._sampling = prompt, sampling

    def __call__(self, ids: "Tensor", scores: "Tensor") -> "Tensor":
        """Ids int64 [b, n] so far and the next token's logits [b, vocab]; these for one token each."""
        import torch

        step = ids.shape[1] - self._prompt
        numbers = torch.tensor([float(row[step]) for row in self._numbers], dtype=torch.float64)
        tokens = draw(scores, numbers, self._sampling)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)


def _stop_at(stops: StopTexts, prompt: int) -> Any:
    import torch
    from transformers import StoppingCriteria

    class StopAtText(StoppingCriteria):
        """Ends a row once one of the stop texts is in what was generated."""

        def __call__(self, input_ids: "Tensor", scores: Any, **_: Any) -> "Tensor":
            """Whether each row is over, bool [b]: ids so far, int64 [b, n]."""
            begin = max(prompt, input_ids.shape[1] - stops.tail)
            found = stops.reached(input_ids[:, begin:].tolist())
            return torch.tensor(found, device=input_ids.device)

    return StopAtText()
