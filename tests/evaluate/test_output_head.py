"""Hidden states to logits on miniatures of architectures that do something around their head."""

import pytest
import torch

from qsweep.evaluate.head import (
    CannotSplit,
    KeptLogits,
    OutputHead,
    load_output_head,
    logits_agree,
    possible_bodies,
    run_body,
    split_model,
)

SMALL = {
    "vocab_size": 640,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
# What each does that a bare matrix product would miss.
ARCHITECTURES = {
    "llama": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
    "mistral": {},
    "gemma2": {"head_dim": 16, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 7.0, "embedding_multiplier": 3.0},
    "minicpm3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 16,
    },
    "gpt_neox": {},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128},
    "phi": {},  # its head has a bias
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 32, "do_layer_norm_before": True},
    "gptj": {"n_embd": 64, "n_head": 4, "n_layer": 2, "rotary_dim": 8},
}


def make(architecture, dtype=torch.float32):
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.for_model(architecture, **(SMALL | ARCHITECTURES[architecture]))
    except ValueError:
        pytest.skip(f"this transformers does not know {architecture}")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
            elif "bias" not in str(parameter):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def ids():
    torch.manual_seed(1)
    return torch.randint(640, (1, 24))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_body_and_head_give_the_models_own_logits(architecture, ids):
    model = make(architecture)
    own = model(input_ids=ids).logits[0]
    found = split_model(model, ids)
    assert found is not None, "the split was not found"
    body, head = found
    hidden = run_body(model, body, ids)[0]
    assert hidden.shape[0] == 24
    torch.testing.assert_close(head.logits(hidden), own, rtol=1e-5, atol=1e-5)
    # part by part, at bounds that no tile would choose
    parts = [head.logits(hidden, a, b) for a, b in ((0, 1), (1, 333), (333, 640))]
    torch.testing.assert_close(torch.cat(parts, 1), own, rtol=1e-5, atol=1e-5)
    assert head.vocab == 640 and head.sliceable
    # the model itself is as it was
    torch.testing.assert_close(model(input_ids=ids).logits[0], own, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ["gemma2", "cohere", "granite", "minicpm3"])
@torch.inference_mode()
def test_the_bare_matrix_product_would_be_wrong_for_these(architecture, ids):
    # or else the tests above prove nothing about what stands around the head
    model = make(architecture)
    hidden = run_body(model, "model", ids)[0]
    bare = hidden @ model.get_output_embeddings().weight.T
    assert not logits_agree(bare, model(input_ids=ids).logits[0], torch.float32)


@torch.inference_mode()
def test_a_soft_cap_caps(ids):
    model = make("gemma2")
    _, head = split_model(model, ids)
    hidden = run_body(model, "model", ids)[0]
    capped = head.logits(hidden)
    assert capped.abs().max() <= 3
    raw = hidden @ model.lm_head.weight.T
    torch.testing.assert_close(capped, 3 * torch.tanh(raw / 3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_a_head_is_loaded_without_its_body(architecture, ids, tmp_path):
    model = make(architecture, torch.bfloat16)
    model.save_pretrained(tmp_path)
    body, _ = split_model(model, ids)
    head = load_output_head(tmp_path, body, torch.bfloat16, "cpu")
    hidden = run_body(model, body, ids)[0]
    own = model(input_ids=ids).logits[0]
    torch.testing.assert_close(head.logits(hidden), own.float(), rtol=0, atol=0)
    assert not list(head._shell.get_submodule(body).parameters())


@torch.inference_mode()
def test_wider_states_are_computed_in_their_own_dtype(ids):
    model = make("llama", torch.bfloat16)
    _, head = split_model(model, ids)
    hidden = run_body(model, "model", ids)[0]
    expected = hidden.float() @ model.lm_head.weight.float().T
    torch.testing.assert_close(head.logits(hidden.float()), expected)
    assert head.logits(hidden).dtype == torch.float32


@torch.inference_mode()
def test_a_model_whose_logits_are_more_than_head_of_body_is_not_split(ids):
    from transformers import LlamaForCausalLM

    class Crooked(LlamaForCausalLM):
        """Adds to its logits what depends on the tokens themselves."""

        def forward(self, input_ids=None, **more):
            out = super().forward(input_ids=input_ids, **more)
            out.logits = out.logits + input_ids[..., None]
            return out

    plain = make("llama")
    model = Crooked(plain.config).eval()
    model.load_state_dict(plain.state_dict())
    assert split_model(model, ids) is None


def test_a_model_without_a_head_of_its_own_is_refused():
    model = make("llama")
    model.lm_head = None
    with pytest.raises(CannotSplit):
        OutputHead(model, "model")


def test_opts_body_is_the_decoder_inside():
    assert possible_bodies(make("opt")) == ["model", "model.decoder"]


def test_agreement_is_up_to_rounding_of_the_largest_logit():
    own = torch.randn(5, 9) * 10
    scale = float(own.abs().max())
    eps = torch.finfo(torch.bfloat16).eps
    assert logits_agree(own + 7 * eps * scale, own, torch.bfloat16)
    assert not logits_agree(own + 9 * eps * scale, own, torch.bfloat16)
    assert not logits_agree(own + 7 * eps * scale, own, torch.float32)
    assert not logits_agree(own[:, :8], own, torch.float32)
    broken = own.clone()
    broken[0, 0] = float("nan")
    assert not logits_agree(broken, broken, torch.float32)


def test_kept_logits_are_copied_so_that_they_can_be_worked_on():
    kept = KeptLogits(6, torch.device("cpu"))
    features = torch.randn(3, 6)
    part = kept.logits(features, 2, 5)
    part.zero_()
    assert features[:, 2:5].ne(0).all()
    assert kept.logits(features.bfloat16()).dtype == torch.float32
