"""The dense engine in lm-evaluation-harness's terms. Imported only where the harness is installed."""

# ruff: noqa: D102 - lm_eval.api.model.LM says what the methods are for

import json
from collections.abc import Callable, Mapping
from typing import Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM

from qsweep.tasks.model import LanguageModel
from qsweep.tasks.requests import MAX_NEW_TOKENS, Pair, Sampling
from qsweep.text.windows import token_ids


class DenseModel(TemplateLM):
    """qsweep's dense engine.

    Attributes:
        rolling_tokens: How many tokens each text of a rolling log-likelihood had.
    """

    max_gen_toks = MAX_NEW_TOKENS
    batch_size = "auto"
    tokenizer_name = "qsweep"

    def __init__(self, lm: LanguageModel, progress: Callable[[float], None]):
        super().__init__()
        self._lm, self._progress = lm, progress
        self.tokenizer, self.max_length, self._device = lm.tokenizer, lm.max_length, lm.model.device
        self.rolling_tokens: dict[str, int] = {}

    @property
    def eot_token_id(self) -> int:
        end = self._lm.tokenizer.eos_token_id
        return self._lm.start_token if end is None else int(end)

    @property
    def prefix_token_id(self) -> int:
        return self._lm.start_token

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        if add_special_tokens is False:
            return token_ids(string, self._lm.tokenizer)
        return self._lm.encode(string)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        if add_generation_prompt:
            return self._lm.chat(chat_history)
        return str(
            self._lm.tokenizer.apply_chat_template(
                chat_history, tokenize=False, continue_final_message=True
            )
        )

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        # Choices of one question are cut at one place; the harness would cut each by itself, and
        # leave one that fuses with the context without a token.
        questions: dict[tuple[Any, str], list[int]] = {}
        for number, request in enumerate(requests):
            place = (getattr(request, "doc_id", None), request.args[0])
            questions.setdefault(place, []).append(number)
        pairs: dict[int, Pair] = {}
        for (_, context), members in questions.items():
            texts = [requests[number].args[1] for number in members]
            pairs.update(zip(members, self._lm.pairs(context, texts), strict=True))
        found = self._lm.loglikelihoods([pairs[n] for n in range(len(requests))], self._progress)
        return [(likelihood.logprob, likelihood.greedy) for likelihood in found]

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        pairs = [Pair(tuple(context), tuple(rest)) for _, context, rest in requests]
        found = self._lm.loglikelihoods(pairs, self._progress)
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
        for owner, found in zip(
            owners, self._lm.loglikelihoods(windows, self._progress), strict=True
        ):
            sums[owner] += found.logprob
        return sums

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        texts: dict[int, str] = {}
        kinds: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            kinds.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        for options, members in kinds.items():
            prompts = [self.tok_encode(requests[n].args[0]) for n in members]
            found = self._lm.generate(
                prompts, Sampling.of_harness(json.loads(options)), self._progress
            )
            texts.update(zip(members, found, strict=True))
        return [texts[n] for n in range(len(requests))]


class Collected(DenseModel):
    """Answers nothing, and notes what it is asked to generate.

    Attributes:
        asked: By request, its context and the harness's ``generation_kwargs``.
    """

    def __init__(self, lm: LanguageModel):
        super().__init__(lm, lambda _: None)
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        self.asked = [(request.args[0], request.args[1]) for request in requests]
        return [""] * len(requests)


class Given(DenseModel):
    """Answers what a model said before, by the request's context."""

    def __init__(self, lm: LanguageModel, texts: Mapping[str, str]):
        super().__init__(lm, lambda _: None)
        self._texts = texts

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        return [self._texts[request.args[0]] for request in requests]
