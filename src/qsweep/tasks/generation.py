"""Continuations of many prompts, greedy unless a task demands otherwise, in batches."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import QsweepError, TrialFailed
from qsweep.models.nonfinite import nonfinite_origin
from qsweep.tasks.attention import (
    is_recurrent,
    of_layers,
    reset_rope_length,
    rope_boundaries,
    rounding,
)
from qsweep.tasks.requests import Sampling
from qsweep.tasks.rows import last_tokens
from qsweep.tasks.text_model import TextModel

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# Rows at once, at least and at most.
_FEWEST, _MOST = 4, 64
# Looked at for a stop text after every step, beyond the stop text's own length.
_TAIL_TOKENS = 8
# Steps for which decoding several prompts at once is checked: the first by prompts, the rest by caches.
_CHECKED_STEPS = 3


def generate(
    lm: TextModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    progress: Callable[[float], None],
) -> list[str]:
    """Continue prompts; see :meth:`~qsweep.tasks.model.LanguageModel.generate`.

    As texts, without special tokens and up to the first stop text; see :func:`generate_tokens`.
    """
    produced = generate_tokens(lm, prompts, sampling, progress)
    texts = lm.tokenizer.batch_decode(produced, skip_special_tokens=True) if produced else []
    return [cut(text, sampling.until) for text in texts]


def generate_tokens(
    lm: TextModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    progress: Callable[[float], None],
) -> list[list[int]]:
    """Continue prompts: the tokens that follow each, filled up behind its end within its batch.

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
    import torch

    asked = [list(prompt) or [lm.start_token] for prompt in prompts]
    new = [new_tokens(len(prompt), sampling.max_new_tokens, lm.max_length) for prompt in asked]
    rows = [
        list(last_tokens(prompt, lm.max_length - count, lm.start))
        for prompt, count in zip(asked, new, strict=True)
    ]
    lm.count("prompts_cut", sum(len(a) < len(b) for a, b in zip(rows, asked, strict=True)))
    lm.count("fewer_new_tokens", sum(count < sampling.max_new_tokens for count in new))
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
    longest = max((len(row) + count for row, count in zip(rows, new, strict=True)), default=0)
    size = lm.batch_size or rows_at_once(lm.model, longest)
    found: dict[int, list[int]] = {}
    begin = 0
    with torch.inference_mode():
        cached = not rows or not is_recurrent(lm.model) or _runs_cached(lm, min(rows, key=len))
        padded, several = True, size > 1
        if several:
            padded, several = _batching_allowed(lm, rows, min(new, default=1), cached)
        size = size if several else 1
        while begin < len(order):
            first = order[begin]
            fits = [
                new[i] == new[first] and (padded or len(rows[i]) == len(rows[first]))
                for i in order[begin : begin + size]
            ]
            chosen = order[begin : begin + (fits.index(False) if False in fits else len(fits))]
            try:
                batch = [rows[i] for i in chosen]
                produced = _generate(batch, lm, sampling, new[first], cached, begin)
            except torch.OutOfMemoryError as error:
                if len(chosen) == 1:
                    raise TrialFailed(
                        f"out of memory on {lm.model.device} while generating from one prompt"
                    ) from error
                torch.cuda.empty_cache()
                size = max(1, size // 2)
                continue
            found.update(zip(chosen, produced, strict=True))
            begin += len(chosen)
            progress(begin / len(order))
    return [found[i] for i in range(len(prompts))]


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


def _runs_cached(lm: TextModel, prompt: list[int]) -> bool:
    # Some recurrent models have no cache that transformers' own loop can use.
    import torch

    try:
        _first_steps(lm, [prompt], 2, cached=True)
    except torch.OutOfMemoryError:
        return True  # says nothing of the cache
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        lm.facts["generation_cache"] = False
        return False
    return True


def _batching_allowed(
    lm: TextModel, rows: Sequence[list[int]], new: int, cached: bool
) -> tuple[bool, bool]:
    """Whether prompts may be filled up on the left, and whether several may be decoded at once.

    A state that is carried along has read the filling, and frequencies that go by the length are
    the longest row's. Beyond that, the longest and the shortest are tried together and alone.
    """
    order = sorted(rows, key=len)
    if len(order) < 2:
        return True, True
    fixed = not is_recurrent(lm.model) and not any(
        rope_boundaries(lm.model.config.get_text_config())
    )
    if fixed and _steps_match_alone(lm, [order[-1], order[0]], new, cached):
        return True, True
    pair = next((p for p in pairwise(order) if len(p[0]) == len(p[1]) and p[0] != p[1]), None)
    return False, pair is not None and _steps_match_alone(lm, pair, new, cached)


def _steps_match_alone(lm: TextModel, rows: Sequence[list[int]], new: int, cached: bool) -> bool:
    # Whether prompts that are decoded together begin as each does alone.
    import torch

    steps = min(new, _CHECKED_STEPS)
    try:
        together = _first_steps(lm, rows, steps, cached)
        alone = [_first_steps(lm, [row], steps, cached) for row in rows]
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    for number, expected in enumerate(alone):
        for step in range(steps):
            own, found = expected[step][0], together[step][number]
            likely = own.topk(min(8, len(own))).indices
            if not bool((found - own)[likely].abs().max() <= rounding(lm.model.dtype)):
                return False
            if found.argmax() != own.argmax():
                break  # a tie: they go on with another token
    return True


def _first_steps(
    lm: TextModel, rows: Sequence[list[int]], steps: int, cached: bool
) -> "list[Tensor]":
    """Log-probabilities of the first tokens after each prompt: per step float32 [rows, vocab]."""
    from transformers import GenerationConfig

    pad = _pad(lm)
    ids, mask = _left_padded(rows, pad)
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


def cut(text: str, until: Sequence[str]) -> str:
    """A text up to the first of the stop texts."""
    ends = [at for stop in until if stop and (at := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))]


def _generate(
    batch: Sequence[list[int]],
    lm: TextModel,
    sampling: Sampling,
    new: int,
    cached: bool,
    before: int,
) -> list[list[int]]:
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    tokenizer = lm.tokenizer
    pad = _pad(lm)
    ids, mask = _left_padded(batch, pad)
    width = ids.shape[1]
    sample = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
    }
    # The checkpoint's own defaults (temperature, repetition penalty) are no part of the protocol.
    config = GenerationConfig(
        max_new_tokens=new,
        do_sample=sampling.do_sample,
        eos_token_id=end_tokens(lm) or None,
        pad_token_id=pad,
        use_cache=cached,
        **(sample if sampling.do_sample else {}),
    )
    if sampling.do_sample:
        torch.manual_seed(0 if sampling.seed is None else sampling.seed + before)
    model: Any = lm.model
    reset_rope_length(model)
    produced = model.generate(
        input_ids=ids.to(lm.model.device),
        attention_mask=mask.to(lm.model.device),
        generation_config=config,
        logits_processor=LogitsProcessorList([_FiniteLogits(lm, width)]),
        stopping_criteria=StoppingCriteriaList([_stop_at(tokenizer, sampling.until, width)]),
    )
    rows: list[list[int]] = produced[:, width:].tolist()
    return rows


def end_tokens(lm: TextModel) -> list[int]:
    """The tokens that end what a model writes."""
    own = getattr(lm.model.generation_config, "eos_token_id", None)
    own = own if isinstance(own, list) else [] if own is None else [own]
    ends = {int(token) for token in own} | {
        int(token) for token in [lm.tokenizer.eos_token_id] if token is not None
    }
    return sorted(ends)


def _pad(lm: TextModel) -> int:
    pad = lm.tokenizer.pad_token_id
    return int(next(iter(end_tokens(lm)), 0) if pad is None else pad)


def _left_padded(batch: Sequence[list[int]], pad: int) -> "tuple[Tensor, Tensor]":
    """Ids and attention mask, both int64 [b, n], filled up on the left."""
    import torch

    width = max(len(ids) for ids in batch)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in batch])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
    return ids, mask


class _FiniteLogits:
    """Raises at the step whose logits are not finite. A logits processor of transformers."""

    def __init__(self, lm: TextModel, prompt: int):
        self._lm, self._prompt = lm, prompt

    def __call__(self, ids: "Tensor", scores: "Tensor") -> "Tensor":
        """Ids int64 [b, n] so far and the next token's logits [b, vocab], handed on as they are."""
        import torch

        # A row whose highest logit is a number has neither NaN nor +inf; -inf alone is a mask.
        if not bool(torch.isfinite(scores.amax(-1)).all()):
            step = ids.shape[1] - self._prompt + 1
            row = int((~torch.isfinite(scores.amax(-1))).nonzero()[0, 0])
            raise TrialFailed(
                f"the model's logits are not finite at step {step} of generation: "
                + nonfinite_origin(self._lm.model, ids[row])
            )
        return scores


def _stop_at(tokenizer: Any, until: Sequence[str], prompt: int) -> Any:
    import torch
    from transformers import StoppingCriteria

    stops = [stop for stop in until if stop]
    longest = max((len(tokenizer.encode(stop)) for stop in stops), default=0) + _TAIL_TOKENS

    class StopAtText(StoppingCriteria):
        """Ends a row once one of the stop texts is in what was generated."""

        def __call__(self, input_ids: "Tensor", scores: Any, **_: Any) -> "Tensor":
            """Whether each row is over, bool [b]: ids so far, int64 [b, n]."""
            if not stops:
                return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
            begin = max(prompt, input_ids.shape[1] - longest)
            tails = tokenizer.batch_decode(input_ids[:, begin:])
            done = [any(stop in tail for stop in stops) for tail in tails]
            return torch.tensor(done, device=input_ids.device)

    return StopAtText()
