import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qsweep.base.errors import IncompatibleTrial
from qsweep.formats.gguf.checkpoint import open_checkpoint
from qsweep.formats.gguf.dense import weight_of  # noqa: E402
from qsweep.formats.gguf.ggml import dequantize
from qsweep.formats.gguf.layout import derive
from qsweep.formats.gguf.reader import read_gguf
from qsweep.formats.gguf.rows import find_order, from_file, to_file
from qsweep.formats.gguf.rules import Layout, Rule, from_json, to_json

gguf = pytest.importorskip("gguf")


def matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_llamas_reordering_is_found_by_its_effect():
    # Row h * 64 + half * 32 + i of the checkpoint is row h * 64 + 2 * i + half of the file.
    source, stored = matrix(256, 16), torch.empty(256, 16)
    for head in range(4):
        for half in range(2):
            for i in range(32):
                stored[head * 64 + 2 * i + half] = source[head * 64 + half * 32 + i]
    found = find_order(source, stored)
    assert found == ((4, 2, 32), (0, 2, 1))
    assert torch.equal(from_file(stored, *found), source)


def test_neox_heads_and_their_biases():
    source = matrix(96, 8)
    stored = torch.cat([source.view(4, 3, 8, 8)[:, i].reshape(-1, 8) for i in range(3)])
    assert find_order(source, stored) == ((4, 3, 8), (1, 0, 2))
    assert find_order(source[:, 0], stored[:, 0]) == ((4, 3, 8), (1, 0, 2))


def test_any_other_order_is_listed():
    source = matrix(64, 8)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    assert torch.equal(find_order(source, source[order]), order)


def test_other_rows_are_no_order():
    assert find_order(matrix(64, 8), matrix(64, 8, seed=1)) is None


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 2, 4)])
@pytest.mark.parametrize("axes", [(1, 0, 2), (0, 2, 1), (2, 0, 1), (1, 2, 0)])
def test_from_file_inverts_to_file(shape, axes):
    source = matrix(24, 5)
    assert torch.equal(from_file(to_file(source, shape, axes), shape, axes), source)


SOURCE = {
    "embed.weight": matrix(32, 16),
    "head.weight": matrix(32, 16),
    "layers.0.q.weight": matrix(32, 16, 1),
    "layers.1.q.weight": matrix(32, 16, 2),
    "layers.0.norm.weight": matrix(1, 16, 3)[0],
    "layers.1.norm.weight": matrix(1, 16, 4)[0],
    "layers.0.conv.weight": matrix(16, 48, 5),
    "layers.1.conv.weight": matrix(16, 48, 6),
    "layers.0.experts.0.up.weight": matrix(8, 16, 7),
    "layers.0.experts.1.up.weight": matrix(8, 16, 8),
    "layers.0.mixed.weight": matrix(32, 16, 9),
    "layers.0.rotary.inv_freq": torch.ones(4),
    "vision.weight": matrix(4, 4),
}
ORDER = torch.randperm(32, generator=torch.Generator().manual_seed(5))


def stored_form():
    both = ("layers.0.experts.0.up.weight", "layers.0.experts.1.up.weight")
    form = {
        "token_embd.weight": SOURCE["embed.weight"],
        "blk.0.ffn_up_exps.weight": torch.stack([SOURCE[name] for name in both]),
        "blk.0.mixed.weight": SOURCE["layers.0.mixed.weight"][ORDER],
        "rope_freqs.weight": torch.ones(4),
    }
    groups = [
        (["embed.weight"], ["token_embd.weight"]),
        (list(both), ["blk.0.ffn_up_exps.weight"]),
        (["layers.0.mixed.weight"], ["blk.0.mixed.weight"]),
    ]
    for i in range(2):
        q, norm, conv = (SOURCE[f"layers.{i}.{part}.weight"] for part in ("q", "norm", "conv"))
        form[f"blk.{i}.attn_q.weight"] = to_file(q, (2, 2, 8), (0, 2, 1))
        form[f"blk.{i}.attn_norm.weight"] = norm + 1
        form[f"blk.{i}.conv.weight"] = conv.T.contiguous()
        for ours, theirs in (("q", "attn_q"), ("norm", "attn_norm"), ("conv", "conv")):
            groups.append(([f"layers.{i}.{ours}.weight"], [f"blk.{i}.{theirs}.weight"]))
    return form, groups


def open_both(folder, form):
    save_file(SOURCE, folder / "model.safetensors")
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    for name, tensor in form.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return open_checkpoint(folder), read_gguf(folder / "model.gguf")


def test_every_rule_is_derived_folded_and_inverted(tmp_path):
    form, groups = stored_form()
    checkpoint, file = open_both(tmp_path, form)
    found = derive(checkpoint, file, groups, ["vision.weight"], ["layers.0.q.weight"])
    content = to_json(found, checkpoint.infos)
    assert content["layers.*.q.weight"]["tensor"] == "blk.*.attn_q.weight"
    assert content["layers.*.norm.weight"] == {"tensor": "blk.*.attn_norm.weight", "add": 1.0}
    assert content["layers.*.conv.weight"] == {"tensor": "blk.*.conv.weight", "transpose": True}
    # A copy of the embedding that the file does not repeat.
    assert content["head.weight"] == {"tensor": "token_embd.weight"}
    assert "vision.weight" not in content and len(content) == 8
    back = from_json(content, checkpoint.infos, found.orders)
    assert back.rules == found.rules
    for name, rule in back.rules.items():
        stored = form[rule.tensor]
        stored = stored if rule.slice is None else stored[rule.slice]
        assert torch.allclose(back.restore(name, stored), SOURCE[name], atol=1e-6), name


def test_an_unexplained_tensor_is_named(tmp_path):
    form, groups = stored_form()
    form["blk.1.attn_q.weight"] = form["blk.1.attn_q.weight"] * 1.5
    checkpoint, file = open_both(tmp_path, form)
    with pytest.raises(IncompatibleTrial, match=r"layers\.1\.q\.weight"):
        derive(checkpoint, file, groups, ["vision.weight"], [])


def test_a_tensor_from_nowhere_is_named(tmp_path):
    form, groups = stored_form()
    form["blk.0.surprise.weight"] = matrix(4, 4, 11)
    checkpoint, file = open_both(tmp_path, form)
    with pytest.raises(IncompatibleTrial, match=r"blk\.0\.surprise\.weight"):
        derive(checkpoint, file, groups, ["vision.weight"], [])


def test_a_linear_layer_may_not_be_left_out(tmp_path):
    form, groups = stored_form()
    checkpoint, file = open_both(tmp_path, form)
    with pytest.raises(IncompatibleTrial, match=r"vision\.weight"):
        derive(checkpoint, file, groups, ["vision.weight"], ["vision.weight"])


@pytest.mark.parametrize(
    ("shape", "stored", "dropped", "rule"),
    [
        ((1, 256), (1, 256), (256,), {}),
        ((256,), (1, 256), (256,), {"slice": 0}),
        ((8, 256), (1, 8, 256), (8, 256), {"slice": 0}),
    ],
)
def test_leading_axes_of_one_that_quantizing_drops_come_back(
    tmp_path, shape, stored, dropped, rule
):
    source = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    save_file({"w.weight": source}, tmp_path / "model.safetensors")
    for name, size in (("model.gguf", stored), ("quantized.gguf", dropped)):
        writer = gguf.GGUFWriter(tmp_path / name, "llama")
        writer.add_tensor("w", source.reshape(size).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    checkpoint = open_checkpoint(tmp_path)
    layout = derive(checkpoint, read_gguf(tmp_path / "model.gguf"), [(["w.weight"], ["w"])], [], [])
    assert to_json(layout, checkpoint.infos)["w.weight"] == {"tensor": "w", **rule}
    quantized = read_gguf(tmp_path / "quantized.gguf")
    assert torch.equal(weight_of("w.weight", layout, quantized, shape), source)


def test_only_what_a_converter_writes_beside_packed_weights_is_a_factor(tmp_path):
    generator = np.random.default_rng(0)
    nvfp4 = generator.integers(0, 256, (2, 4, 36), np.uint8)
    nvfp4[:, :, :4] = 0x38  # scales of one
    plain = generator.normal(size=(2, 64)).astype(np.float32)
    down, router, query = (f"blk.0.{part}" for part in ("ffn_down_exps", "ffn_gate_inp", "attn_q"))
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "gemma4")
    for name, packed in ((down, nvfp4), (query, nvfp4[0])):
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.NVFP4)
    writer.add_tensor(f"{router}.weight", plain)
    writer.add_tensor("blk.0.attn_output.weight", plain)
    for name, count in ((down, 2), (router, 64), (query, 1), ("blk.0.attn_output", 1)):
        writer.add_tensor(f"{name}.scale", np.arange(3, 3 + count, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(tmp_path / "model.gguf")
    rules = {
        "experts": Rule(f"{down}.weight"), "expert": Rule(f"{down}.weight", slice=1),
        "router": Rule(f"{router}.weight"), "query": Rule(f"{query}.weight"),
        "out": Rule("blk.0.attn_output.weight"),
    }  # fmt: skip
    parameters = {"scale": Rule(f"{router}.scale"), "per_expert_scale": Rule(f"{down}.scale")}
    whole = dequantize(file, f"{down}.weight", torch.float32)

    def read(name, shape, rules):
        return weight_of(name, Layout(rules, {}), file, shape)

    # NVFP4's factors, one or one for each expert; a router's scale of each input is none.
    assert torch.equal(read("query", (4, 64), rules), 3 * whole[0])
    assert torch.equal(read("expert", (4, 64), rules), 4 * whole[1])
    expected = whole * torch.tensor([3.0, 4.0]).reshape(2, 1, 1)
    assert torch.equal(read("experts", (2, 4, 64), rules), expected)
    for name in ("router", "out"):
        assert torch.equal(read(name, (2, 64), rules), torch.from_numpy(plain))
    # Gemma 4's of each expert is a parameter of its own, whatever the experts are stored as.
    assert torch.equal(read("experts", (2, 4, 64), rules | parameters), whole)
    assert torch.equal(read("expert", (4, 64), rules | parameters), whole[1])
