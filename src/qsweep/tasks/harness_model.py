"""The dense engine in lm-evaluation-harness's terms."""

import json
from collections.abc import Callable
from typing import Any

from qsweep.tasks.model import LanguageModel
from qsweep.tasks.requests import Pair, Sampling

_MAX_NEW_TOKENS = 256


def harness_model(lm: LanguageModel, progress: Callable[[float], None]) -> Any:
    """An ``lm_eval.api.model.TemplateLM`` that asks ``lm``.

    Its ``rolling_tokens`` say how many tokens each text of a rolling log-likelihood had.
    """
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM

    from qsweep.text.windows import token_ids

    class DenseModel(TemplateLM):
        """qsweep's dense engine."""

        tokenizer = lm.tokenizer
        max_length = lm.max_length
        max_gen_toks = _MAX_NEW_TOKENS
        batch_size = "auto"
        device = lm.model.device
        tokenizer_name = "qsweep"

        def __init__(self) -> None:
            super().__init__()
            self.rolling_tokens: dict[str, int] = {}

        @property
        def eot_token_id(self) -> int:
            end = lm.tokenizer.eos_token_id
            return lm.start_token if end is None else int(end)

        @property
        def prefix_token_id(self) -> int:
            return lm.start_token

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **_: Any
        ) -> list[int]:
            if add_special_tokens is False:
                return token_ids(string, lm.tokenizer)
            return lm.encode(string)

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            if add_generation_prompt:
                return lm.chat(chat_history)
            return str(
                lm.tokenizer.apply_chat_template(
                    chat_history, tokenize=False, continue_final_message=True
                )
            )

        def loglikelihood(
            self, requests: Any, disable_tqdm: bool = False
        ) -> list[tuple[float, bool]]:
            # Choices of one question are cut at one place; the harness would cut each by itself, and
            # leave one that fuses with the context without a token.
            questions: dict[tuple[Any, str], list[int]] = {}
            for number, request in enumerate(requests):
                place = (getattr(request, "doc_id", None), request.args[0])
                questions.setdefault(place, []).append(number)
            pairs: dict[int, Pair] = {}
            for (_, context), members in questions.items():
                texts = [requests[number].args[1] for number in members]
                pairs.update(zip(members, lm.pairs(context, texts), strict=True))
            found = lm.loglikelihoods([pairs[n] for n in range(len(requests))], progress)
            return [(likelihood.logprob, likelihood.greedy) for likelihood in found]

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            pairs = [Pair(tuple(context), tuple(rest)) for _, context, rest in requests]
            found = lm.loglikelihoods(pairs, progress)
            return [(likelihood.logprob, likelihood.greedy) for likelihood in found]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            windows, owners = [], []
            for number, (text,) in enumerate(request.args for request in requests):
                ids = self.tok_encode(text)
                self.rolling_tokens[text] = len(ids)
                for window in utils.get_rolling_token_windows(
                    token_list=ids,
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                ):
                    context, rest = utils.make_disjoint_window(window)
                    windows.append(Pair(tuple(context), tuple(rest)))
                    owners.append(number)
            sums = [0.0] * len(requests)
            for owner, found in zip(owners, lm.loglikelihoods(windows, progress), strict=True):
                sums[owner] += found.logprob
            return sums

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            texts: dict[int, str] = {}
            kinds: dict[str, list[int]] = {}
            for number, request in enumerate(requests):
                kinds.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
            for options, members in kinds.items():
                prompts = [self.tok_encode(requests[n].args[0]) for n in members]
                found = lm.generate(prompts, sampling(json.loads(options)), progress)
                texts.update(zip(members, found, strict=True))
            return [texts[n] for n in range(len(requests))]

    return DenseModel()


def sampling(options: dict[str, Any]) -> Sampling:
    """What the harness's ``generation_kwargs`` mean."""
    until = options.get("until") or []
    temperature = float(options.get("temperature") or 0.0)
    limit = options.get("max_gen_toks") or options.get("max_new_tokens") or _MAX_NEW_TOKENS
    return Sampling(
        max_new_tokens=int(limit),
        until=tuple([until] if isinstance(until, str) else until),
        do_sample=bool(options.get("do_sample")) and temperature > 0,
        temperature=temperature or 1.0,
        top_p=float(options.get("top_p") or 1.0),
        top_k=int(options.get("top_k") or 0),
    )
