"""Configurations that no model can have: one line with the field, before anything is imported."""

import json
import shutil
import subprocess
import sys

import pytest

from qsweep.base.errors import ConfigError
from qsweep.models.config import check_config, read_config
from qsweep.models.facts import read_facts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, which must be at least 1"),
        ({"num_hidden_layers": -2}, "num_hidden_layers is -2"),
        ({"num_hidden_layers": "two"}, 'num_hidden_layers is "two", where a whole number belongs'),
        ({"num_hidden_layers": True}, "num_hidden_layers is true, where a whole number"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers is 1.5, where a whole number"),
        ({"num_hidden_layers": {"a": 1}}, "num_hidden_layers is {"),
        ({"hidden_size": -128}, "hidden_size is -128"),
        ({"hidden_size": float("inf")}, "hidden_size is Infinity"),
        ({"hidden_size": float("nan")}, "hidden_size is NaN"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "6, no multiple of num_key_value"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({"head_dim": -1}, "head_dim is -1"),
        ({"vocab_size": "4096"}, 'vocab_size is "4096", where a whole number belongs'),
        ({"intermediate_size": -1}, "intermediate_size is -1"),
        ({"intermediate_size": [512, -512]}, "intermediate_size is -512"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0, which must be at least 2"),
        ({"max_position_embeddings": 1}, "max_position_embeddings is 1"),
        ({"max_position_embeddings": "many"}, "max_position_embeddings is"),
        ({"num_local_experts": -8}, "num_local_experts is -8"),
        ({"num_local_experts": 4, "num_experts_per_tok": 8}, "num_experts_per_tok is 8, of 4"),
        ({"sliding_window": -1}, "sliding_window is -1"),
        ({"rms_norm_eps": "small"}, 'rms_norm_eps is "small", where a number belongs'),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05, which must be at least 0"),
        ({"rope_theta": 0}, "rope_theta is 0, which must be above 0"),
        ({"rope_theta": float("inf")}, "rope_theta is Infinity"),
        ({"tie_word_embeddings": "no"}, 'tie_word_embeddings is "no", where true or false belongs'),
        ({"rope_parameters": {"factor": [1.0, float("nan")]}}, "rope_parameters.factor[1] is NaN"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_parameters.rope_theta is 0, which must be"),
        (
            {"rope_parameters": {"full": {"rope_theta": -1}}},
            "rope_parameters.full.rope_theta is -1",
        ),
        ({"rope_scaling": {"rope_theta": "big"}}, 'rope_scaling.rope_theta is "big", where a num'),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, but there are 38 tensors"),
        ({"text_config": {"head_dim": 10**9}}, "text_config.head_dim is 1000000000, but there are"),
        ({"vision_config": {"num_hidden_layers": 10**9}}, "vision_config.num_hidden_layers is 100"),
        ({"vision_config": {"image_size": [10**9, 2]}}, "vision_config.image_size is 1000000000"),
        ({"audio_config": {"model_type": ["x"]}}, 'audio_config.model_type is ["x"], where a name'),
        ({"n_layers": 9999}, "n_layers is 9999, but there are 38 tensors in all"),
        ({"head_dim": 10**9}, "head_dim is 1000000000, but there are "),
        ({"intermediate_size": [512, 1e300]}, "intermediate_size is 1e+300, but there are "),
        ({"num_local_experts": 10**9}, "num_local_experts is 1000000000, but there are "),
        ({"model_type": None}, "has no model_type"),
        ({"model_type": 3}, "model_type is 3"),
        ({"text_config": "gemma"}, 'text_config is "gemma", where an object belongs'),
        ({"text_config": {"num_hidden_layers": -1}}, "num_hidden_layers is -1"),
        ({"dtype": "float99"}, 'dtype is "float99", where one of float32, bfloat16'),
        ({"torch_dtype": 16}, "torch_dtype is 16, where one of"),
        ({"text_config": {"dtype": ["float16"]}}, 'dtype is ["float16"], where one of'),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_parameters.rope_theta is 0, which must be"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": "1e6"}}},
            'rope_parameters.full_attention.rope_theta is "1e6", where a number belongs',
        ),
        ({"transformers_weights": "x.safetensors"}, "transformers_weights names another file"),
    ],
)
def test_contradictions_are_named(pocket_dir, tmp_path, change, message):
    path = tmp_path / "model"
    shutil.copytree(pocket_dir, path)
    config = json.loads((path / "config.json").read_text()) | change
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError) as caught:
        read_facts(path, "x")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path / 'config.json'}: ") and message in line


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": None},
        {"architectures": 3},
        {"architectures": "LlamaForCausalLM"},
        {"architectures": [["x"], {"a": 1}, None]},
        {"auto_map": "AutoModelForCausalLM"},
        {"auto_map": ["AutoModelForCausalLM"]},
        {"transformers_version": [1, 2], "_comment": "mine", "x": {"y": [{}]}},
        {"vision_config": {"num_hidden_layers": 48, "vocab_size": 5_000_000, "hidden_size": 1152}},
        {"max_position_embeddings": 10**9, "sliding_window": 10**9, "bos_token_id": -1},
    ],
)
def test_what_changes_no_model_is_no_matter(pocket_dir, tmp_path, change):
    path = tmp_path / "model"
    shutil.copytree(pocket_dir, path)
    config = json.loads((path / "config.json").read_text()) | change
    (path / "config.json").write_text(json.dumps(config))
    assert read_facts(path, "x").linears == read_facts(pocket_dir, "x").linears


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mamba2", "hidden_size": 8, "time_step_limit": [0.0, float("inf")]},
        {"model_type": "openelm", "num_key_value_heads": [2, 4], "intermediate_size": [8, 16]},
        {"model_type": "llama", "head_dim": None, "num_key_value_heads": None},
        {"model_type": "granitemoehybrid", "num_local_experts": 0, "intermediate_size": 0},
        {"model_type": "gemma3", "text_config": {"sliding_window": 512}},
        {"model_type": "llama", "text_config": None, "rms_norm_eps": 0, "rope_theta": 10000},
        {"auto_map": {"AutoConfig": "configuration_own.OwnConfig"}},
        {"model_type": "llama", "dtype": None, "torch_dtype": "bfloat16"},
        {"model_type": "gemma3_text", "rope_parameters": {"a": {"rope_theta": 1e4}, "b": None}},
    ],
)
def test_what_models_really_have_passes(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_config(tmp_path / "config.json", read_config(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "[" * 100_000, "\x00", "{'a': 1}"])
def test_what_is_no_json_object(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_nothing_heavy_is_imported_to_find_out(pocket_dir):
    script = (
        "import sys; from pathlib import Path; from qsweep.models.facts import read_facts\n"
        "from qsweep.models.check import check_tokenizer\n"
        f"check_tokenizer(read_facts(Path({str(pocket_dir)!r}), 'x'))\n"
        "print(sorted({'torch', 'transformers', 'tokenizers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
