"""Whether an artifact is one of a model: each difference is a line, the first things first."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.artifacts import copied, edited, rounded
from qsweep.formats.belonging.configs import compare_configs
from qsweep.formats.belonging.difference import notes, refusal
from qsweep.formats.belonging.tokenizers import compare_tokenizers
from qsweep.formats.container import container
from qsweep.formats.recognize import recognize


@pytest.fixture(scope="module")
def base(tiny_model):
    return tiny_model("llama")


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    return rounded(base, tmp_path_factory.mktemp("made") / "m")


def differences(path, base):
    return recognize(path).differences(path, base)


def test_an_artifact_of_the_model_has_no_difference(made, base):
    assert differences(made, base) == []
    found = recognize(made).adopt(made, base, made).details["belonging"]
    # Two norms in each of two layers, the last norm, embedding and head.
    assert (found["compared"], found["equal"], found["notes"]) == (7, 7, [])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model_type": "qwen3"}, "architecture qwen3 instead of llama"),
        ({"num_hidden_layers": 3}, "layers 3 instead of 2"),
        ({"num_key_value_heads": 4}, "key-value heads 4 instead of 2"),
        ({"rms_norm_eps": 1e-5}, "norm epsilon 1e-05 instead of 1e-06"),
        ({"hidden_act": "gelu"}, "activation gelu instead of silu"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
         "rope base 500000 instead of 10000"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
         "rope scaling linear instead of default; rope factor 4 instead of none"),
    ],
)  # fmt: skip
def test_another_function_is_refused(made, base, tmp_path, change, line):
    other = copied(made, tmp_path / "other", **change)
    assert refusal(differences(other, base)) == line


def test_spellings_of_other_versions_are_no_differences(base):
    config = json.loads((base / "config.json").read_text())
    old = {k: v for k, v in config.items() if k not in ("rope_parameters", "head_dim", "dtype")}
    assert compare_configs({**old, "torch_dtype": "float16", "rope_theta": 10000.0}, config) == []
    assert compare_configs(old, config) == []
    found = compare_configs({**old, "rope_theta": 500000.0}, config)
    assert refusal(found) == "rope base 500000 instead of 10000"


PHI = {
    "model_type": "phi", "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2,
    "intermediate_size": 128, "vocab_size": 64, "partial_rotary_factor": 0.5, "rope_theta": 1e4,
}  # fmt: skip


def without(config, *names):
    return {name: value for name, value in config.items() if name not in names}


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (PHI, {"partial_rotary_factor": 0.4}),
        (PHI, {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.4}}),
        # As written alone, where transformers knows no such type.
        ({**PHI, "model_type": "nonesuch"}, {"partial_rotary_factor": 0.4}),
        # phi's default is not named in the other.
        (without(PHI, "partial_rotary_factor"), {"partial_rotary_factor": 0.4}),
        ({**without(PHI, "partial_rotary_factor"), "model_type": "gpt_neox", "rotary_pct": 0.5},
         {"rotary_pct": 0.4}),
    ],
)  # fmt: skip
def test_the_part_that_is_rotated_is_compared_whatever_the_scaling(config, change):
    found = compare_configs({**config, **change}, config)
    assert refusal(found) == "rope partial_rotary_factor 0.4 instead of 0.5"


def test_a_part_that_is_rotated_by_default_is_no_difference():
    assert compare_configs(PHI, without(PHI, "partial_rotary_factor")) == []
    new = without(PHI, "partial_rotary_factor", "rope_theta")
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    assert compare_configs({**new, "rope_parameters": rope}, PHI) == []
    llama = without({**PHI, "model_type": "llama"}, "partial_rotary_factor")
    assert compare_configs({**llama, "partial_rotary_factor": 1.0}, llama) == []


def test_a_bias_of_attention_is_compared():
    llama = without({**PHI, "model_type": "llama"}, "partial_rotary_factor")
    assert compare_configs({**llama, "attention_bias": False}, llama) == []
    found = compare_configs({**llama, "attention_bias": True}, llama)
    assert refusal(found) == "attention bias True instead of False"


def test_of_experts_the_counts_are_told(tiny_model):
    config = json.loads((tiny_model("deepseek_v2") / "config.json").read_text())
    found = compare_configs({**config, "n_routed_experts": 8, "num_experts_per_tok": 4}, config)
    assert refusal(found) == "experts 8 instead of 4; experts per token 4 instead of 2"


def _rename(content):
    vocabulary = content["model"]["vocab"]
    piece = next(piece for piece, number in vocabulary.items() if number == 1000)
    vocabulary["zzz"] = vocabulary.pop(piece)
    return content


def _extend(content):
    content["added_tokens"].append({**content["added_tokens"][0], "id": 4096, "content": "<pad>"})
    return content


def _swap(content):
    merges = content["model"]["merges"]
    merges[5], merges[6] = merges[6], merges[5]
    return content


@pytest.mark.parametrize(
    ("file", "change", "line"),
    [
        ("tokenizer.json", _rename, "tokenizer: id 1000 is 'zzz' instead of "),
        ("tokenizer.json", _extend, "4096 is '<pad>' instead of nothing"),
        ("tokenizer.json", _swap, "tokenizer: the same pieces, but merge 5 is "),
        ("config.json", lambda c: c | {"bos_token_id": 7}, "BOS 7 instead of 0"),
        ("config.json", lambda c: c | {"eos_token_id": [7, 8]}, "EOS 7, 8 instead of 0"),
    ],
)
def test_a_tokenizer_that_differs_by_one_thing_is_refused(made, base, tmp_path, file, change, line):
    other = tmp_path / "other"
    shutil.copytree(made, other)
    edited(other, file, change)
    assert line in (refusal(differences(other, base)) or "")
    # Whoever trains a model further may well give it tokens of its own.
    plain = tmp_path / "plain"
    shutil.copytree(base, plain)
    edited(plain, file, change)
    found = differences(plain, base)
    assert refusal(found) is None and any(line in one for one in notes(found))


def test_what_is_only_noted(made, base, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(made, other)
    edited(other, "config.json", lambda c: c | {"eos_token_id": [0, 8]})
    edited(other, "tokenizer_config.json", lambda c: c | {"chat_template": "{{ 1 }}"})
    template = tmp_path / "base"
    shutil.copytree(base, template)
    edited(template, "tokenizer_config.json", lambda c: c | {"chat_template": "{{ 2 }}"})
    found = differences(other, template)
    assert refusal(found) is None
    assert [line.partition(" (")[0] for line in notes(found)] == [
        "EOS 0, 8 instead of 0",
        "another chat template",
    ]
    edited(
        other, "tokenizer_config.json", lambda c: {k: v for k, v in c.items() if k[:4] != "chat"}
    )
    assert "no chat template, and the model has one" in notes(differences(other, template))
    for file in other.glob("tokenizer*"):
        file.unlink()
    assert compare_tokenizers(other, template) == []


def test_merges_as_texts_and_as_pairs_are_the_same(made, base, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(made, other)

    def as_texts(content):
        content["model"]["merges"] = [" ".join(m) for m in content["model"]["merges"]]
        return content

    edited(other, "tokenizer.json", as_texts)
    assert differences(other, base) == []


def _stored(path, change):
    file = path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return path


@pytest.fixture
def changed(made, tmp_path):
    shutil.copytree(made, tmp_path / "changed")
    return lambda change: _stored(tmp_path / "changed", change)


def test_a_norm_and_an_embedding_that_differ_are_noted(changed, base):
    def change(tensors):
        tensors["model.norm.weight"][3] += 0.5
        tensors["model.embed_tokens.weight"][0, 0] += 0.5

    other = changed(change)
    assert differences(other, base) == []
    found = container("gptq").adopt(other, base, other).details["belonging"]
    assert (found["compared"], found["equal"]) == (7, 5)
    assert found["notes"] == [
        "2 of 7 tensors that are not quantized differ from the model's: "
        "model.embed_tokens.weight, model.norm.weight"
    ]


def test_another_dtype_is_the_same_tensor(changed, base):
    def cast(tensors):
        for name in [n for n in tensors if tensors[n].dtype == torch.bfloat16]:
            tensors[name] = tensors[name].to(torch.float16)

    other = changed(cast)
    assert container("gptq").adopt(other, base, other).details["belonging"]["equal"] == 7


def test_sizes_and_heads_that_differ_are_refused(changed, made, base, tmp_path):
    other = changed(lambda t: t.update({"model.embed_tokens.weight": torch.zeros(4160, 256)}))
    line = "model.embed_tokens.weight is [4160, 256] instead of [4096, 256]"
    assert refusal(differences(other, base)) == line
    shutil.rmtree(other)
    shutil.copytree(made, other)
    changed(lambda t: t.pop("lm_head.weight"))
    assert refusal(differences(other, base)) == "no output head of its own, and the model has one"


def test_awq_folds_scales_into_norms_by_right():
    from qsweep.formats.belonging.tensors import content_notes

    norm, last = "model.layers.0.input_layernorm.weight", "model.embed_tokens.weight"
    compared = {"compared": 9, "equal": 7, "differing": [norm, last]}
    assert content_notes(compared, "awq", "awq") == [
        f"1 of 9 tensors that are not quantized differ from the model's: {last}",
        "scales are folded into 1 norms",
    ]
    assert norm in content_notes(compared, "gptq", "gptq")[0]
    assert content_notes(compared, "hf", None) == ["2 of 9 tensors differ from the model's"]
