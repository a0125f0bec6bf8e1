"""Mixtures and image-text models as the owners of each format load them, and who is said to.

The slow tests show what :mod:`qsweep.quantizers.serving` says of GPTQModel and transformers: where one
fails because a library has learnt something, what is said there can go.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from safetensors.torch import load_file

from miniatures import CAUSAL, IMAGE_TEXT, miniature
from qsweep.formats import numbers
from qsweep.formats.dense import load_dense
from qsweep.models.facts import parts_beside, read_facts
from qsweep.models.source import SourceModel
from qsweep.quantizers.artifact import ExistingArtifact
from qsweep.quantizers.gptqmodel import GPTQ
from qsweep.quantizers.gptqmodel.patches import transformers_as_it_was
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ
from qsweep.quantizers.rtn import RTN
from qsweep.quantizers.serving import LOADED
from qsweep.text.calibration import CalibrationTokens

GENERATOR = torch.Generator().manual_seed(5)
IDS = torch.randint(0, 4096, (2, 48), generator=GENERATOR)
TEXT = CalibrationTokens(torch.randint(0, 4096, (6, 64), generator=GENERATOR).tolist())
INT4 = RTN(bits=4, group_size=32, sym=True, format=numbers.Int("compressed-tensors"))
SEEING = ("gemma3", "qwen2_5_vl", "mistral3")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Miniatures, quantized: the model's directory, the artifact and what it computes densely."""
    folder, found = tmp_path_factory.mktemp("owners"), {}

    def make(kind, quantizer, auto=CAUSAL, dtype="float32"):
        if (kind, quantizer, dtype) not in found:
            path = folder / f"{kind}-{dtype}"
            if not path.exists():
                miniature(kind, path, auto, dtype)
            out = Path(mkdtemp(dir=folder))
            facts = read_facts(path, kind)
            quantizer.check(facts)
            artifact = quantizer.quantize(SourceModel(facts, "cpu"), TEXT, out)
            ours = load_dense(artifact, path, dtype=getattr(torch, dtype), device="cpu")
            found[kind, quantizer, dtype] = path, artifact, logits(ours)
        return found[kind, quantizer, dtype]

    return make


def logits(model):
    # Eager: kernels compile themselves, which takes longer than all else here.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        return model(input_ids=IDS).logits.float()


def apart(found, expected):
    """How far logits are from others, over the size of those; infinite where they are no numbers."""
    distance = float((found - expected).norm() / expected.norm())
    return distance if distance == distance else float("inf")


def by_transformers(folder, auto=CAUSAL, dtype=torch.float32):
    import transformers
    from compressed_tensors.quantization import disable_quantization

    model = getattr(transformers, auto).from_pretrained(folder, dtype=dtype).eval()
    model.apply(disable_quantization)
    # Computed more exactly than the kernels' half precision.
    return torch.nn.Module.float(model) if dtype == torch.float16 else model


def by_gptqmodel(artifact, kind):
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    os.environ.setdefault("GPTQMODEL_DISABLE_PACK_EXT", "1")
    library = pytest.importorskip("gptqmodel")
    kernel = library.BACKEND[f"{artifact.format.upper()}_TORCH"]
    with transformers_as_it_was(kind):
        model = library.GPTQModel.load(
            str(artifact.path), device="cpu", backend=kernel, dtype=torch.float16
        )
    return torch.nn.Module.float(model.model)


@pytest.mark.parametrize(
    ("kind", "quantizer", "said"),
    [
        ("qwen3_moe", NativeGPTQ(group_size=32, sym=True), ("gptqmodel", "vllm")),
        ("qwen3_moe", NativeAWQ(group_size=32), ("gptqmodel", "vllm")),
        ("mixtral", NativeGPTQ(group_size=32, sym=True), ("vllm",)),
        ("gpt_oss", NativeGPTQ(group_size=32, sym=True), ()),
        ("granitemoe", INT4, ()),
        ("gemma4_text", INT4, ("vllm",)),
        ("qwen3_moe", INT4, ("vllm", "transformers")),
        ("qwen3_moe", replace(INT4, sym=False), ()),
        ("llama4_text", replace(INT4, sym=False), ("transformers",)),
        ("llama4_text", RTN(format=numbers.NF4()), ("transformers",)),
        ("qwen3_moe", RTN(format=numbers.NF4()), ("vllm",)),
        ("qwen3_moe", RTN(format=numbers.FP8Dynamic()), ("vllm", "transformers")),
        ("qwen3_moe", RTN(format=numbers.W8A8()), ("vllm",)),
        # A dense model's are as they were.
        ("llama", NativeAWQ(group_size=32), ("gptqmodel", "transformers", "vllm")),
    ],
)
def test_who_does_not_load_experts_is_not_named(kind, quantizer, said, tmp_path):
    path = miniature(kind, tmp_path / "model")
    assert quantizer.encoders(read_facts(path, kind)).runtimes == said


def test_experts_that_rules_keep_close_nothing(tmp_path):
    facts = read_facts(miniature("qwen3_moe", tmp_path / "model"), "m")
    kept = NativeAWQ(group_size=32, rules={"*.experts.*": "keep"})
    assert "transformers" in kept.encoders(facts).runtimes
    # optimum takes each layer of the decoder for a quantized one, also where nothing is an expert.
    routers = NativeGPTQ(group_size=32, sym=True, rules={"*.experts.*": "keep"})
    assert routers.encoders(facts).runtimes == ("gptqmodel", "vllm")


def test_who_made_a_checkpoint_loads_it(tmp_path):
    facts = read_facts(miniature("gpt_oss", tmp_path / "model"), "m")
    assert GPTQ(group_size=32).encoders(facts).runtimes == ("gptqmodel",)


def test_parts_beside_the_decoder_are_named_as_loaders_know_them(made):
    assert parts_beside(["a.layers.0.mlp.up"], ["a.tower.0.fc", "b.fc", "a.layers.0.mlp.gate"]) == [
        "a.layers.0.mlp.gate", "a.tower", "b",
        *("model.a.layers.0.mlp.gate", "model.a.tower", "model.b"),
    ]  # fmt: skip
    path, artifact, _ = made("gemma3", NativeGPTQ(group_size=32, sym=True), IMAGE_TEXT)
    settings = json.loads((artifact.path / "config.json").read_text())["quantization_config"]
    assert settings["modules_to_not_convert"] == ["model.vision_tower", "vision_tower"]


def test_routers_are_named_as_transformers_calls_them(tmp_path):
    # Of Phi-MoE a checkpoint calls block_sparse_moe.gate what is mlp.router in memory.
    path = miniature("phimoe", tmp_path / "model")
    (out := tmp_path / "out").mkdir()
    INT4.quantize(SourceModel(read_facts(path, "m"), "cpu"), None, out)
    ignored = json.loads((out / "config.json").read_text())["quantization_config"]["ignore"]
    assert any("block_sparse_moe" in name for name in ignored)
    assert any("mlp\\.router" in name for name in ignored)


@pytest.mark.parametrize(
    "kind", ["qwen3_moe", "mixtral", "deepseek_v3", "qwen3_next", "llama4_text"]
)
def test_transformers_loads_experts_of_compressed_tensors(made, kind):
    _, artifact, expected = made(kind, INT4)
    assert "transformers" in artifact.runtimes
    assert apart(logits(by_transformers(artifact.path)), expected) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(LOADED))
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_gptqmodel_loads_mixtures(made, kind, method):
    quantizer = {"gptq": NativeGPTQ(group_size=32, sym=True), "awq": NativeAWQ(group_size=32)}[
        method
    ]
    _, artifact, expected = made(kind, quantizer)
    assert "gptqmodel" in artifact.runtimes
    # In float16, where a token near a tie may go to another expert; wrong names are 1 and more apart.
    assert apart(logits(by_gptqmodel(artifact, kind)), expected) < 5e-2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt_oss", "mixtral", "granitemoe"])
def test_gptqmodel_does_not_load_others(made, kind):
    _, artifact, expected = made(kind, NativeGPTQ(group_size=32, sym=True))
    try:
        found = apart(logits(by_gptqmodel(artifact, kind)), expected)
    except ValueError as error:
        assert "Missing required quantized weights" in str(error)
    else:
        assert found > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", [
    replace(INT4, sym=False), RTN(format=numbers.W8A8()), RTN(format=numbers.NVFP4A16()),
    RTN(format=numbers.MXFP8()), RTN(format=numbers.NF4()), NativeAWQ(group_size=32),
])  # fmt: skip
def test_transformers_does_not_load_experts_of_others(made, quantizer):
    _, artifact, expected = made("qwen3_moe", quantizer, dtype="bfloat16")
    assert "transformers" not in artifact.runtimes
    try:
        found = apart(logits(by_transformers(artifact.path, dtype=torch.bfloat16)), expected)
    except RuntimeError:
        return
    assert found > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*SEEING, "llama4"])
@pytest.mark.parametrize(
    "quantizer",
    [NativeGPTQ(group_size=32, sym=True), NativeAWQ(group_size=32), INT4],
    ids=["gptq", "awq", "int4"],
)
def test_image_text_models_stay_what_they_are(made, kind, quantizer):
    path, artifact, expected = made(kind, quantizer, IMAGE_TEXT)
    source, stored = (
        {k: v for file in p.glob("*.safetensors") for k, v in load_file(file).items()}
        for p in (path, artifact.path)
    )
    seen = [name for name in source if "vis" in name or "projector" in name]
    assert len(seen) > 10
    for name in seen:
        assert stored[name].dtype == source[name].dtype and torch.equal(stored[name], source[name])
    config = json.loads((artifact.path / "config.json").read_text())
    assert (
        config["architectures"] == json.loads((path / "config.json").read_text())["architectures"]
    )
    assert "gptqmodel" not in artifact.runtimes
    if "transformers" not in artifact.runtimes:
        assert kind == "llama4"
        return
    packed = artifact.format != "compressed-tensors"
    if artifact.format == "gptq":
        pytest.importorskip("optimum")
    dtype = torch.float16 if packed else torch.float32
    theirs = by_transformers(artifact.path, IMAGE_TEXT, dtype)
    assert type(theirs).__name__ == config["architectures"][0]
    # Their kernels on a CPU compute in bfloat16.
    assert apart(logits(theirs), expected) < (3e-2 if packed else 1e-6)


@pytest.mark.parametrize("kind", ["gpt_oss", "llama4_text", "granitemoe"])
def test_experts_one_by_one_of_others_are_read(made, kind, tmp_path):
    """As llm-compressor has those that a repository stores in stacks: as linear layers."""
    path, artifact, expected = made(kind, INT4)
    facts, quant = read_facts(path, kind), ExistingArtifact(str(artifact.path))
    quant.check(facts)
    found = quant.quantize(SourceModel(facts, "cpu"), None, tmp_path)
    ours = load_dense(found, path, dtype=torch.float32, device="cpu")
    assert torch.equal(logits(ours), expected)
    assert found.size.bpw == artifact.size.bpw


def test_of_others_too_nobody_is_named_who_does_not_load_it(made, tmp_path):
    for kind, said in (("qwen3_moe", ("gptqmodel", "vllm")), ("gpt_oss", ())):
        path, artifact, _ = made(kind, RTN(group_size=32, sym=True))
        facts, quant = read_facts(path, kind), ExistingArtifact(str(artifact.path))
        (out := tmp_path / kind).mkdir()
        assert quant.quantize(SourceModel(facts, "cpu"), None, out).runtimes == said


def test_transformers_is_left_as_it_was():
    pytest.importorskip("gptqmodel")
    import defuser
    from transformers import conversion_mapping
    from transformers.models.mixtral import modeling_mixtral

    before = modeling_mixtral.MixtralSparseMoeBlock
    names = conversion_mapping.get_checkpoint_conversion_mapping
    with transformers_as_it_was("mixtral"):
        defuser.replace_fused_blocks("mixtral")
        assert modeling_mixtral.MixtralSparseMoeBlock is not before
    assert modeling_mixtral.MixtralSparseMoeBlock is before
    assert conversion_mapping.get_checkpoint_conversion_mapping is names
