"""HQQ checkpoints as transformers 4 saved them, against hqq's own layers.

transformers 5.18 neither quantizes with HQQ nor loads it (its quantizer has no operations), so hqq's
own layers write the tensors, in the form that they have for safetensors.
"""

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.quantized import by_transformers, change, dense, logits, write_checkpoint
from qsweep.base.errors import ArtifactCorrupt, ConfigError
from qsweep.formats.recognize import recognize

pytest.importorskip("hqq", reason='pip install "qsweep[hqq]"')

Q = "model.layers.0.self_attn.q_proj"


def save(source, out, nbits, group_size=64, axis=1, compute_dtype=torch.float16):
    """Every linear layer by hqq; gives its own dequantized weights by name."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    config = BaseQuantizeConfig(nbits=nbits, group_size=group_size, axis=axis)
    tensors, expected = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if "_proj" not in name:
            tensors[name] = tensor
            continue
        linear = torch.nn.Linear(tensor.shape[1], tensor.shape[0], bias=False)
        linear.weight.data = tensor.float()
        layer = HQQLinear(linear, config, compute_dtype=compute_dtype, device="cpu")
        expected[name] = layer.dequantize()
        tensors |= {
            f"{name.removesuffix('weight')}{part}": value
            for part, value in layer.state_dict().items()
            if isinstance(value, torch.Tensor)
        }
    settings = {"quant_method": "hqq", "quant_config": config, "skip_modules": ["lm_head"]}
    write_checkpoint(source, out, tensors, settings)
    return expected


@pytest.mark.parametrize(
    ("nbits", "axis", "dtype", "called", "bpw"),
    [
        (4, 1, torch.float16, "int4 g64", 4.5),
        (4, 0, torch.bfloat16, "int4 g64", 4.5),
        (3, 1, torch.float16, "int3 g64", 3.7),
        (2, 1, torch.float32, "int2 g64", 3.0),
        (8, 1, torch.float16, "int8 g64", 8.5),
        (1, 1, torch.float16, "int1 g64", 1.5),
    ],
)
def test_every_weight_is_the_owners(tiny_model, tmp_path, nbits, axis, dtype, called, bpw):
    source, path = tiny_model("llama"), tmp_path / "hqq"
    expected = save(source, path, nbits, axis=axis, compute_dtype=dtype)
    container = recognize(path)
    assert container.name == "hqq"
    assert {t.type for t in container.stored(path) if t.quantized} == {called}
    assert container.size(path).bpw == pytest.approx(bpw, abs=0.1)
    model = dense(path, source)
    for name, weight in expected.items():
        assert torch.equal(model.get_parameter(name), weight.float()), name
    assert logits(model).isfinite().all()


def test_transformers_does_not_write_it(tiny_model, tmp_path):
    # When this fails, it does again: take its own artifacts instead.
    from transformers import HqqConfig

    with pytest.raises(NotImplementedError, match="HQQ is not available yet"):
        by_transformers(tiny_model("llama"), tmp_path / "hqq", HqqConfig(nbits=4, group_size=64))


def text(content):
    return torch.tensor([ord(letter) for letter in content], dtype=torch.uint8)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t.pop(f"{Q}.scale"), f"{Q} has no scale"),
        (lambda t: t.pop(f"{Q}.shape"), f"{Q} has no shape"),
        (
            lambda t: t.update({f"{Q}.packing": text("5bit")}),
            "packed as '5bit', which hqq does not",
        ),
        (lambda t: t.update({f"{Q}.shape": torch.tensor([7, 7])}), f"{Q}.weight cannot be read"),
    ],
)
def test_damage_is_one_line(tiny_model, tmp_path, edit, said):
    source, path = tiny_model("llama"), tmp_path / "hqq"
    save(source, path, 4)
    change(path, edit)
    with pytest.raises(ArtifactCorrupt, match=said) as caught:
        dense(path, source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("nbits", torch.tensor(torch.inf)),
        ("group_size", torch.tensor(torch.nan)),
        ("shape", torch.tensor(7)),
        ("shape", torch.tensor([7.5, 1.0])),
        ("packing", torch.tensor([2**40])),
        ("packing", torch.tensor(-1)),
    ],
)
def test_what_a_layer_says_of_itself_makes_no_sense(tmp_path, part, value):
    save_file({f"{Q}.{part}": value}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "hqq"}}')
    with pytest.raises(ArtifactCorrupt, match=rf"{Q}.{part} cannot be read \(") as caught:
        recognize(tmp_path).settings(tmp_path)
    assert "\n" not in str(caught.value)


def test_nothing_in_a_checkpoint_is_evaluated(tiny_model, tmp_path):
    # hqq's own decode_safetensor_type calls eval() on these bytes.
    source, path, proof = tiny_model("llama"), tmp_path / "hqq", tmp_path / "proof"
    save(source, path, 4)
    code = f"open({str(proof)!r}, 'w')"
    change(path, lambda t: t.update({f"{Q}.unpack_view_dtype": text(code)}))
    with pytest.raises(ArtifactCorrupt, match="which is no dtype"):
        dense(path, source)
    assert not proof.exists()


def test_a_pickle_of_hqqs_own_is_refused(tiny_model, tmp_path):
    source, path = tiny_model("llama"), tmp_path / "hqq"
    save(source, path, 4)
    (path / "model.safetensors").rename(path / "qmodel.pt")
    with pytest.raises(ConfigError, match=r"pickle \(qmodel.pt\), which can run code"):
        recognize(path)
