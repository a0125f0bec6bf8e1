"""EXL3 checkpoints against GPTQModel's own loading and run of the same directory.

Quantizing to EXL3 takes a GPU, so the paths through the trellis are drawn: any bits are one.
"""

import os

import pytest
import torch
from safetensors.torch import load_file

from helpers.quantized import change, dense, logits, write_checkpoint
from qsweep.base.errors import ArtifactCorrupt
from qsweep.formats.recognize import recognize

pytest.importorskip("gptqmodel", reason='pip install "qsweep[gptqmodel]"')

Q = "model.layers.0.self_attn.q_proj"


def save(source, out, bits, codebook=None):
    generator = torch.Generator().manual_seed(bits)
    tensors, storage = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if "_proj" not in name:
            tensors[name] = tensor
            continue
        outputs, inputs = tensor.shape
        shape = (inputs // 16, outputs // 16, 16 * bits)
        layer = name.removesuffix(".weight")
        made = {
            "trellis": torch.randint(-(2**15), 2**15, shape, generator=generator).to(torch.int16),
            "suh": torch.randn(inputs, generator=generator).sign().half() / 16,
            "svh": torch.randn(outputs, generator=generator).sign().half(),
        }
        if codebook is not None:
            made[codebook] = torch.tensor(0, dtype=torch.int32)
        tensors |= {f"{layer}.{part}": tensor for part, tensor in made.items()}
        storage[layer] = {
            "quant_format": "exl3",
            "bits_per_weight": bits,
            "stored_tensors": {
                f"{layer}.{part}": {
                    "shape": list(value.shape),
                    "torch_dtype": str(value.dtype).removeprefix("torch."),
                }
                for part, value in made.items()
            },
        }
    settings = {
        "quant_method": "exl3", "format": "exl3", "bits": bits,
        "tensor_storage": storage,
    }  # fmt: skip
    return write_checkpoint(source, out, tensors, settings)


@pytest.mark.parametrize(("bits", "codebook"), [(4, "mcg"), (3, "mul1"), (2, None)])
def test_every_weight_is_the_owners(tiny_model, tmp_path, bits, codebook):
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    from gptqmodel import BACKEND, GPTQModel

    source = tiny_model("llama")
    path = save(source, tmp_path / "exl3", bits, codebook)
    container = recognize(path)
    assert container.name == "exl3"
    assert {t.type for t in container.stored(path) if t.quantized} == {f"trellis {bits} bits"}
    assert container.size(path).bpw == pytest.approx(bits, abs=0.15)
    ours = dense(path, source)
    owner = GPTQModel.load(str(path), device="cpu", backend=BACKEND.EXL3_TORCH).model.eval().float()
    for name, parameter in ours.named_parameters():
        if "_proj" in name:
            layer = owner.get_submodule(name.removesuffix(".weight"))
            assert torch.equal(parameter, layer.get_weight_tensor(torch.float32).T), name
    assert parameter.isfinite().all()
    torch.testing.assert_close(logits(ours), logits(owner), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t.pop(f"{Q}.suh"), f"{Q} has no suh"),
        (lambda t: t.update({f"{Q}.svh": torch.ones(5)}), r"svh of the shape \[5\], not \[256\]"),
        (
            lambda t: t.update({f"{Q}.trellis": torch.ones(16, 16, 7, dtype=torch.int16)}),
            r"a trellis of the shape \[16, 16, 7\]",
        ),
    ],
)
def test_damage_is_one_line(tiny_model, tmp_path, edit, said):
    source = tiny_model("llama")
    path = save(source, tmp_path / "exl3", 4)
    change(path, edit)
    with pytest.raises(ArtifactCorrupt, match=said):
        dense(path, source)
