"""Continuations of many prompts, greedy unless a task demands otherwise, in batches."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from qsweep.errors import TrialFailed
from qsweep.nonfinite import origin
from qsweep.tasks.model import LanguageModel, Sampling

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# Rows at once, at least and at most.
_FEWEST, _MOST = 4, 64
# Looked at for a stop text after every step, beyond the stop text's own length.
_TAIL_TOKENS = 8


def generate(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    progress: Callable[[float], None],
) -> list[str]:
    """Continue prompts; see :meth:`LanguageModel.generate`.

    Prompts that leave too little room lose their begin.

    Raises:
        TrialFailed: A logit is not finite (the line names the step), or memory does not suffice for
            a single prompt.
    """
    import torch

    room = max(1, lm.max_length - sampling.max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    longest = min(room, max(map(len, prompts), default=0)) + sampling.max_new_tokens
    size = lm.batch_size or rows_at_once(lm.model, longest)
    found: dict[int, str] = {}
    begin = 0
    with torch.inference_mode():
        while begin < len(order):
            chosen = order[begin : begin + size]
            try:
                texts = _generate([list(prompts[i])[-room:] for i in chosen], lm, sampling)
            except torch.OutOfMemoryError as error:
                if len(chosen) == 1:
                    raise TrialFailed(
                        f"out of memory on {lm.model.device} while generating from one prompt"
                    ) from error
                torch.cuda.empty_cache()
                size = max(1, size // 2)
                continue
            found.update(zip(chosen, texts, strict=True))
            begin += len(chosen)
            progress(begin / len(order))
    return [found[i] for i in range(len(prompts))]


def rows_at_once(model: "PreTrainedModel", length: int) -> int:
    """How many rows of so many tokens to decode together.

    A step reads all weights and all keys and values: up to where the latter weigh as much, another
    row is nearly free, and beyond it nothing is gained.
    """
    config: Any = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_row = 2 * config.num_hidden_layers * heads * size * max(1, length)
    return max(_FEWEST, min(_MOST, model.num_parameters() // per_row))


def cut(text: str, until: Sequence[str]) -> str:
    """A text up to the first of the stop texts."""
    ends = [at for stop in until if stop and (at := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))]


def _generate(batch: Sequence[list[int]], lm: LanguageModel, sampling: Sampling) -> list[str]:
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    tokenizer = lm.tokenizer
    ends = _end_tokens(lm)
    pad = tokenizer.pad_token_id
    pad = ends[0] if pad is None else int(pad)
    width = max(len(ids) for ids in batch)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in batch])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
    sample = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
    }
    # The checkpoint's own defaults (temperature, repetition penalty) are no part of the protocol.
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=sampling.do_sample,
        eos_token_id=ends,
        pad_token_id=pad,
        use_cache=True,
        **(sample if sampling.do_sample else {}),
    )
    if sampling.do_sample:
        torch.manual_seed(0)
    model: Any = lm.model
    produced = model.generate(
        input_ids=ids.to(lm.model.device),
        attention_mask=mask.to(lm.model.device),
        generation_config=config,
        logits_processor=LogitsProcessorList([_FiniteLogits(lm, width)]),
        stopping_criteria=StoppingCriteriaList([_stop_at(tokenizer, sampling.until, width)]),
    )
    texts = tokenizer.batch_decode(produced[:, width:], skip_special_tokens=True)
    return [cut(text, sampling.until) for text in texts]


def _end_tokens(lm: LanguageModel) -> list[int]:
    own = getattr(lm.model.generation_config, "eos_token_id", None)
    own = own if isinstance(own, list) else [] if own is None else [own]
    ends = {int(token) for token in own} | {
        int(token) for token in [lm.tokenizer.eos_token_id] if token is not None
    }
    return sorted(ends) or [0]


class _FiniteLogits:
    """Raises at the step whose logits are not finite. A logits processor of transformers."""

    def __init__(self, lm: LanguageModel, prompt: int):
        self._lm, self._prompt = lm, prompt

    def __call__(self, ids: "Tensor", scores: "Tensor") -> "Tensor":
        import torch

        # A row whose highest logit is a number has neither NaN nor +inf; -inf alone is a mask.
        if not bool(torch.isfinite(scores.amax(-1)).all()):
            step = ids.shape[1] - self._prompt + 1
            row = int((~torch.isfinite(scores.amax(-1))).nonzero()[0, 0])
            raise TrialFailed(
                f"the model's logits are not finite at step {step} of generation: "
                + origin(self._lm.model, ids[row])
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
            if not stops:
                return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
            begin = max(prompt, input_ids.shape[1] - longest)
            tails = tokenizer.batch_decode(input_ids[:, begin:])
            done = [any(stop in tail for stop in stops) for tail in tails]
            return torch.tensor(done, device=input_ids.device)

    return StopAtText()
