"""What llama.cpp's converter is told that it would not find out: without running it."""

import json

import pytest

from qsweep.formats.gguf import driver

BYTE_LEVEL = {"pre_tokenizer": {"type": "ByteLevel", "use_regex": True}}


def read_by_the_converter(config):
    """A configuration as the converter's classes get it."""

    class Base:
        @staticmethod
        def load_hparams(folder):
            return dict(config)

    driver._keep_old_names(Base)
    return Base.load_hparams("folder")


@pytest.mark.parametrize(
    ("config", "key", "expected"),
    [
        ({"model_type": "dots1"}, "scoring_func", "sigmoid"),
        ({"model_type": "dots1", "score_function": "softmax"}, "scoring_func", None),
        ({"model_type": "qwen3_moe"}, "scoring_func", None),
        ({"model_type": "falcon", "multi_query": True, "num_kv_heads": 71}, "num_kv_heads", 1),
        (
            {"multi_query": True, "new_decoder_architecture": True, "num_kv_heads": 8},
            "num_kv_heads",
            8,
        ),
        ({"model_type": "minimax_m2", "head_dim": 32}, "rotary_dim", 32),
        ({"mlp_layer_types": ["dense", "dense", "sparse"]}, "first_k_dense_replace", 2),
        ({"moe_layers": [1, 3], "num_hidden_layers": 4}, "interleave_moe_layer_step", 2),
        ({"moe_layers": [0, 1], "num_hidden_layers": 2}, "interleave_moe_layer_step", 1),
        ({"moe_layers": [0, 1], "num_hidden_layers": 4}, "interleave_moe_layer_step", None),
        ({"mlp_layer_types": ["dense", "dense"]}, "first_k_dense_replace", 2),
        (
            {"model_type": "hunyuan_v1_moe", "intermediate_size": 64, "moe_topk": 2},
            "moe_topk",
            [2],
        ),
        (
            {"model_type": "hunyuan_v1_moe", "intermediate_size": 64, "moe_topk": 2},
            "moe_intermediate_size",
            [64],
        ),
        (
            {
                **{"model_type": "minimax_m2", "head_dim": 32},
                "rope_parameters": {"partial_rotary_factor": 0.5},
            },
            "rotary_dim",
            16,
        ),
    ],
)
def test_what_a_configuration_of_transformers_leaves_out_or_says_otherwise(config, key, expected):
    assert dict(read_by_the_converter(config)).get(key) == expected


def test_the_text_part_of_a_configuration_is_told_alike():
    text = {"model_type": "dots1", "moe_layers": [1], "num_hidden_layers": 2}
    found = read_by_the_converter({"model_type": "sees", "text_config": text})
    assert "scoring_func" not in dict(found)
    assert found["text_config"]["scoring_func"] == "sigmoid"
    assert found["text_config"]["interleave_moe_layer_step"] == 2


def test_a_length_that_phimoe_is_not_stretched_from_is_its_own():
    config = {"model_type": "phimoe", "max_position_embeddings": 256, "rope_parameters": {}}
    found = read_by_the_converter(config)["rope_parameters"]
    assert found["original_max_position_embeddings"] == 256


def test_heads_that_are_turned_as_a_whole_say_so():
    found = read_by_the_converter(
        {"model_type": "solar_open", "rope_parameters": {"rope_theta": 1}}
    )
    assert found["rope_parameters"] == {"rope_theta": 1, "partial_rotary_factor": 1.0}
    own = {"rope_theta": 1, "partial_rotary_factor": 0.5}
    found = read_by_the_converter({"model_type": "solar_open", "rope_parameters": own})
    assert found["rope_parameters"] == own


def test_a_class_is_found_however_its_name_is_spelt():
    known = {"PhiMoEForCausalLM": "phi", "MPTForCausalLM": "mpt", "MptForCausalLM": "mpt"}
    assert driver._as_spelt("PhimoeForCausalLM", known) == "PhiMoEForCausalLM"
    assert driver._as_spelt("MptForCausalLM", known) == "MptForCausalLM"
    assert driver._as_spelt("OfTomorrow", known) == "OfTomorrow"


def test_a_token_that_a_vocabulary_lacks_has_no_id():
    class Tokenizer:
        def get_added_vocab(self):
            return {"<|user|>": 7}

    class Auto:
        @staticmethod
        def from_pretrained(*_, **__):
            return Tokenizer()

    driver._excuse_missing_tokens(Auto)
    added = Auto.from_pretrained("folder").get_added_vocab()
    assert (added["<|user|>"], added["[gMASK]"], "[gMASK]" in added) == (7, None, False)


@pytest.mark.parametrize("error", [AttributeError, FileNotFoundError, ValueError])
@pytest.mark.parametrize("byte_level", [True, False])
def test_a_vocabulary_without_its_makers_file_is_taken_if_it_splits_as_gpt2(
    error, byte_level, tmp_path
):
    class Base:
        model_arch, supports_mtp_export = None, False
        hparams, dir_model, taken = {}, tmp_path, False

        def set_vocab(self):
            raise error("File not found: tokenizer.model")

        def _set_vocab_gpt2(self):
            self.taken = True

    other = {"pre_tokenizer": {"type": "Metaspace"}}
    tokenizer = BYTE_LEVEL if byte_level else other
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    model = driver._recorded(Base, [], {}, {}, None)()
    if byte_level:
        model.set_vocab()
        assert model.taken
    else:
        with pytest.raises(error, match="File not found"):
            model.set_vocab()


@pytest.mark.parametrize(
    ("config", "key", "expected"),
    [
        ({"model_type": "falcon", "ffn_hidden_size": 128}, "feed_forward_length", 128),
        ({"model_type": "falcon", "ffn_hidden_size": None}, "feed_forward_length", 7),
        ({"model_type": "llama", "intermediate_size": 128}, "feed_forward_length", 7),
        (
            {
                "model_type": "ernie4_5_moe",
                "moe_intermediate_size": 64,
                "moe_num_shared_experts": 2,
            },
            "expert_shared_feed_forward_length",
            128,
        ),
    ],
)
def test_sizes_that_a_class_computes_from_others_are_the_models_own(config, key, expected):
    class Value:
        value = 7

    class Writer:
        arch, kv_data = "a", [{f"a.{key}": Value()}]

    class Model:
        hparams, gguf_writer = config, Writer()

    driver._correct(Model())
    assert Writer.kv_data[0][f"a.{key}"].value == expected
