"""Whether configuration, weights and tokenizer belong together, on real miniatures."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from qsweep.base.errors import ArtifactCorrupt, ConfigError, QsweepError
from qsweep.formats.dense import load_dense
from qsweep.formats.hf import reference_artifact
from qsweep.models.check import check_tokenizer, fit_problem
from qsweep.models.facts import (
    corrected_config,
    distinct_weights,
    read_config,
    read_facts,
    read_tensors,
    readable_directory,
)
from qsweep.models.source import SourceModel
from qsweep.quantizers.rtn import RTN
from qsweep.text.vocabulary import require_embeddings

FLOAT = {"dtype": torch.float32, "device": "cpu"}
SMALL = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}


@pytest.fixture(scope="module")
def made(tmp_path_factory, pocket_dir):
    """``made("llama", **config)`` gives the directory of a miniature with random weights."""
    kept = {}

    def make(architecture, **config):
        key = (architecture, json.dumps(config, sort_keys=True))
        if key not in kept:
            from transformers import AutoConfig, AutoModelForCausalLM

            torch.manual_seed(0)
            path = kept[key] = tmp_path_factory.mktemp(architecture)
            whole = AutoConfig.for_model(architecture, **{**SMALL, **config})
            AutoModelForCausalLM.from_config(whole).save_pretrained(path)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(pocket_dir / name, path)
        return kept[key]

    return make


@pytest.fixture
def changed(tmp_path):
    """A copy of a model with other settings and other tensors."""

    def change(source, config=None, tensors=None):
        path = tmp_path / "changed"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(source, path)
        content = json.loads((path / "config.json").read_text()) | (config or {})
        (path / "config.json").write_text(json.dumps(content))
        if tensors is not None:
            found = load_file(path / "model.safetensors")
            tensors(found)
            save_file(found, path / "model.safetensors", metadata={"format": "pt"})
        return path

    return change


ARCHITECTURES = {
    "llama": {},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "gemma3_text": {"head_dim": 16, "sliding_window": 32},
    "gpt_neox": {},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "phi3": {},
    "falcon": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": EXPERTS,
    "mamba": {"state_size": 8},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_as_it_was_saved_fits(made, architecture):
    path = made(architecture, **ARCHITECTURES[architecture])
    assert fit_problem(path) is None
    facts = read_facts(path, "x")
    assert load_dense(reference_artifact(facts), path, **FLOAT).left_out == {}


@pytest.mark.parametrize(
    ("architecture", "config", "message"),
    [
        ("llama", {"num_hidden_layers": 1}, "left out, since the architecture has no place for it: "
         "model.layers.1.input_layernorm.weight"),
        ("llama", {"num_hidden_layers": 1}, "where config.json says num_hidden_layers is 1"),
        ("llama", {"num_hidden_layers": 3}, "missing: model.layers.2.input_layernorm.weight"),
        ("llama", {"intermediate_size": 96}, "model.layers.0.mlp.down_proj.weight ([64, 128], "
         "configured [64, 96])"),
        ("llama", {"vocab_size": 5000}, "lm_head.weight ([4096, 64], configured [5000, 64])"),
        ("llama", {"num_attention_heads": 8, "head_dim": 16}, "self_attn.o_proj.weight"),
        ("llama", {"num_attention_heads": 3, "num_key_value_heads": 3}, "config.json: transformers "
         "cannot build this model (Class validation error for validator 'validate_architecture': "
         "ValueError: The hidden size (64) is not a multiple of the number of attention heads (3)"),
        ("llama", {"attention_bias": True}, "missing: model.layers.0.self_attn.k_proj.bias"),
        ("llama", {"model_type": "lama"}, "knows no model_type 'lama'; did you mean 'llama'?"),
        ("llama", {"hidden_act": "nope"}, "hidden_act says 'nope', which transformers"),
        ("llama", {"rope_parameters": {"rope_type": "nope"}}, "rope_parameters.rope_type says"),
        ("llama", {"torch_dtype": "float99", "dtype": "float99"}, "float99"),
        ("llama", {"text_config": {"num_hidden_layers": 2}}, "config.json: a model of the type "
         "'llama' has no text_config; take it out"),
        ("llama", {"text_config": {}}, "has no text_config"),
        ("llama", {"pad_token_id": 5000}, "look at pad_token_id, which is 5000"),
        ("llama", {"rope_parameters": {"rope_type": [1], "rope_theta": 1e4}},
         "(unhashable type: 'list'); look at rope_parameters.rope_type, which is [1]"),
        ("llama", {"rope_parameters": {"rope_type": 0}}, "rope_parameters.rope_type, which is 0"),
        ("qwen3", {"model_type": "llama"}, "left out, since the architecture has no place for it: "
         "model.layers.0.self_attn.k_norm.weight"),
        ("gpt_neox", {"num_hidden_layers": 1}, "left out"),
        ("gpt2", {"n_layer": 1}, "left out"),
        ("phi3", {"num_hidden_layers": 1}, "num_hidden_layers is 1"),
        ("mixtral", {"num_local_experts": 2}, "mlp.experts.down_proj ([4, 64, 128], configured [2"),
        ("mixtral", {"num_local_experts": 8}, "mlp.experts.down_proj ([4, 64, 128], configured [8"),
        ("qwen3_moe", {"num_local_experts": 3}, "configured [3"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "left out"),
    ],
)  # fmt: skip
def test_a_configuration_of_another_model(made, changed, architecture, config, message):
    path = changed(made(architecture, **ARCHITECTURES[architecture]), config)
    problem = fit_problem(path)
    assert problem.startswith(str(path)) and message in problem
    assert len(problem.splitlines()) == 1 and len(problem) < 700
    # and the loading refuses what the check refuses
    with pytest.raises(QsweepError) as caught:
        load_dense(reference_artifact(read_facts(path, "x")), path, **FLOAT)
    assert not isinstance(caught.value, ArtifactCorrupt)
    assert len(str(caught.value).splitlines()) == 1


def prefixed(tensors):
    for name in list(tensors):
        tensors[f"wrapped.{name}"] = tensors.pop(name)


def zeros(*names):
    def add(tensors):
        tensors |= {name: torch.zeros(4, 4) for name in names}

    return add


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            zeros("score.weight"),
            "left out, since the architecture has no place for it: score.weight",
        ),
        (zeros("model.layers.0.mlp.extra.weight"), "model.layers.0.mlp.extra.weight"),
        # what is a tower beside the decoder is none within one of its layers
        (zeros("model.layers.0.mlp.projector.weight"), "model.layers.0.mlp.projector.weight"),
        (zeros("model.layers.1.image_gate.weight"), "model.layers.1.image_gate.weight"),
        (zeros("model.layers.2.self_attn.q_proj.weight"), "num_hidden_layers is 2"),
        (prefixed, "missing: "),
        (lambda t: t.pop("model.norm.weight"), "missing: model.norm.weight"),
    ],
)
def test_weights_of_another_model(made, changed, tensors, message):
    path = changed(made("llama"), tensors=tensors)
    if tensors is prefixed:  # has no embedding either
        assert message in fit_problem(path)
        return
    assert message in fit_problem(path)
    artifact = reference_artifact(read_facts(path, "x"))
    with pytest.raises(QsweepError) as caught:
        load_dense(artifact, path, **FLOAT)
    assert message in str(caught.value)


@pytest.mark.parametrize("dtype", ["float99", 3, [1, 2], {"a": 1}])
def test_a_dtype_that_does_not_exist(made, changed, dtype):
    problem = fit_problem(changed(made("llama"), {"dtype": dtype}))
    assert f"look at dtype, which is {json.dumps(dtype)}" in problem or "float99" in problem


EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: None, None),
        (lambda t: t.update({EXPERT: t[EXPERT][:-1].clone()}),
         f"of another shape: {EXPERT} ([31, 64], others [32, 64])"),
        (lambda t: t.pop(EXPERT), f"missing: {EXPERT}"),
    ],
)  # fmt: skip
def test_experts_that_cannot_be_stacked_are_named(made, changed, change, message):
    path = changed(made("qwen3_moe", **EXPERTS), tensors=change)
    problem = fit_problem(path)
    artifact = reference_artifact(read_facts(path, "x"))
    if message is None:
        assert problem is None
        assert load_dense(artifact, path, **FLOAT).left_out == {}
        return
    assert message in problem and problem.startswith(str(path))
    with pytest.raises(QsweepError) as caught:
        load_dense(artifact, path, **FLOAT)
    assert message in str(caught.value)


HARMLESS = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": 1,
    "vision_tower.encoder.layers.0.fc1.weight": 1,
    "model.visual.blocks.3.attn.qkv.weight": 1,
    "multi_modal_projector.linear.weight": 1,
    "model.layers.1.mlp.vision_moe.weight": 1,
    "mtp.layers.0.mlp.up_proj.weight": 1,
    # DeepSeek's and GLM's layer for the token after the next one
    "model.layers.2.eh_proj.weight": 1,
    "model.layers.2.self_attn.q_proj.weight": 1,
}


def test_what_an_architecture_rightly_leaves_out_is_recorded(made, changed, tmp_path):
    plain = made("llama")
    path = changed(plain, tensors=zeros(*HARMLESS))
    assert fit_problem(path) is None
    facts = read_facts(path, "x")
    model = load_dense(reference_artifact(facts), path, **FLOAT)
    assert model.left_out == {
        "model.layers.*.eh_proj.weight": 1,
        "model.layers.*.mlp.vision_moe.weight": 1,
        "model.layers.*.self_attn.q_proj.weight": 1,
        "model.layers.*.self_attn.rotary_emb.inv_freq": 1,
        "model.visual.blocks.*.attn.qkv.weight": 1,
        "mtp.layers.*.mlp.up_proj.weight": 1,
        "multi_modal_projector.linear.weight": 1,
        "vision_tower.encoder.layers.*.fc1.weight": 1,
    }
    ids = torch.arange(32)[None]
    same = load_dense(reference_artifact(read_facts(plain, "x")), plain, **FLOAT)
    assert torch.equal(model(ids).logits, same(ids).logits)


def test_what_transformers_itself_ignores_is_recorded(made, changed):
    path = changed(made("gpt_neox"), tensors=zeros("gpt_neox.layers.0.attention.masked_bias"))
    assert fit_problem(path) is None
    model = load_dense(reference_artifact(read_facts(path, "x")), path, **FLOAT)
    assert model.left_out == {"gpt_neox.layers.*.attention.masked_bias": 1}


def test_a_quantized_artifact_with_what_no_model_has_is_corrupt(made, tmp_path):
    facts = read_facts(made("llama"), "x")
    artifact = RTN(bits=8, group_size=64).quantize(SourceModel(facts, "cpu"), None, tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), "model.layers.7.mlp.up_proj.bias": torch.zeros(4)}, file)
    with pytest.raises(ArtifactCorrupt, match="model.layers.7.mlp.up_proj.bias"):
        load_dense(artifact, facts.path, **FLOAT)


# heads that are said to be tied


def other_head(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()


def same_head(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def test_a_head_that_is_only_said_to_be_tied_counts(made, changed, tmp_path):
    source = made("qwen3", **ARCHITECTURES["qwen3"])
    before = reference_artifact(read_facts(source, "x")).size
    path = changed(source, tensors=other_head)
    model = load_dense(reference_artifact(read_facts(path, "x")), path, **FLOAT)
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    size = reference_artifact(read_facts(path, "x")).size
    assert (
        size.parameters
        == before.parameters + 4096 * 64
        == sum(p.numel() for p in model.parameters())
    )
    assert size.total_bits == before.total_bits + 32 * 4096 * 64
    # who believes the configuration is told the truth
    folder = readable_directory(path, tmp_path / "folder")
    assert read_config(folder)["tie_word_embeddings"] is False
    out = tmp_path / "rounded"
    out.mkdir()
    rounded = RTN(bits=8, group_size=64).quantize(
        SourceModel(read_facts(path, "x"), "cpu"), None, out
    )
    assert read_config(out)["tie_word_embeddings"] is False
    assert rounded.size.parameters == size.parameters


def test_a_tied_head_that_is_stored_all_the_same_counts_once(made, changed, tmp_path):
    source = made("qwen3", **ARCHITECTURES["qwen3"])
    path = changed(source, tensors=same_head)
    assert corrected_config(path) == read_config(path)
    assert readable_directory(path, tmp_path / "folder") == path
    counted = distinct_weights(read_tensors(path), read_config(path))
    assert counted.keys() == read_tensors(source).keys()
    untied = {**read_config(path), "tie_word_embeddings": False}
    assert "lm_head.weight" in distinct_weights(read_tensors(path), untied)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.int32, torch.uint8])
@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
def test_codes_are_no_weights(made, changed, name, dtype):
    path = changed(made("llama"))
    tensors = load_file(path / "model.safetensors")
    tensors[name] = (tensors[name] * 100).to(dtype)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"model.safetensors: {name} holds .* are codes"):
        read_facts(path, "x")


def test_a_mask_that_is_called_a_bias_is_no_weight(made, changed):
    path = changed(made("gpt2", n_positions=128))
    tensors = load_file(path / "model.safetensors")
    mask = torch.ones(1, 1, 128, 128, dtype=torch.uint8).tril()
    tensors["transformer.h.0.attn.bias"] = mask
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    read_facts(path, "x")


@pytest.mark.parametrize("rows", [4000, 4100])
def test_a_tied_head_of_another_size_is_named(made, changed, rows):
    path = changed(made("llama", tie_word_embeddings=True))
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"] = torch.zeros(rows, 64)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=rf"lm_head.weight has the shape \[{rows}, 64\], .*4096"):
        read_facts(path, "x")


def test_an_empty_quantization_config_is_told_while_planning(made, changed):
    path = changed(made("llama"))
    config = read_config(path) | {"quantization_config": {}}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="config.json: an empty quantization_config"):
        read_facts(path, "x")
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": None}))
    read_facts(path, "x")
    load_dense(reference_artifact(read_facts(path, "x")), path, **FLOAT)


# tokenizers


def tokenizer(path, change):
    file = path / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_vocabulary_larger_than_the_models(pocket_dir, changed):
    path = changed(pocket_dir)
    require_embeddings(path, 4096, [])
    # an added token is nothing that a text must have
    tokenizer(path, lambda t: t["added_tokens"].append({"id": 4096, "content": "<image>"}))
    require_embeddings(path, 4096, [])
    tokenizer(path, lambda t: t["model"]["vocab"].update({"beyond": 4096}))
    with pytest.raises(ConfigError) as caught:
        require_embeddings(path, 4096, [])
    assert str(caught.value) == (
        f"{path}/tokenizer.json: its token 4096 ('beyond') lies beyond the embedding's 4096 rows: "
        "resize the embedding to the tokenizer, or take the tokenizer that the model had"
    )


@pytest.mark.parametrize(
    ("name", "content", "added"),
    [
        ("added_tokens.json", {"<new>": 4100}, True),
        ("tokenizer_config.json", {"added_tokens_decoder": {"4100": {"content": "<new>"}}}, True),
        ("vocab.json", {"<new>": 4100}, False),
        ("tokenizer.json", {"model": {"vocab": [["a", 0.0]] * 4100 + [["<new>", -1.0]]}}, False),
        ("tokenizer.json", {"model": {"vocab": {"<new>": 4100}}, "added_tokens": "?"}, False),
    ],
)
def test_whichever_file_lists_a_token_it_is_named(tmp_path, name, content, added):
    class Words:
        def documents(self):
            return ["old words", "a <new> one"]

    (tmp_path / name).write_text(json.dumps(content))
    if added:
        require_embeddings(tmp_path, 4096, [])
    with pytest.raises(ConfigError, match=rf"/{name}.*lies beyond the embedding's 4096 rows"):
        require_embeddings(tmp_path, 4096, [("mine", Words())])
    require_embeddings(tmp_path, 4200, [("mine", Words())])


def test_vocab_json_beside_a_whole_tokenizer_counts_for_nothing(pocket_dir, changed):
    path = changed(pocket_dir)
    (path / "vocab.json").write_text('{"<new>": 4100}')
    require_embeddings(path, 4096, [])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"model": 3}'),
        ("tokenizer_config.json", "{"),
        ("special_tokens_map.json", "[3]"),
        ("generation_config.json", "not JSON"),
    ],
)
def test_a_damaged_tokenizer_is_named(pocket_dir, changed, name, text):
    path = changed(pocket_dir)
    (path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        check_tokenizer(read_facts(path, "x"))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path / name}: ")
