"""Models that are given quantized alone: dequantized once, and an ordinary directory afterwards."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file

import qsweep.formats.dequantized as module
from helpers.quantized import by_transformers, change, dense, fp8, logits, mxfp4
from qsweep.base.errors import ConfigError
from qsweep.base.manifest import MANIFEST
from qsweep.base.store import Store
from qsweep.formats.dense import load_dense
from qsweep.formats.dequantized import base_directory, dequantized_from
from qsweep.formats.hf import ShardWriter, reference_artifact
from qsweep.models.check import fit_problem
from qsweep.models.facts import read_facts, weight_files
from qsweep.models.source import SourceModel
from qsweep.quantizers.rtn import RTN


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def content(path):
    return json.loads((path / MANIFEST).read_text())["content"]


def nf4(source, out):
    from transformers import BitsAndBytesConfig

    pytest.importorskip("bitsandbytes", reason='pip install "qsweep[bitsandbytes]"')
    by_transformers(source, out, BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"))
    return out


def gptq(source, out):
    out.mkdir()
    RTN(bits=4, group_size=64).quantize(SourceModel(read_facts(source, "x"), "cpu"), None, out)
    return out


@pytest.mark.parametrize(
    ("make", "architecture", "called", "most"),
    [
        # e4m3 times a float32 scale does not fit bfloat16's 8 bits; what is a power of two does.
        (fp8, "llama", "fp8 block 128x128", 0.0025),
        (mxfp4, "gpt_oss", "mxfp4", 0.0),
        (nf4, "llama", "bitsandbytes nf4 block 64", 0.0),
        (gptq, "llama", "gptq int4 g64 asym", 0.0025),
    ],
)
def test_it_is_the_same_model_rounded(
    tiny_model, tmp_path, store, make, architecture, called, most
):
    source = tiny_model(architecture)
    path = make(source, tmp_path / "base")
    found = base_directory(path, store)
    assert found.parent == store.root / "models"
    assert dequantized_from(found) == called
    assert content(found)["dtype"] == "bfloat16"
    assert 0 <= content(found)["rounding"] <= most
    facts = read_facts(found, "base")
    assert facts.linears == read_facts(source, "source").linears
    assert facts.parameters == read_facts(source, "source").parameters
    assert fit_problem(found) is None
    # Nothing of it is quantized any more, and each weight is that of the artifact, rounded.
    config = json.loads((found / "config.json").read_text())
    assert "quantization_config" not in config
    ours = load_dense(reference_artifact(facts), found, dtype=torch.bfloat16, device="cpu")
    direct = dense(path, source, torch.bfloat16)
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, direct.get_parameter(name)), name
    assert torch.equal(logits(ours), logits(direct))


def test_what_lies_beside_the_weights_comes_along(tiny_model, tmp_path, store):
    path = fp8(tiny_model("llama"), tmp_path / "base")
    files = {
        "generation_config.json": json.dumps({"eos_token_id": 0}),
        "chat_template.jinja": "{{ messages }}",
        "LICENSE": "Apache-2.0",
    }
    for name, text in files.items():
        (path / name).write_text(text)
    first = base_directory(path, store)
    for name in (*files, "tokenizer.json", "tokenizer_config.json"):
        assert (first / name).read_bytes() == (path / name).read_bytes()
    # They are part of what it is made from: another template is another entry.
    (path / "chat_template.jinja").write_text("{{ other }}")
    second = base_directory(path, store)
    assert second != first
    assert (second / "chat_template.jinja").read_text() == "{{ other }}"


def test_settings_in_a_file_of_their_own_are_part_of_what_it_is_made_from(
    tiny_model, tmp_path, store
):
    path = gptq(tiny_model("llama"), tmp_path / "base")
    first = base_directory(path, store)
    # What config.json says itself, no other file is read for.
    (path / "quantize_config.json").write_text("{}")
    assert base_directory(path, store) == first
    config = json.loads((path / "config.json").read_text())
    settings = config.pop("quantization_config")
    (path / "config.json").write_text(json.dumps(config))
    made = []
    for version in ("gptq", "gptq_v2"):
        stated = {**settings, "checkpoint_format": version, "format": version}
        (path / "quantize_config.json").write_text(json.dumps(stated))
        made.append(base_directory(path, store))
    assert len({first, *made}) == 3
    name = "model.layers.0.mlp.up_proj.weight"
    one, other = (load_file(found / "model.safetensors")[name] for found in made)
    assert not torch.equal(one, other)


def test_it_is_made_once(tiny_model, tmp_path, store, monkeypatch, capsys):
    path = fp8(tiny_model("llama"), tmp_path / "base")
    made = []
    make = module._dequantize
    monkeypatch.setattr(module, "_dequantize", lambda *a: (made.append(1), make(*a))[1])
    with ThreadPoolExecutor(2) as pool:
        found = set(pool.map(lambda _: base_directory(path, Store(store.root)), range(2)))
    assert (len(found), len(made)) == (1, 1)
    assert "is quantized (fp8 block 128x128); it is dequantized to 16 bits, once" in (
        capsys.readouterr().err
    )
    # A copy elsewhere is the same content, and the result is no quantized model itself.
    copied = shutil.copytree(path, tmp_path / "copy")
    assert base_directory(copied, store) in found
    (entry,) = found
    assert base_directory(entry, store) == entry
    assert (len(made), capsys.readouterr().err) == (1, "")


def test_other_tensors_in_float16_make_it_float16(tiny_model, tmp_path, store):
    path = fp8(tiny_model("llama"), tmp_path / "base")
    change(
        path,
        lambda t: t.update(
            {name: tensor.half() for name, tensor in t.items() if tensor.dtype == torch.bfloat16}
        ),
    )
    found = base_directory(path, store)
    dtypes = {tensor.dtype for tensor in load_file(found / "model.safetensors").values()}
    assert dtypes == {torch.float16}
    assert json.loads((found / "config.json").read_text())["dtype"] == "float16"
    assert content(found)["rounding"] < 0.0004


def test_it_is_written_in_shards(tiny_model, tmp_path, store, monkeypatch):
    path = fp8(tiny_model("llama"), tmp_path / "base")
    monkeypatch.setattr(module, "ShardWriter", lambda out: ShardWriter(out, limit=1_000_000))
    assert len(weight_files(base_directory(path, store))) > 2


def test_an_unquantized_model_is_taken_as_it_is(tiny_model, tmp_path, store):
    source = tiny_model("llama")
    assert base_directory(source, store) == source
    assert dequantized_from(source) is None
    # Nor does a file that AutoGPTQ's users leave behind make it a quantized one.
    beside = shutil.copytree(source, tmp_path / "beside")
    (beside / "quantize_config.json").write_text('{"bits": 4}')
    assert base_directory(beside, store) == beside
    assert not (store.root / "models").exists()


def configure(path, settings):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda p: configure(p, {"quant_method": "aqlm"}),
            "in aqlm that cannot be read: .*; give the",
        ),
        (
            lambda p: configure(p, {"quant_method": "nonesuch"}),
            "a checkpoint in nonesuch; those that",
        ),
        (lambda p: configure(p, {"bits": 8}), "has no quant_method"),
        (lambda p: change(p, lambda t: t.pop(f"{Q}.weight_scale_inv")), f"{Q} has no scale"),
        (
            lambda p: change(p, lambda t: t.update({f"{Q}.weight_scale_inv": torch.ones(7, 1)})),
            r"scales of the shape \[7, 1\] for weights of \[256, 256\]",
        ),
        (
            lambda p: (p / "model.safetensors").write_bytes(
                (p / "model.safetensors").read_bytes()[:-9]
            ),
            "not a whole safetensors file",
        ),
        (
            lambda p: (p / "model.safetensors").rename(p / "pytorch_model.bin"),
            "only pickled weights",
        ),
    ],
)
def test_what_cannot_be_dequantized_is_one_line(tiny_model, tmp_path, store, spoil, said):
    path = fp8(tiny_model("llama"), tmp_path / "base")
    spoil(path)
    with pytest.raises(ConfigError, match=said) as caught:
        base_directory(path, store)
    assert "\n" not in str(caught.value)
    assert not list((store.root / "models").glob("*"))


def test_a_configuration_that_claims_what_is_not_so(tiny_model, tmp_path, store):
    path = shutil.copytree(tiny_model("llama"), tmp_path / "base")
    configure(path, {"quant_method": "fp8"})
    with pytest.raises(ConfigError, match="and none of its weights is"):
        base_directory(path, store)
