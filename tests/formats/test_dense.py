"""The dense engine: every format into one kind of model, and damage noticed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from qsweep.base.errors import ArtifactCorrupt, QsweepError
from qsweep.formats.artifact import Artifact, Size
from qsweep.formats.awq import CONTAINER as AWQ_CONTAINER
from qsweep.formats.awq import pack_awq
from qsweep.formats.container import container
from qsweep.formats.dense import load_dense
from qsweep.formats.gptq import CONTAINER as GPTQ_CONTAINER
from qsweep.formats.hf import ShardWriter, reference_artifact
from qsweep.formats.numbers.rounding import round_to_grid
from qsweep.models.facts import read_facts, weight_files
from qsweep.models.source import SourceModel
from qsweep.quantizers.rtn import RTN

FLOAT = {"dtype": torch.float32, "device": "cpu"}
IDS = torch.randint(0, 4096, (2, 64), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def llama(tiny_model):
    return read_facts(tiny_model("llama"), "llama")


@pytest.fixture
def rounded(llama, tmp_path):
    out = tmp_path / "rounded"
    out.mkdir()
    return RTN(bits=4, group_size=64).quantize(SourceModel(llama, "cpu"), None, out)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt_neox", "gemma3_text"])
def test_the_source_itself(tiny_model, architecture):
    from transformers import AutoModelForCausalLM

    facts = read_facts(tiny_model(architecture), "x")
    model = load_dense(reference_artifact(facts), facts.path, **FLOAT)
    plain = AutoModelForCausalLM.from_pretrained(facts.path, dtype=torch.float32)
    assert torch.equal(logits(model), logits(plain.eval()))
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model.config.use_cache is False


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt_neox", "gemma3_text"])
def test_rounded_weights_are_where_they_belong(tiny_model, architecture, tmp_path):
    # Oracle: the rounding done on the loaded model's own weights.
    from transformers import AutoModelForCausalLM

    facts = read_facts(tiny_model(architecture), "x")
    artifact = RTN(bits=3).quantize(SourceModel(facts, "cpu"), None, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(facts.path, dtype=torch.float32).eval()
    for name in facts.linears:
        weight = plain.get_submodule(name).weight
        weight.data = round_to_grid(weight.data, 3, 128, sym=False).dense(torch.float32)
    model = load_dense(artifact, facts.path, **FLOAT)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-5, atol=1e-5)
    assert model.get_output_embeddings().weight.dtype == torch.float32


def test_conv1d_layers(tmp_path, pocket_dir):
    from transformers import GPT2Config, GPT2LMHeadModel

    source, out = tmp_path / "source", tmp_path / "out"
    torch.manual_seed(0)
    config = GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=4096, n_positions=64)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(source)
    shutil.copy(pocket_dir / "tokenizer.json", source)
    out.mkdir()
    facts = read_facts(source, "gpt2")
    artifact = RTN(bits=8, group_size=-1).quantize(SourceModel(facts, "cpu"), None, out)
    found = load_dense(artifact, source, **FLOAT)
    torch.testing.assert_close(logits(found), logits(model), rtol=0, atol=0.03)


def test_awq_layout(llama, tmp_path):
    # The same grid as RTN's, in the other format.
    tensors = load_file(weight_files(llama.path)[0])
    saved = {}
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        if layer not in llama.linears:
            saved[name] = tensor
            continue
        grid = round_to_grid(tensor.float(), 4, 64, sym=False)
        saved |= {f"{layer}.{part}": t for part, t in pack_awq(grid, 4).items()}
    save_file(saved, tmp_path / "model.safetensors")
    settings = {"quant_method": "awq", "bits": 4, "group_size": 64}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    (tmp_path / "gptq").mkdir()
    as_gptq = RTN(group_size=64).quantize(SourceModel(llama, "cpu"), None, tmp_path / "gptq")
    as_awq = Artifact(tmp_path, "awq", AWQ_CONTAINER.size(tmp_path))
    first, second = (load_dense(a, llama.path, **FLOAT) for a in (as_gptq, as_awq))
    assert torch.equal(logits(first), logits(second))
    assert as_awq.size.linear_weights == as_gptq.size.linear_weights
    assert as_awq.size.bpw == 4 + 20 / 64


def test_sharded_artifact(llama, rounded, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    writer = ShardWriter(shards, limit=1_000_000)
    for name, tensor in load_file(rounded.path / "model.safetensors").items():
        writer.add(name, tensor)
    writer.close()
    shutil.copy(rounded.path / "config.json", shards)
    assert len(weight_files(shards)) > 2
    sharded = Artifact(shards, "gptq", GPTQ_CONTAINER.size(shards))
    assert sharded.size.linear_bits == rounded.size.linear_bits
    whole, parts = (load_dense(a, llama.path, **FLOAT) for a in (rounded, sharded))
    assert torch.equal(logits(whole), logits(parts))


def test_state_is_lazy_and_complete(llama, rounded):
    state = container(rounded.format).dense_weights(rounded, llama.path, "cpu")
    assert set(state) == set(load_file(weight_files(llama.path)[0]))
    weight = state["model.layers.0.mlp.up_proj.weight"][...]
    assert weight.shape == (512, 256)
    assert len(weight.unique()) > 16


def test_other_dtypes(llama, rounded):
    model = load_dense(rounded, llama.path, dtype=torch.bfloat16, device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def rewrite(artifact, change):
    file = artifact.path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_missing_parts_are_noticed(llama, rounded):
    rewrite(rounded, lambda t: t.pop("model.layers.1.mlp.up_proj.scales"))
    with pytest.raises(ArtifactCorrupt, match="model.layers.1.mlp.up_proj has no scales"):
        load_dense(rounded, llama.path, **FLOAT)


def test_missing_weights_are_noticed(llama, rounded):
    rewrite(rounded, lambda t: t.pop("model.norm.weight"))
    with pytest.raises(ArtifactCorrupt, match="missing: model.norm.weight"):
        load_dense(rounded, llama.path, **FLOAT)


def test_truncated_file_is_noticed(llama, rounded):
    file = rounded.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ArtifactCorrupt, match="cannot be read"):
        load_dense(rounded, llama.path, **FLOAT)


def test_config_without_settings_is_noticed(llama, rounded):
    shutil.copy(llama.path / "config.json", rounded.path)
    # AutoGPTQ left them in a file of their own.
    assert load_dense(rounded, llama.path, **FLOAT) is not None
    (rounded.path / "quantize_config.json").unlink()
    with pytest.raises(ArtifactCorrupt, match="without quantization_config"):
        load_dense(rounded, llama.path, **FLOAT)


def test_incomplete_source_is_no_artifact(llama, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(llama.path, source)
    file = source / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    artifact = Artifact(source, "hf", Size(0, 0, 0, 0, 0))
    with pytest.raises(QsweepError, match="missing: model.layers.0.mlp.up_proj.weight") as caught:
        load_dense(artifact, source, **FLOAT)
    assert not isinstance(caught.value, ArtifactCorrupt)


def test_unknown_architecture(llama, rounded, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(llama.path, source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "nonesuch"}))
    with pytest.raises(QsweepError, match="transformers cannot build this model") as caught:
        load_dense(rounded, source, **FLOAT)
    assert "\n" not in str(caught.value)
