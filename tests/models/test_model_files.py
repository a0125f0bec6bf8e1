"""One checkpoint per directory, the one that transformers loads, for everybody who reads it."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from qsweep.base.errors import ConfigError
from qsweep.base.files import sha256_of
from qsweep.base.keys import key_of
from qsweep.base.store import Store
from qsweep.formats.dense import load_dense
from qsweep.formats.hf import reference_artifact
from qsweep.models.facts import read_facts, readable_directory
from qsweep.models.files import link_model, standard_directory, weight_files
from qsweep.models.hub import content_hash
from qsweep.models.source import SourceModel
from qsweep.quantizers.rtn import RTN

INDEX = "model.safetensors.index.json"
IDS = torch.arange(64)[None] * 61 % 4096


@pytest.fixture(scope="module")
def shards(tiny_model, tmp_path_factory):
    """A model in shards, with their index."""
    from transformers import AutoModelForCausalLM

    path = tmp_path_factory.mktemp("shards")
    source = tiny_model("llama")
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(path, max_shard_size="2MB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, path)
    assert len(list(path.glob("model-*-of-*.safetensors"))) > 2
    return path


@pytest.fixture
def copy(shards, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(shards, path)
    return path


def tensors_of(path):
    return {k: v for file in weight_files(path) for k, v in load_file(file).items()}


def other_weights(path):
    random = torch.Generator().manual_seed(5)
    return {
        name: tensor + 0.02 * torch.randn(tensor.shape, generator=random).to(tensor.dtype)
        for name, tensor in tensors_of(path).items()
    }


def add_second_set(path):
    save_file(other_weights(path), path / "model.safetensors", metadata={"format": "pt"})


def rewrite(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def loaded_by_transformers(path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
    with torch.no_grad():
        return model.eval()(IDS).logits


def logits(artifact, source):
    with torch.no_grad():
        return load_dense(artifact, source, dtype=torch.float32, device="cpu")(IDS).logits


def test_of_two_sets_of_weights_everybody_reads_the_one_that_transformers_loads(copy, tmp_path):
    before = loaded_by_transformers(copy)
    add_second_set(copy)
    expected = loaded_by_transformers(copy)
    assert (expected - before).abs().max() > 0.5  # the two sets are two models
    facts = read_facts(copy, "x")
    assert torch.equal(logits(reference_artifact(facts), copy), expected)
    out = tmp_path / "rounded"
    out.mkdir()
    rounded = RTN(bits=8).quantize(SourceModel(facts, "cpu"), None, out)
    error = (logits(rounded, copy) - expected).abs().mean()
    assert error < 0.1 * (expected - before).abs().mean()
    assert facts.parameters == reference_artifact(facts).size.parameters
    assert reference_artifact(facts).size.weight_bytes == weight_files(copy)[0].stat().st_size
    for folder in (readable_directory(copy, tmp_path / "a" / "b"), tmp_path / "links"):
        if not folder.exists():
            link_model(copy, folder)
        assert sorted(f.name for f in folder.glob("*.safetensors*")) == ["model.safetensors"]
        assert torch.equal(loaded_by_transformers(folder), expected)


def test_the_native_pass_and_the_hand_over_read_the_same_set(copy, tmp_path):
    from qsweep.quantizers.isolated.handover import hand_over
    from qsweep.quantizers.native.network import load_network

    add_second_set(copy)
    expected = tensors_of(copy)["model.layers.1.mlp.up_proj.weight"]
    network = load_network(SourceModel(read_facts(copy, "x"), "cpu"))
    assert torch.equal(network.get_submodule("model.layers.1.mlp.up_proj").weight, expected)
    hand_over(copy, tmp_path / "handed")
    assert [f.name for f in (tmp_path / "handed").glob("*.safetensors*")] == ["model.safetensors"]
    assert (tmp_path / "handed" / "tokenizer.json").exists()


def test_the_hash_covers_the_checkpoint_and_no_other_weights(copy, shards, tmp_path):
    store = Store(tmp_path / "store")
    alone = content_hash(shards, store)
    for name in ("consolidated.safetensors", "model.fp16.safetensors", "adapter_model.safetensors"):
        shutil.copy(weight_files(copy)[0], copy / name)
        assert content_hash(copy, store) == alone
        (copy / name).unlink()
    add_second_set(copy)
    single = content_hash(copy, store)
    assert single != alone
    rewrite(copy / INDEX, lambda index: index["weight_map"].popitem())
    next(copy.glob("model-00002-of-*")).unlink()
    assert content_hash(copy, store) == single  # the shards count for nothing any more
    assert read_facts(copy, "x").linears == read_facts(shards, "x").linears
    for file in copy.glob("model-*"):
        file.unlink()
    (copy / INDEX).unlink()
    assert content_hash(copy, store) == single


def test_the_hash_of_an_ordinary_directory_is_what_it_was(pocket_dir, shards, tmp_path):
    # Every file that bears one of these names: what stores that are in use were keyed by.
    patterns = ("*.safetensors", INDEX, "config.json", "tokenizer*", "*.model", "vocab.json")
    for path in (pocket_dir, shards):
        files = {f.name: sha256_of(f) for pattern in patterns for f in path.glob(pattern)}
        assert content_hash(path, Store(tmp_path)) == key_of(dict(sorted(files.items())))
        assert standard_directory(path, tmp_path / "never") == path


def test_weights_beside_the_checkpoint_are_out_of_others_reach(copy, tmp_path):
    # llama.cpp's converter takes every model*.safetensors.
    shutil.copy(weight_files(copy)[0], copy / "model.fp16.safetensors")
    folder = standard_directory(copy, tmp_path / "folder")
    assert folder != copy
    assert not (folder / "model.fp16.safetensors").exists()
    assert tensors_of(folder).keys() == tensors_of(copy).keys()


def test_shards_anywhere_get_the_names_that_everybody_knows(copy, tmp_path):
    (copy / "part").mkdir()
    for file in weight_files(copy):
        file.rename(copy / "part" / file.name.replace("model", "weights"))
    rename = {f.name: f"part/{f.name}" for f in (copy / "part").iterdir()}

    def move(index):
        for tensor, name in index["weight_map"].items():
            index["weight_map"][tensor] = rename[name.replace("model", "weights")]

    rewrite(copy / INDEX, move)
    expected = loaded_by_transformers(copy)
    folder = standard_directory(copy, tmp_path / "folder")
    assert folder != copy
    assert {f.name for f in weight_files(folder)} == {f.name for f in folder.glob("model-*-of-*")}
    assert torch.equal(loaded_by_transformers(folder), expected)
    assert {f.parent.name for f in weight_files(copy)} == {"part"}


# planning refuses what loading would refuse


def refusal(path):
    with pytest.raises(ConfigError) as caught:
        read_facts(path, "x")
    (line,) = str(caught.value).splitlines()
    assert str(path) in line
    return line


def test_shards_without_an_index(copy):
    (copy / INDEX).unlink()
    with pytest.raises(OSError, match="no file named"):
        loaded_by_transformers(copy)
    assert f"and no {INDEX} that says which belong to the model" in refusal(copy)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.safetensors", "finds pytorch_model.safetensors; rename it"),
        ("model.fp16.safetensors", "finds model.fp16.safetensors; rename it"),
        ("model-00001-of-00001.safetensors", f"no {INDEX}"),
        ("consolidated.safetensors", "only consolidated.safetensors, which transformers does not"),
        ("adapter_model.safetensors", "only an adapter (adapter_model.safetensors)"),
    ],
)
def test_a_single_file_of_another_name(tiny_model, tmp_path, name, message):
    path = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), path)
    (path / "model.safetensors").rename(path / name)
    assert message in refusal(path)
    if "rename it" in message:  # and that helps
        (path / name).rename(path / "model.safetensors")
        read_facts(path, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.pop("metadata"), 'has no "metadata"'),
        (lambda i: i.pop("weight_map"), "it has no weight_map"),
        (lambda i: i.update(weight_map={}), "it has no weight_map"),
        (lambda i: i.update(weight_map=[1]), "it has no weight_map"),
        (
            lambda i: i["weight_map"].update({"model.norm.weight": 3}),
            "gives 3 as the file of model",
        ),
        (lambda i: i["weight_map"].update({"x": "../y.safetensors"}), "outside of the model's"),
        (lambda i: i["weight_map"].update({"x": "/etc/passwd"}), "outside of the model's"),
        (lambda i: i["weight_map"].update({"x": "y.safetensors"}), "y.safetensors: missing"),
        (
            lambda i: i["weight_map"].update({"x": i["weight_map"]["model.norm.weight"]}),
            "lacks x, which the index says it has",
        ),
    ],
)
def test_a_damaged_index(copy, change, message):
    rewrite(copy / INDEX, change)
    assert message in refusal(copy)


@pytest.mark.parametrize("text", ["", "{", "[1]", "7", "[" * 100_000])
def test_an_index_that_is_none(copy, text):
    (copy / INDEX).write_text(text)
    assert INDEX in refusal(copy)


def test_a_tensor_in_two_shards(copy):
    first, second = weight_files(copy)[:2]
    name = next(iter(load_file(first)))
    save_file(load_file(second) | {name: load_file(first)[name]}, second)
    assert f"{name} lies in {first.name} too" in refusal(copy)


@pytest.mark.parametrize(
    "name",
    [
        *("model-00001-of-00005.safetensors", INDEX, "config.json", "tokenizer.json"),
        *("tokenizer_config.json", "generation_config.json", "special_tokens_map.json"),
        *("model.safetensors", "merges.txt", "chat_template.jinja"),
    ],
)
@pytest.mark.parametrize("what", ["pipe", "device", "link to a device"])
def test_what_would_never_end_is_refused_by_name(copy, name, what):
    (copy / name).unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(copy / name)
    elif what == "device":
        try:
            os.mknod(copy / name, 0o20644, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("making a device needs a privilege")
    else:
        (copy / name).symlink_to("/dev/zero")
    line = refusal(copy)
    assert name in line and ("is a pipe" if what == "pipe" else "is a device") in line


def test_links_that_lead_nowhere(copy, tmp_path):
    (copy / "README.md").symlink_to("gone")
    read_facts(copy, "x")
    content_hash(copy, Store(tmp_path))
    (copy / "merges.txt").symlink_to("gone")
    with pytest.raises(ConfigError, match="merges.txt: a link that leads nowhere"):
        content_hash(copy, Store(tmp_path))


def test_an_adapter_beside_the_weights(copy):
    (copy / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "has an adapter beside its weights" in refusal(copy)


def test_folders_beside_the_weights_are_nobodys_business(copy, tmp_path):
    (copy / "tokenizer").mkdir()
    (copy / "original").mkdir()
    read_facts(copy, "x")
    content_hash(copy, Store(tmp_path))
