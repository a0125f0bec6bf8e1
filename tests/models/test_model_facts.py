"""Facts from real checkpoints' headers, and one clear line for everything that is no model."""

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import save_file

from qsweep.base.errors import ConfigError
from qsweep.models.facts import (
    TensorHeader,
    _vocab_size,
    has_experts,
    read_facts,
    read_tensors,
    weight_files,
)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral", "gemma3_text", "gpt_neox"])
def test_agrees_with_the_loaded_model(tiny_model, architecture):
    from transformers import AutoModelForCausalLM

    path = tiny_model(architecture)
    model = AutoModelForCausalLM.from_pretrained(path)
    facts = read_facts(path, "mini")
    head = model.get_output_embeddings()
    linears = {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    assert facts.linears == linears
    assert facts.parameters == model.num_parameters()
    assert facts.vocab_size == model.config.vocab_size
    assert facts.max_length == model.config.max_position_embeddings
    assert facts.model_type == architecture


def test_of_several_vocabularies_the_texts_counts(tmp_path):
    def size(**shapes):
        tensors = {name: TensorHeader(shape, "F32", tmp_path) for name, shape in shapes.items()}
        return _vocab_size(tensors, {}, tmp_path)

    layer = "decoder.layers.0.feed_forward.output.weight"
    assert size(**{layer: (128, 256), "lm_head.weight": (4096, 128)}) == 4096
    assert size(**{layer: (128, 256), "decoder.word_embeddings.weight": (4096, 128)}) == 4096
    # RWKV's time mixing
    mixing = "rwkv.blocks.0.attention.output.weight"
    assert (
        _vocab_size(
            {mixing: TensorHeader((128, 128), "F32", tmp_path)}, {"vocab_size": 4096}, tmp_path
        )
        == 4096
    )
    voice, text = "talker.model.embed_tokens.weight", "thinker.model.embed_tokens.weight"
    assert size(**{voice: (512, 64), text: (4096, 128)}) == 4096


def test_conv1d_layers_are_given_as_out_by_in(tmp_path, pocket_dir):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=128, n_positions=32)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path)
    shutil.copy(pocket_dir / "tokenizer.json", tmp_path)
    facts = read_facts(tmp_path, "gpt2")
    assert facts.linears["transformer.h.0.attn.c_attn"] == (192, 64)
    assert facts.linears["transformer.h.1.mlp.c_proj"] == (64, 256)
    assert len(facts.linears) == 8
    assert facts.parameters == model.num_parameters()
    assert facts.max_length == 32


def test_sharded_checkpoint(tiny_model, pocket_dir, tmp_path):
    from transformers import AutoModelForCausalLM

    path = tiny_model("llama")
    AutoModelForCausalLM.from_pretrained(path).save_pretrained(tmp_path, max_shard_size="2MB")
    shutil.copy(pocket_dir / "tokenizer.json", tmp_path)
    assert len(weight_files(tmp_path)) > 2
    assert read_facts(tmp_path, "x").linears == read_facts(path, "x").linears
    weight_files(tmp_path)[1].unlink()
    with pytest.raises(ConfigError, match="missing, though model.safetensors.index.json names it"):
        read_facts(tmp_path, "x")


def test_tied_weights_count_once(tmp_path):
    write_model(tmp_path, {"tie_word_embeddings": True}, head=True)
    assert read_facts(tmp_path, "x").parameters == 100 * 8 + 8 * 8
    write_model(tmp_path, {"tie_word_embeddings": False}, head=True)
    assert read_facts(tmp_path, "x").parameters == 2 * 100 * 8 + 8 * 8


def test_nested_text_configuration(tmp_path):
    # As in Gemma 3's: the length may be left to the class's default.
    write_model(tmp_path, {"model_type": "gemma3", "text_config": {"sliding_window": 512}})
    assert read_facts(tmp_path, "x").max_length == 131072
    write_model(tmp_path, {"text_config": {"max_position_embeddings": 99}})
    assert read_facts(tmp_path, "x").max_length == 99


def test_vision_tower_and_router_are_no_linears(tmp_path):
    more = {
        "model.vision_tower.layers.0.mlp.fc1.weight": torch.zeros(8, 8),
        "model.layers.0.mlp.gate.weight": torch.zeros(4, 8),
        "multi_modal_projector.0.weight": torch.zeros(8, 8),
    }
    write_model(tmp_path, {"num_experts": 4}, more=more)
    assert list(read_facts(tmp_path, "x").linears) == ["model.layers.0.self_attn.q_proj"]
    assert has_experts({"num_experts": 4})
    assert not has_experts({"text_config": {"num_experts": 1}})


def test_no_weights_are_read(tiny_model):
    path = tiny_model("llama")
    read_facts(path, "x")
    started = time.perf_counter()
    read_facts(path, "x")
    assert time.perf_counter() - started < 0.1


def write_model(path, config, head=False, more=None):
    tensors = {
        "model.embed_tokens.weight": torch.zeros(100, 8),
        "model.layers.0.self_attn.q_proj.weight": torch.zeros(8, 8),
        **({"lm_head.weight": torch.zeros(100, 8)} if head else {}),
        **(more or {}),
    }
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    (path / "tokenizer.json").write_text("{}")


def refusal(path):
    with pytest.raises(ConfigError) as caught:
        read_facts(path, "x")
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_no_directory(tmp_path):
    assert "no such directory" in refusal(tmp_path / "nowhere")


def test_no_config(tmp_path):
    assert "no config.json" in refusal(tmp_path)


def test_broken_config(tmp_path):
    write_model(tmp_path, {})
    (tmp_path / "config.json").write_text("{")
    assert "cannot be read as JSON" in refusal(tmp_path)


def test_no_tokenizer(tmp_path):
    write_model(tmp_path, {})
    (tmp_path / "tokenizer.json").unlink()
    assert "no tokenizer" in refusal(tmp_path)


def test_only_pickled_weights(tmp_path):
    write_model(tmp_path, {})
    (tmp_path / "model.safetensors").unlink()
    assert "no *.safetensors file" in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert "pickled weights (pytorch_model.bin)" in refusal(tmp_path)


def test_only_a_gguf_file(tmp_path):
    write_model(tmp_path, {})
    (tmp_path / "model.safetensors").rename(tmp_path / "m.gguf")
    assert "only m.gguf" in refusal(tmp_path)


def test_already_quantized(tmp_path):
    write_model(tmp_path, {"quantization_config": {"quant_method": "gptq"}})
    assert "already quantized (gptq)" in refusal(tmp_path)


def test_truncated_weights(tmp_path):
    write_model(tmp_path, {})
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for cut in (4, 30, len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert "not a whole safetensors file" in refusal(tmp_path)


def test_no_language_model(tmp_path):
    write_model(tmp_path, {})
    save_file({"conv.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    assert "no causal language model" in refusal(tmp_path)


def test_tensor_bits(tmp_path):
    save_file(
        {"a": torch.zeros(3, 5, dtype=torch.bfloat16), "b": torch.zeros(4, dtype=torch.int32)},
        tmp_path / "model.safetensors",
    )
    tensors = read_tensors(tmp_path)
    assert (tensors["a"].bits, tensors["b"].bits) == (240, 128)
