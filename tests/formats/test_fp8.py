"""Fine-grained FP8 and MXFP4 against transformers' own reading of the same directory."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from helpers.quantized import change, dense, fp8, logits, mxfp4, write_checkpoint
from qsweep.base.errors import ArtifactCorrupt
from qsweep.evaluate.activations import quantized
from qsweep.formats.fp8 import dequantize
from qsweep.formats.recognize import recognize

# What each is configured with, what it is called, and its bits per weight.
VARIANTS = [
    ({}, "fp8 block 128x128", 8 + 32 / 128**2),
    ({"weight_block_size": [64, 32]}, "fp8 block 64x32", 8 + 32 / (64 * 32)),
    ({"weight_block_size": None}, "fp8 tensor", None),
    ({"scale_fmt": "ue8m0"}, "fp8 block 128x128", 8 + 8 / 128**2),
]


def by_owner(path):
    """transformers' own model of the directory; on a CPU it dequantizes."""
    from transformers import AutoModelForCausalLM

    # What it dequantizes of gpt-oss it leaves in bfloat16, and would compute in it.
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().float()


def require_same(ours, owners):
    theirs = dict(owners.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, theirs[name].to(parameter.dtype)), name


@pytest.mark.parametrize(("options", "called", "bpw"), VARIANTS)
def test_every_weight_is_the_owners(tiny_model, tmp_path, options, called, bpw):
    source = tiny_model("llama")
    path = fp8(source, tmp_path / "fp8", **options)
    ours, owners = dense(path, source), by_owner(path)
    require_same(ours, owners)
    assert torch.equal(logits(ours), logits(owners))
    container = recognize(path)
    assert container.name == "fp8"
    types = {tensor.type for tensor in container.stored(path) if tensor.quantized}
    assert types == {called}
    if bpw is not None:
        assert container.size(path).bpw == pytest.approx(bpw)


def test_what_the_checkpoint_leaves_in_16_bits_stays_so(tiny_model, tmp_path):
    # Blocks that do not divide: transformers' own quantization passes such a matrix over.
    source = tiny_model("llama")
    path = fp8(source, tmp_path / "fp8", weight_block_size=[96, 128])
    stored = {tensor.name: tensor for tensor in recognize(path).stored(path)}
    assert not any(tensor.quantized for tensor in stored.values())
    with pytest.raises(ArtifactCorrupt, match="no quantized layer"):
        dense(path, source)


def test_experts_that_are_stored_one_by_one(tiny_model, tmp_path):
    source = tiny_model("deepseek_v2")
    path = fp8(source, tmp_path / "fp8", weight_block_size=[32, 32])
    names = load_file(path / "model.safetensors")
    assert "model.layers.1.mlp.experts.0.up_proj.weight_scale_inv" in names
    ours, owners = dense(path, source), by_owner(path)
    require_same(ours, owners)
    assert torch.equal(logits(ours), logits(owners))


@pytest.mark.parametrize("shape", [(200, 320), (576, 256), (128, 100), (3, 200, 320)])
def test_blocks_at_the_edges_are_cut_off(shape):
    # Oracle: each weight times the scale of the block that it lies in, as DeepSeek's own
    # weight_dequant kernel does; transformers refuses such scales, or spreads them evenly.
    generator = torch.Generator().manual_seed(1)
    codes = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    rows, columns = shape[-2:]
    grid = (-(-rows // 128), -(-columns // 128))
    scale = torch.rand((*shape[:-2], *grid), generator=generator)
    found = dequantize(codes, scale, (128, 128))
    assert found.shape == shape
    row, column = torch.arange(rows) // 128, torch.arange(columns) // 128
    assert torch.equal(found, codes.float() * scale[..., row, :][..., column])


def test_scales_of_a_channel_and_of_stacked_experts():
    generator = torch.Generator().manual_seed(2)
    codes = torch.randn(4, 6, 32, generator=generator).to(torch.float8_e4m3fn)
    per_expert = torch.rand(4, generator=generator)
    per_row = torch.rand(4, 6, 1, generator=generator)
    assert torch.equal(dequantize(codes, per_expert), codes.float() * per_expert[:, None, None])
    assert torch.equal(dequantize(codes, per_row), codes.float() * per_row)
    assert torch.equal(dequantize(codes[0], per_row[0]), codes[0].float() * per_row[0])


def test_experts_in_fp4_beside_layers_in_fp8():
    # DeepSeek-V4: two codes per byte, the low half first, an exponent for 32 weights.
    codes = torch.tensor([[0x21, 0x7F] * 16], dtype=torch.uint8).view(torch.int8)
    exponents = torch.tensor([[128, 126]], dtype=torch.uint8)
    found = dequantize(codes, exponents, (128, 128))
    pattern = torch.tensor([0.5, 1.0, -6.0, 6.0])
    assert torch.equal(found, torch.cat([pattern.repeat(8) * 2, pattern.repeat(8) / 2])[None])


def test_names_of_deepseek_and_of_static_activations(tiny_model, tmp_path):
    source = tiny_model("llama")
    path = fp8(source, tmp_path / "fp8")
    expected = logits(dense(path, source))

    def rename(tensors):
        for name in [n for n in tensors if n.endswith(".weight_scale_inv")]:
            layer = name.removesuffix(".weight_scale_inv")
            tensors[f"{layer}.scale"] = tensors.pop(name)
            tensors[f"{layer}.activation_scale"] = torch.tensor(1.0)

    change(path, rename)
    assert torch.equal(logits(dense(path, source)), expected)


def test_scales_of_an_fp8_cache_are_no_weights(tiny_model, tmp_path):
    """As AutoFP8 and vLLM's users name them, beside one scale for each matrix."""
    source = tiny_model("llama")
    weights = load_file(source / "model.safetensors")
    tensors = {}
    for name, tensor in weights.items():
        tensors[name] = tensor
        if "_proj" in name:
            tensors[f"{name}_scale"] = scale = (tensor.float().abs().max() / 448)[None]
            tensors[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            tensors[name.replace("weight", "input_scale")] = torch.tensor(1.0)
    settings = {"quant_method": "fp8", "activation_scheme": "static"}
    bare = recognize(write_checkpoint(source, tmp_path / "bare", tensors, settings))
    size = bare.size(tmp_path / "bare")
    scales = (
        *("k_scale", "v_scale", "kv_scale", "k_proj.output_scale", "v_proj.output_scale"),
        *("q_proj.act_scale", "q_scale", "prob_scale", "attn.k_scale"),
    )
    attention = "model.layers.0.self_attn"
    tensors |= {f"{attention}.{name}": torch.tensor(0.5) for name in scales}
    tensors["lm_head.input_scale"] = torch.tensor(0.5)  # of a layer that is itself in 16 bits
    path = write_checkpoint(source, tmp_path / "fp8", tensors, settings)
    container = recognize(path)
    found = container.size(path)
    assert (found.bpw, found.parameters) == (size.bpw, size.parameters)
    assert container.differences(path, source) == []
    artifact = container.adopt(path, source, path)
    assert artifact.details["belonging"]["notes"] == []
    dense = container.dense_weights(artifact, source, "cpu")
    assert dense.keys() == weights.keys()
    name = f"{attention}.k_proj.weight"
    expected = tensors[name].float() * tensors[f"{name}_scale"]
    assert torch.equal(dense[name][...], expected)


def test_fbgemm_rows(tiny_model, tmp_path):
    """fbgemm quantizes on a GPU alone: here with the formula of its ``quantize_fp8_per_row``."""
    source = tiny_model("llama")
    tensors, expected = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        tensors[name] = expected[name] = tensor
        if "_proj" in name:
            scale = tensor.float().abs().amax(1, keepdim=True) / 448
            tensors[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale"] = scale
            expected[name] = tensors[name].float() * scale
    settings = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
    path = write_checkpoint(source, tmp_path / "fbgemm", tensors, settings)
    model = dense(path, source)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name].float()), name
    types = {tensor.type for tensor in recognize(path).stored(path) if tensor.quantized}
    assert types == {"fp8 channel"}


def test_gpt_oss(tiny_model, tmp_path):
    source = tiny_model("gpt_oss")
    path = mxfp4(source, tmp_path / "mxfp4")
    ours, owners = dense(path, source), by_owner(path)
    require_same(ours, owners)
    assert torch.equal(logits(ours), logits(owners))
    container = recognize(path)
    quantized = [tensor for tensor in container.stored(path) if tensor.quantized]
    assert {tensor.type for tensor in quantized} == {"mxfp4"}
    assert container.size(path).bpw == 4.25
    # The experts' tensors have their names and shapes of the model, and the router is none of them.
    assert {t.name.rpartition(".")[2] for t in quantized} == {"gate_up_proj", "down_proj"}
    sizes = {name: p.numel() for name, p in ours.named_parameters()}
    assert all(tensor.weights == sizes[tensor.name] for tensor in quantized)


def drop(name):
    return lambda tensors: tensors.pop(name)


def cut(name):
    return lambda tensors: tensors.update({name: tensors[name][..., :1].clone()})


Q = "model.layers.0.self_attn.q_proj"
E = "model.layers.0.mlp.experts.down_proj"


@pytest.mark.parametrize(
    ("made", "architecture", "edit", "said"),
    [
        (fp8, "llama", drop(f"{Q}.weight_scale_inv"), f"{Q} has no scale"),
        (fp8, "llama", drop(f"{Q}.weight"), "left out.*q_proj.weight_scale_inv|missing: .*q_proj"),
        (
            fp8,
            "llama",
            lambda t: t.update({f"{Q}.weight_scale_inv": torch.ones(3, 2)}),
            r"q_proj.weight cannot be read \(scales of the shape \[3, 2\] for weights of "
            r"\[256, 256\] in blocks of 128x128\)",
        ),
        (mxfp4, "gpt_oss", drop(f"{E}_scales"), "experts.down_proj has no scales"),
        (mxfp4, "gpt_oss", drop(f"{E}_blocks"), "experts.down_proj has no blocks"),
        (mxfp4, "gpt_oss", cut(f"{E}_blocks"), r"blocks of the shape \[4, 256, 16, 1\]"),
        (mxfp4, "gpt_oss", cut(f"{E}_scales"), r"scales of the shape \[4, 256, 1\] for blocks"),
    ],
)
def test_damage_is_one_line(tiny_model, tmp_path, made, architecture, edit, said):
    source = tiny_model(architecture)
    path = made(source, tmp_path / "damaged")
    change(path, edit)
    with pytest.raises(ArtifactCorrupt, match=said) as caught:
        dense(path, source)
    assert "\n" not in str(caught.value)


def test_a_shard_that_is_cut_short(tiny_model, tmp_path):
    source = tiny_model("llama")
    path = fp8(source, tmp_path / "fp8")
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ArtifactCorrupt, match="not a whole safetensors file"):
        recognize(path).size(path)


def test_scales_without_a_configuration(tiny_model, tmp_path):
    source = tiny_model("llama")
    path = fp8(source, tmp_path / "fp8")
    config = json.loads((path / "config.json").read_text())
    del config["quantization_config"]["quant_method"]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactCorrupt, match="has no quant_method"):
        recognize(path)
    shutil.rmtree(path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # By DeepSeek's act_quant: the largest of each 128 channels is 448.
        ({}, lambda x: grouped(x, 128)),
        ({"weight_block_size": [64, 32]}, lambda x: grouped(x, 32)),
        ({"scale_fmt": "ue8m0"}, lambda x: grouped(x, 128, lambda s: s.log2().ceil().exp2())),
        ({"weight_block_size": None}, lambda x: grouped(x, 256)),
    ],
)
def test_activations_are_quantized_in_groups_as_wide_as_blocks(
    options, expected, tiny_model, tmp_path
):
    path = fp8(tiny_model("llama"), tmp_path / "fp8", **options)
    found = recognize(path)
    assert found.quantizes_activations(path)
    layers = found.layer_activations(path)
    assert len(layers) == 14
    values = torch.randn(5, 256, generator=torch.Generator().manual_seed(6)) * 7
    inputs = layers["model.layers.0.mlp.up_proj"].inputs
    torch.testing.assert_close(quantized(values, inputs), expected(values), rtol=1e-6, atol=0)


def grouped(values, size, rounded=lambda scale: scale):
    groups = values.unflatten(-1, (-1, size))
    scale = rounded(groups.abs().amax(-1, keepdim=True) / 448)
    return ((groups / scale).to(torch.float8_e4m3fn).float() * scale).flatten(-2)


def test_static_activations_have_one_scale_for_each_layer(tiny_model, tmp_path):
    path = fp8(tiny_model("llama"), tmp_path / "fp8", activation_scheme="static")
    found, layer = recognize(path), "model.layers.1.mlp.down_proj"
    with pytest.raises(ArtifactCorrupt, match="fp8: .* has no input_scale"):
        found.layer_activations(path)

    def scales(tensors):
        for number, name in enumerate([n for n in tensors if n.endswith("weight_scale_inv")]):
            owner = name.removesuffix("weight_scale_inv")
            part = "activation_scale" if number % 2 else "input_scale"
            tensors[f"{owner}{part}"] = torch.tensor(0.25 if owner == f"{layer}." else 1.0)

    change(path, scales)
    layers = found.layer_activations(path)
    assert len(layers) == 14 and layers[layer].inputs.scale.tolist() == [0.25]


def test_fbgemm_cuts_activations_off_first(tiny_model, tmp_path):
    path = fp8(tiny_model("llama"), tmp_path / "fp8", weight_block_size=[1, 256])
    stated = json.loads((path / "config.json").read_text())
    stated["quantization_config"] |= {"quant_method": "fbgemm_fp8", "activation_scale_ub": 44.8}
    (path / "config.json").write_text(json.dumps(stated))
    inputs = recognize(path).layer_activations(path)["model.layers.0.mlp.up_proj"].inputs
    values = torch.tensor([[1.0, 100.0]])
    torch.testing.assert_close(quantized(values, inputs), torch.tensor([[1.0, 44.8]]))
