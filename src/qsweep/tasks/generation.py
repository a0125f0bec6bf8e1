"""Continuations of many prompts, greedy unless a task demands otherwise, by the fastest way that is exact."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import QsweepError, TrialFailed
from qsweep.tasks import batches, decoding
from qsweep.tasks.attention import is_recurrent, of_layers, rope_boundaries, rounding
from qsweep.tasks.requests import Answer, Ask, Sampling
from qsweep.tasks.rows import last_tokens
from qsweep.tasks.text_model import TextModel

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# Rows at once, at least and at most.
_FEWEST, _MOST = 4, 64
# Steps for which decoding several prompts at once is checked: the first by prompts, the rest by caches.
_CHECKED_STEPS = 3
# What a model's code may raise where its cache is not what was expected.
_NO_SUCH_CACHE = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def generate(
    lm: TextModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    progress: Callable[[float], None],
) -> list[str]:
    """Continue prompts; see :meth:`~qsweep.tasks.model.LanguageModel.generate`.

    A prompt has half of the context at least, and what is not wanted for new tokens; one that is
    longer loses its begin.

    Args:
        lm: The model.
        prompts: Token ids; an empty one begins with the model's start token.
        sampling: How much is generated, and how.
        progress: Told the share that is done.

    Raises:
        QsweepError: The context is too short for a prompt and a new token.
        TrialFailed: A logit is not finite (the line names the step), or memory does not suffice for
            a single prompt.
    """
    asks = with_room(lm, prompts, sampling.max_new_tokens)
    tokens = [list(one.tokens) for one in answers(lm, asks, sampling, progress)]
    texts = lm.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [cut(text, sampling.until) for text in texts]


def with_room(lm: TextModel, prompts: Sequence[Sequence[int]], wanted: int) -> list[Ask]:
    """Prompts with room for so many new tokens in the model's context, or for half of it.

    Raises:
        QsweepError: The context is too short for a prompt and a new token.
    """
    asked = [list(prompt) or [lm.start_token] for prompt in prompts]
    new = [new_tokens(len(prompt), wanted, lm.max_length) for prompt in asked]
    asks = [
        Ask(last_tokens(prompt, lm.max_length - count, lm.start), count)
        for prompt, count in zip(asked, new, strict=True)
    ]
    pairs = zip(asks, asked, strict=True)
    lm.count("prompts_cut", sum(len(ask.prompt) < len(whole) for ask, whole in pairs))
    lm.count("fewer_new_tokens", sum(count < wanted for count in new))
    return asks


def answers(
    lm: TextModel,
    asks: Sequence[Ask],
    sampling: Sampling,
    progress: Callable[[float], None],
) -> list[Answer]:
    """Continue prompts token by token, each with room for its answer.

    An ask with a seed is answered by tokens that its own numbers draw, whatever else is asked.

    Args:
        lm: The model.
        asks: What is asked.
        sampling: Stop texts, and how tokens are drawn; its ``max_new_tokens`` is the asks'.
        progress: Told the share of asks that is done.

    Raises:
        TrialFailed: A logit is not finite (the line names the step), or memory does not suffice for
            a single prompt.
    """
    import torch

    found: dict[int, Answer] = {}

    def keep(number: int, answer: Answer) -> None:
        found[number] = answer
        progress(len(found) / len(asks))

    longest = max((len(ask.prompt) + ask.new for ask in asks), default=0)
    size = lm.batch_size or rows_at_once(lm.model, longest)
    order = sorted(range(len(asks)), key=lambda n: (-len(asks[n].prompt), n))
    with torch.inference_mode():
        way, size = _way(lm, asks, sampling, size)
        while rest := [n for n in order if n not in found]:
            try:
                way([asks[n] for n in rest], size, partial(_told, rest, keep))
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise TrialFailed(
                        f"out of memory on {lm.model.device} while generating from one prompt"
                    ) from error
                torch.cuda.empty_cache()
                size //= 2
    return [found[n] for n in range(len(asks))]


def rows_at_once(model: "PreTrainedModel", length: int) -> int:
    """How many rows of so many tokens to decode together.

    A step reads all weights and all keys and values: up to where the latter weigh as much, another
    row is nearly free, and beyond it nothing is gained.
    """
    config: Any = model.config.get_text_config()
    queries = max((n for n in of_layers(config, "num_attention_heads") if n), default=0)
    if not isinstance(queries, int) or queries < 1:
        return _MOST  # no attention: a state of fixed size
    heads = max((n for n in of_layers(config, "num_key_value_heads") if n), default=queries)
    size = max(
        (n for n in of_layers(config, "head_dim") if n), default=config.hidden_size // queries
    )
    per_row = 2 * config.num_hidden_layers * heads * size * max(1, length)
    return max(_FEWEST, min(_MOST, model.num_parameters() // per_row))


def new_tokens(prompt: int, wanted: int, context: int) -> int:
    """How many tokens to generate after a prompt: fewer than wanted where room for it is short.

    Args:
        prompt: Its tokens.
        wanted: ``max_new_tokens``.
        context: What the model reads, prompt and new tokens together.

    Raises:
        QsweepError: The context holds no prompt and a new token.
    """
    if context < 2:
        raise QsweepError(
            f"a context of {context} token leaves no room for {wanted} new ones after a prompt"
        )
    return min(wanted, max(context - prompt, context // 2))


Done = Callable[[int, Answer], None]
Way = Callable[[Sequence[Ask], int, Done], None]


def _told(numbers: Sequence[int], keep: Done, place: int, answer: Answer) -> None:
    keep(numbers[place], answer)


def _way(lm: TextModel, asks: Sequence[Ask], sampling: Sampling, size: int) -> tuple[Way, int]:
    """How to decode these prompts, and how many at once.

    Rows that come and go, and prompts that are filled up on the left, are for models whose layers
    see what a mask shows them: a state that is carried along has read the filling, and frequencies
    that go by the length are the longest row's. Beyond that, the longest and the shortest prompt are
    tried together and alone.
    """
    steps = min(_CHECKED_STEPS, max((ask.new for ask in asks), default=1))
    # Only those that have room for the steps that are tried.
    order = sorted({ask.prompt for ask in asks if ask.new >= steps}, key=len)
    recurrent = is_recurrent(lm.model)
    cached = not asks or not recurrent or _runs_cached(lm, order[0])
    batch = partial(_in_batches, lm, sampling, cached)
    if size == 1 or len(asks) < 2:
        return partial(batch, True), size
    by_batch = partial(batches.first_steps, lm, steps=steps, cached=cached)
    if not recurrent and not any(rope_boundaries(lm.model.config.get_text_config())):
        ends = [order[-1], order[0]]
        by_row = partial(decoding.first_steps, lm, steps=steps)
        if not sampling.do_sample and _match_alone(lm, ends, by_row, by_batch):
            return partial(decoding.decode, lm, sampling), size
        if _match_alone(lm, ends, by_batch, by_batch):
            return partial(batch, True), size
    alike = [p for p in pairwise(order) if len(p[0]) == len(p[1])]
    alike += [(order[0], order[0])] * (len({ask.prompt for ask in asks}) < len(asks))
    together = bool(alike) and _match_alone(lm, alike[0], by_batch, by_batch)
    return partial(batch, False), size if together else 1


def _in_batches(
    lm: TextModel,
    sampling: Sampling,
    cached: bool,
    padded: bool,
    asks: Sequence[Ask],
    size: int,
    done: Done,
) -> None:
    def fits(ask: Ask, first: Ask) -> bool:
        alike = ask.new == first.new and (ask.seed is None) == (first.seed is None)
        return alike and (padded or len(ask.prompt) == len(first.prompt))

    waiting = list(range(len(asks)))
    while waiting:
        first = asks[waiting[0]]
        chosen = [n for n in waiting if fits(asks[n], first)][:size]
        found = batches.decode_batch(lm, [asks[n] for n in chosen], sampling, cached)
        for number, answer in zip(chosen, found, strict=True):
            done(number, answer)
        waiting = [n for n in waiting if n not in set(chosen)]


def _runs_cached(lm: TextModel, prompt: Sequence[int]) -> bool:
    # Some recurrent models have no cache that transformers' own loop can use.
    import torch

    try:
        batches.first_steps(lm, [prompt], 2, cached=True)
    except torch.OutOfMemoryError:
        return True  # says nothing of the cache
    except _NO_SUCH_CACHE:
        lm.facts["generation_cache"] = False
        return False
    return True


Steps = Callable[[Sequence[Sequence[int]]], "list[Tensor]"]


def _match_alone(
    lm: TextModel, prompts: Sequence[Sequence[int]], together: Steps, alone: Steps
) -> bool:
    # Whether prompts that are decoded together begin as each does alone.
    import torch

    try:
        found = together(prompts)
        expected = [alone([prompt]) for prompt in prompts]
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    except _NO_SUCH_CACHE:
        return False
    for number, steps in enumerate(expected):
        for own, others in zip(steps, found, strict=True):
            likely = own[0].topk(min(8, own.shape[-1])).indices
            apart = (others[number] - own[0])[likely].abs().max()
            if not bool(apart <= rounding(lm.model.dtype)):
                return False
            if others[number].argmax() != own[0].argmax():
                break  # a tie: they go on with another token
    return True


def cut(text: str, until: Sequence[str]) -> str:
    """A text up to the first of the stop texts."""
    ends = [at for stop in until if stop and (at := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))]
