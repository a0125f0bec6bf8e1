"""Scores against an independent plain loop on architectures that do not see all before them."""

import random

import pytest
import torch

from qsweep.base.errors import QsweepError
from qsweep.tasks.attention import UNLIMITED, full_attention_span, is_recurrent
from qsweep.tasks.model import LanguageModel
from qsweep.tasks.requests import Pair, Sampling

SMALL = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 64,
}
MAMBA_2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16}
LINEAR = {
    "num_hidden_layers": 4,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
ATTENTION = {
    "mistral": {"sliding_window": 48},
    "gemma3_text": {"sliding_window": 48},
    "cohere2": {"sliding_window": 32, "num_hidden_layers": 4},
    "gpt_oss": {"sliding_window": 40, "num_local_experts": 2, "num_experts_per_tok": 1},
    "llama4_text": {
        "attention_chunk_size": 48,
        "intermediate_size_mlp": 128,
        "num_hidden_layers": 4,
        "num_local_experts": 2,
    },
    "phi3": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64},
    "gemma4_text": {"sliding_window": 24},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 512},
    "gpt_neo": {
        "num_layers": 2,
        "num_heads": 4,
        "window_size": 48,
        "attention_types": [[["global", "local"], 1]],
    },
    "doge": {"keep_window_size": 48},
}
RECURRENT = {
    "mamba": {"state_size": 8},
    "rwkv": {"attention_hidden_size": 64, "context_length": 512},
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "use_mamba_kernels": False,
        "mamba_d_state": 8,
        "mamba_dt_rank": 8,
    },
    "bamba": {"attn_layer_indices": [1], "mamba_n_groups": 1, **MAMBA_2},
    "falcon_h1": {"mamba_d_ssm": 128, **MAMBA_2},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "qwen3_5_text": LINEAR,
}
LONG = (2, 5, 20, 60, 150)


def build(kind, overrides):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SMALL, **overrides}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3.0)
    return model.eval().requires_grad_(False)


def asked(model, pocket_dir):
    from transformers import AutoTokenizer

    return LanguageModel(model, AutoTokenizer.from_pretrained(pocket_dir), 512)


def questions(lengths=LONG, begin=40):
    rng = random.Random(1)
    header = [rng.randrange(1, 4000) for _ in range(begin)]
    found = []
    for length in lengths:
        context = (*header, *(rng.randrange(1, 4000) for _ in range(length)))
        found += [
            Pair(context, tuple(rng.randrange(1, 4000) for _ in range(count)))
            for count in (3, 1, 5, 2)
        ]
    return found


def plain(model, pairs):
    found = []
    for pair in pairs:
        ids = torch.tensor([[*pair.context, *pair.continuation]])
        with torch.inference_mode():
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0].float()
        values = logits[len(pair.context) - 1 :].log_softmax(-1)
        found.append(float(values.gather(1, ids[0, len(pair.context) :, None]).sum()))
    return found


@pytest.mark.parametrize("kind", [*ATTENTION, *RECURRENT])
def test_choices_score_as_in_a_plain_loop(kind, pocket_dir):
    overrides = {**ATTENTION, **RECURRENT}[kind]
    lm, pairs = asked(build(kind, overrides), pocket_dir), questions()
    found = [likelihood.logprob for likelihood in lm.loglikelihoods(pairs)]
    assert found == pytest.approx(plain(build(kind, overrides), pairs), abs=1e-4)
    assert lm.facts["shared_prefixes"] in (False, "in part")


def test_frequencies_that_grow_with_the_longest_text_are_each_texts_own(pocket_dir):
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    overrides = {"rope_parameters": rope, "max_position_embeddings": 64}
    pairs = questions(lengths=(150, 60, 45, 2), begin=20)
    expected = [plain(build("llama", overrides), [pair])[0] for pair in pairs]
    lm = asked(build("llama", overrides), pocket_dir)
    assert [found.logprob for found in lm.loglikelihoods(pairs)] == pytest.approx(
        expected, abs=1e-4
    )
    prompts = [list(pair.context) for pair in pairs[::4]]
    alone = [
        asked(build("llama", overrides), pocket_dir).generate([prompt], Sampling(6))[0]
        for prompt in prompts
    ]
    assert lm.generate(prompts, Sampling(6)) == alone


def test_layers_of_several_head_sizes_generate(pocket_dir):
    lm = asked(build("gemma4_text", {"sliding_window": 24}), pocket_dir)
    prompts = [[5, 6, 7], list(range(1, 60))]
    alone = [lm.generate([prompt], Sampling(4))[0] for prompt in prompts]
    assert lm.generate(prompts, Sampling(4)) == alone


def test_what_lies_within_the_window_is_shared_still(pocket_dir):
    model = build("mistral", {"sliding_window": 48})
    lm, pairs = asked(model, pocket_dir), questions(lengths=(2, 3), begin=30)
    found = [likelihood.logprob for likelihood in lm.loglikelihoods(pairs)]
    assert found == pytest.approx(plain(model, pairs), abs=1e-4)
    assert "shared_prefixes" not in lm.facts


def test_a_window_that_no_configuration_tells_of_is_found_on_the_longest_row(
    pocket_dir, monkeypatch
):
    from qsweep.tasks import likelihood

    # As a model of unknown code would be: its window is in no attribute that is known.
    monkeypatch.setattr(likelihood, "full_attention_span", lambda model, body: UNLIMITED)
    model = build("mistral", {"sliding_window": 48})
    lm, pairs = asked(model, pocket_dir), questions(lengths=(1, 2, 150), begin=3)
    found = [likelihood.logprob for likelihood in lm.loglikelihoods(pairs)]
    assert found == pytest.approx(plain(model, pairs), abs=1e-4)
    assert lm.facts["shared_prefixes"] is False


def test_spans():
    assert full_attention_span(build("llama", {})) == UNLIMITED
    assert full_attention_span(build("mistral", {"sliding_window": 48})) == 48
    assert full_attention_span(build("phi3", ATTENTION["phi3"])) == 64
    assert full_attention_span(build("bloom", ATTENTION["bloom"])) == 0
    assert full_attention_span(build("lfm2", RECURRENT["lfm2"])) == 0
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    yarn["original_max_position_embeddings"] = 64
    assert full_attention_span(build("llama", {"rope_parameters": yarn})) == UNLIMITED
    assert is_recurrent(build("mamba", {"state_size": 8}))


@pytest.mark.parametrize("kind", list(RECURRENT))
def test_recurrent_models_generate_as_each_prompt_does_alone(kind, pocket_dir):
    model = build(kind, RECURRENT[kind])
    lm = asked(model, pocket_dir)
    rng = random.Random(2)
    prompts = [[rng.randrange(1, 4000) for _ in range(n)] for n in (3, 9, 9, 20)]
    for prompt, text in zip(prompts, lm.generate(prompts, Sampling(6)), strict=True):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            own = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=6,
                do_sample=False,
                eos_token_id=0,
                pad_token_id=0,
                use_cache=True,
            )
        assert text == lm.tokenizer.decode(own[0, len(prompt) :], skip_special_tokens=True)


def test_an_empty_continuation_is_refused(pocket_dir):
    lm = asked(build("llama", {}), pocket_dir)
    with pytest.raises(QsweepError, match="an empty continuation has no likelihood"):
        lm.loglikelihoods([Pair((1, 2), ())])
