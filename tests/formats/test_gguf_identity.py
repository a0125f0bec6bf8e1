"""What a GGUF file says of itself, and whether its numbers and tokens are a model's."""

import json
import shutil

import numpy as np
import pytest

from qsweep.base.errors import ConfigError
from qsweep.formats.gguf.facts import BaseModel, read_gguf_facts
from qsweep.formats.gguf.hyperparameters import (
    config_differences,
    context_difference,
    metadata_differences,
)
from qsweep.formats.gguf.reader import GGUFFile, GGUFTensor
from qsweep.formats.gguf.tokenizer import (
    chat_template_difference,
    read_tokenizer,
    tokenizer_differences,
)
from qsweep.formats.gguf.types import TENSOR_TYPES


@pytest.fixture(scope="module")
def content(pocket_dir):
    """The pocket model's tokenizer.json."""
    return json.loads((pocket_dir / "tokenizer.json").read_text(encoding="utf-8"))


@pytest.fixture
def file(pocket_dir, content, tmp_path):
    """``file(key=value)``: the metadata that llama.cpp's converter writes of the pocket model."""
    config = json.loads((pocket_dir / "config.json").read_text())
    pieces = {number: piece for piece, number in content["model"]["vocab"].items()}
    pieces |= {token["id"]: token["content"] for token in content["added_tokens"]}
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.key_length": config["head_dim"],
        # As float32 gives it back.
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(config["rms_norm_eps"])),
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [pieces[i] for i in range(len(pieces))],
        "tokenizer.ggml.token_type": [1] * len(pieces),
        "tokenizer.ggml.merges": [
            merge if isinstance(merge, str) else " ".join(merge)
            for merge in content["model"]["merges"]
        ],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
    }

    def make(**changes):
        changed = {key.replace("__", "."): value for key, value in changes.items()}
        return GGUFFile(tmp_path / "model.gguf", metadata | changed, {})

    make.metadata = metadata
    return make


def test_the_models_own_file_differs_in_nothing(file, pocket_dir):
    assert config_differences(file(), pocket_dir) == []
    assert context_difference(file(), pocket_dir) is None
    assert tokenizer_differences(file(), pocket_dir) == []
    assert chat_template_difference(file(), pocket_dir) is None
    assert metadata_differences(file(), file()) == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("block_count", 5, "block_count is 5 in the file and 4 layers in the model"),
        ("embedding_length", 512, "embedding_length is 512 in the file and 256 in the model"),
        (
            "feed_forward_length",
            [768, 768, 512, 768],
            "feed_forward_length is [768, 768, 512, 768]",
        ),
        ("attention.head_count", 8, "attention.head_count is 8 in the file and 4 in the model"),
        ("attention.head_count_kv", 4, "attention.head_count_kv is 4 in the file and 2"),
        ("attention.key_length", 128, "attention.key_length is 128 in the file and 64"),
        ("attention.layer_norm_rms_epsilon", 1e-5, "is 1e-05 in the file and 1e-06 in the model"),
        ("rope.freq_base", 5e5, "rope.freq_base is 500000.0 in the file and 10000.0 in the model"),
    ],
)
def test_another_number_is_named(key, value, said, file, pocket_dir):
    changed = file(**{f"llama.{key}": value})
    (line,) = config_differences(changed, pocket_dir)
    assert said in line
    # Our own conversion of the model tells the same.
    assert len(metadata_differences(changed, file())) == 1


def test_what_either_side_leaves_to_its_defaults_is_no_difference(file, pocket_dir):
    changed = file(**{"llama.expert_count": 0, "llama.rope.freq_base": None})
    assert config_differences(changed, pocket_dir) == []
    layers = file(**{"llama.feed_forward_length": [768] * 4, "llama.nextn_predict_layers": 1,
                     "llama.block_count": 5})  # fmt: skip
    assert config_differences(layers, pocket_dir) == []
    assert metadata_differences(layers, file()) == []
    longer = file(**{"llama.context_length": 4096})
    assert config_differences(longer, pocket_dir) == []
    said = "context_length is 4096 in the file and 1024 in the model"
    assert context_difference(longer, pocket_dir) == said


def swapped(tokens, *places):
    found = list(tokens)
    for one, other in zip(places, places[::-1], strict=True):
        found[one] = tokens[other]
    return found


def test_other_tokens_are_named(file, pocket_dir):
    tokens = file.metadata["tokenizer.ggml.tokens"]

    def said(**changes):
        found = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
        return tokenizer_differences(file(**found), pocket_dir)

    first, second = tokens[300], tokens[400]
    assert said(tokens=swapped(tokens, 300, 400)) == [
        f"token 300 is {second!r} in the file and {first!r} in the model",
        f"token 400 is {first!r} in the file and {second!r} in the model",
    ]
    many = said(tokens=[f"{token}x" for token in tokens])
    assert len(many) == 4 and many[-1] == f"{len(tokens) - 3} more tokens are others"
    assert said(tokens=[*tokens, "<mine>\x1b[0m"], token_type=[1] * (len(tokens) + 1)) == [
        "the file has 1 tokens more than the model, such as '<mine>\\x1b[0m'"
    ]
    # Those that fill the vocabulary up are no tokens.
    assert said(tokens=[*tokens, "[PAD4096]"], token_type=[1] * (len(tokens) + 1)) == []
    assert said(tokens=[*tokens, "any"], token_type=[*[1] * len(tokens), 5]) == []
    assert said(tokens=tokens[:-2])[0].startswith("the file lacks 2 tokens of the model, such as")
    assert said(tokens=None) == ["the file has no tokenizer"]
    assert said(bos_token_id=7) == ["BOS is token 7 in the file and 0 in the model"]
    assert said(eos_token_id=7) == ["EOS is token 7 in the file and 0 in the model"]
    merges = file.metadata["tokenizer.ggml.merges"]
    other = said(merges=[merges[1], merges[0], *merges[2:]])
    assert other == [f"merge 0 is {merges[1]!r} in the file and {merges[0]!r} in the model"]
    assert said(merges=merges[:-1]) == [
        f"the file has {len(merges) - 1} merges and the model {len(merges)}"
    ]


def test_spellings_of_spaces_and_bytes_are_the_same(file, pocket_dir, content, tmp_path):
    # A converter writes the tokens that a user defined as they stand in text.
    model = tmp_path / "model"
    shutil.copytree(pocket_dir, model)
    changed = json.loads(json.dumps(content))
    for number, piece in ((1, "▁▁"), (2, "é"), (3, "ĠĠ")):
        added = {"id": number, "content": piece, "special": False}
        changed["added_tokens"].append(added)
    (model / "tokenizer.json").write_text(json.dumps(changed), encoding="utf-8")
    tokens = list(file.metadata["tokenizer.ggml.tokens"])
    tokens[1:4] = ["  ", "Ã©", "  "]
    assert tokenizer_differences(file(**{"tokenizer.ggml.tokens": tokens}), model) == []


def test_bos_and_the_template_by_the_models_own_files(file, pocket_dir, content, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(pocket_dir, model)
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {}}],
    }
    (model / "tokenizer.json").write_text(
        json.dumps({**content, "post_processor": template}), encoding="utf-8"
    )
    (model / "chat_template.jinja").write_text("{{ messages }}")
    (model / "generation_config.json").write_text('{"eos_token_id": [0, 9]}')
    silent = file(**{"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.eos_token_id": 9})
    assert tokenizer_differences(silent, model) == [
        "the file does not put BOS before every text, and the model does"
    ]
    assert tokenizer_differences(file(**{"tokenizer.ggml.add_bos_token": True}), model) == []
    # Never rendered: it would divide by zero.
    other = file(**{"tokenizer.chat_template": "{{ 1 // 0 }}"})
    assert "another chat template" in chat_template_difference(other, model)
    same = file(**{"tokenizer.chat_template": "{{ messages }}\n"})
    assert chat_template_difference(same, model) is None


@pytest.mark.parametrize("damage", ["{}", '{"model": {"vocab": 3}}', "[", '{"model": null}'])
def test_a_models_damaged_tokenizer_is_one_line(damage, pocket_dir, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(pocket_dir, model)
    (model / "tokenizer.json").write_text(damage)
    with pytest.raises(ConfigError, match=r"tokenizer\.json: ") as caught:
        read_tokenizer(model)
    assert "\n" not in str(caught.value)
    (model / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer.json or tokenizer.model"):
        read_tokenizer(model)


def test_what_a_file_says_of_itself(file, tmp_path):
    said = file(
        general__name="Pocket \x1b[31m\n",
        general__file_type=15,
        general__license="apache-2.0",
        general__quantized_by="somebody",
        general__size_label="4M",
        **{
            "general.base_model.count": 2,
            "general.base_model.0.name": "Pocket",
            "general.base_model.0.organization": "Tiny",
            "general.base_model.0.repo_url": "https://huggingface.co/tiny/pocket.git",
            "general.base_model.1.name": "Elsewhere",
            "general.base_model.1.repo_url": "https://example.org/tiny/pocket",
            "quantize.imatrix.dataset": "calibration.txt",
        },
    )
    tensors = {
        name: GGUFTensor(name, (4, 256), TENSOR_TYPES[number], 0, tmp_path)
        for name, number in (("a", 12), ("b", 12), ("c", 14))
    }
    found = read_gguf_facts(GGUFFile(said.path, said.metadata, tensors))
    assert found.name == "Pocket \\x1b[31m\\n"
    assert found.base_models == (
        BaseModel("Pocket", "Tiny", None, "tiny/pocket"),
        BaseModel("Elsewhere"),
    )
    assert (found.file_type, found.tensor_types) == ("Q4_K_M", {"Q4_K": 2, "Q6_K": 1})
    assert found.imatrix == "calibration.txt" and found.quantized_by == "somebody"
    assert "organization" not in found.content()
    assert read_gguf_facts(file(**{"general.base_model.count": 10**9})).base_models[100:] == ()
    for wrong in ("many", -3, 1.5, [1]):
        assert read_gguf_facts(file(**{"general.base_model.count": wrong})).base_models == ()
