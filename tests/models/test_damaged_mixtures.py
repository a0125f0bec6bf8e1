"""Mixtures of experts that are damaged or contradict themselves: one line each that says where."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.miniatures import SIZES, build
from qsweep.base.errors import ConfigError, TrialFailed
from qsweep.models.check import fit_problem
from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ
from qsweep.quantizers.rtn import RTN
from qsweep.text.calibration import CalibrationTokens

SAMPLES = torch.randint(5, 500, (2, 48), generator=torch.Generator().manual_seed(0)).tolist()
EXPERTS = {
    **dict.fromkeys(("num_experts", "num_local_experts"), 4),
    **{"num_experts_per_tok": 2, "moe_intermediate_size": 32},
}
MODELS = {
    "qwen3_moe": EXPERTS | {"decoder_sparse_step": 1},
    "mixtral": EXPERTS | {"intermediate_size": 32},
    "gpt_oss": EXPERTS | {"intermediate_size": 32, "layer_types": ["full_attention"] * 2},
}
QUANTIZERS = [RTN(group_size=32), NativeGPTQ(group_size=32), NativeAWQ(group_size=32)]
LAYER = "model.layers.1.mlp"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, pocket_dir):
    folder = tmp_path_factory.mktemp("whole")
    return {
        kind: build(kind, folder / kind, pocket_dir, **SIZES | extra)
        for kind, extra in MODELS.items()
    }


@pytest.fixture
def damaged(whole, tmp_path):
    """A copy of a model with other tensors or settings."""

    def make(kind, edit=None, **settings):
        path = tmp_path / "model"
        shutil.copytree(whole[kind], path)
        if edit is not None:
            tensors = load_file(path / "model.safetensors")
            edit(tensors)
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, path / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | settings))
        return path

    return make


def one_line(error):
    assert "\n" not in str(error)
    return str(error)


def quantized(path, quantizer, out, samples=SAMPLES):
    facts = read_facts(path, "mini")
    quantizer.check(facts)
    out.mkdir()
    return quantizer.quantize(SourceModel(facts, "cpu"), CalibrationTokens(samples), out)


def replaced(name, change):
    return lambda tensors: tensors.update({name: change(tensors[name])})


def spoilt(name, *place, value=float("nan")):
    def edit(tensors):
        tensors[name][place] = value

    return edit


def stack(tensors, layers=(0, 1), *, also_single=False, count=4):
    """The experts of Qwen's layers as one tensor for each kind."""
    for layer in layers:
        prefix = f"model.layers.{layer}.mlp.experts."
        own = [
            [f"{prefix}{e}.{kind}_proj.weight" for kind in ("gate", "up", "down")] for e in range(4)
        ]
        gate_up = [torch.cat([tensors[gate], tensors[up]]) for gate, up, _ in own[:count]]
        tensors[f"{prefix}gate_up_proj"] = torch.stack(gate_up)
        tensors[f"{prefix}down_proj"] = torch.stack([tensors[d] for *_, d in own[:count]])
        if not also_single:
            for names in own:
                for name in names:
                    del tensors[name]


# Numbers that are none: who is to blame is named, as the checkpoint calls it.


@pytest.mark.parametrize(
    ("kind", "edit", "layer"),
    [
        ("qwen3_moe", spoilt(f"{LAYER}.gate.weight", 0, 0), f"{LAYER}.gate"),
        ("qwen3_moe", spoilt(f"{LAYER}.experts.2.up_proj.weight", 0), f"{LAYER}.experts.2.up_proj"),
        (
            "mixtral",
            spoilt("model.layers.0.block_sparse_moe.experts.3.w2.weight", 0, value=float("inf")),
            "model.layers.0.block_sparse_moe.experts.3.w2",
        ),
        ("gpt_oss", spoilt(f"{LAYER}.experts.gate_up_proj", 1, 3, 5), f"{LAYER}.experts.1.up_proj"),
        ("gpt_oss", spoilt(f"{LAYER}.router.bias", 1), f"{LAYER}.router.bias"),
    ],
)
# One pass takes all of the native backend's.
@pytest.mark.parametrize("quantizer", QUANTIZERS[:2], ids=lambda q: q.method)
def test_the_first_weight_that_is_no_number_is_named(
    damaged, tmp_path, quantizer, kind, edit, layer
):
    path = damaged(kind, edit)
    with pytest.raises(TrialFailed) as caught:
        quantized(path, quantizer, tmp_path / "out")
    message = one_line(caught.value)
    assert (
        message == f"{layer}: its weights are not finite (NaN or infinite); fetch the model again"
    )


def grown(tensors):
    for kind in ("w1", "w3"):
        tensors[f"model.layers.1.block_sparse_moe.experts.2.{kind}.weight"].mul_(1e21)


@pytest.mark.parametrize(
    ("quantizer", "told"),
    [
        (NativeAWQ(group_size=32), "experts.2.w2: its inputs are not finite"),
        (NativeGPTQ(group_size=32), "experts.2.w1: its weights are so large that what rounding"),
    ],
)
def test_an_expert_beyond_float32_is_named(damaged, tmp_path, quantizer, told):
    with pytest.raises(TrialFailed) as caught:
        quantized(damaged("mixtral", grown), quantizer, tmp_path / "out")
    message = one_line(caught.value)
    assert message.startswith(f"model.layers.1.block_sparse_moe.{told}")
    assert "fetch the model again" in message or "look at the weights before it" in message


# Experts that are quantized already.


def as_fp8(tensors):
    for name in [n for n in tensors if ".experts." in n]:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.ones(1, 1)


def as_mxfp4(tensors):
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = torch.zeros(*shape, 16, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.zeros(shape, dtype=torch.uint8)


def as_codes(tensors):
    for name in [n for n in tensors if ".experts." in n]:
        rows, columns = tensors.pop(name).shape
        packed = torch.zeros(columns // 8, rows, dtype=torch.int32)
        tensors[f"{name.removesuffix('weight')}qweight"] = packed
        tensors[f"{name.removesuffix('weight')}scales"] = torch.ones(1, rows)


def as_int8(tensors):
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        tensors[name] = tensors[name].to(torch.int8)


@pytest.mark.parametrize(
    ("kind", "edit", "told"),
    [
        ("qwen3_moe", as_fp8, "experts.0.down_proj.weight holds F8_E4M3"),
        ("mixtral", as_codes, "experts.0.w1.qweight holds I32"),
        ("gpt_oss", as_mxfp4, "experts.down_proj_blocks holds U8"),
        ("gpt_oss", as_int8, "experts.down_proj holds I8"),
    ],
)
def test_experts_that_are_quantized_without_a_word_of_it(damaged, whole, kind, edit, told):
    path = damaged(kind, edit)
    with pytest.raises(ConfigError) as caught:
        read_facts(path, "mini")
    message = one_line(caught.value)
    assert told in message and str(path) in message
    assert message.endswith("give the unquantized model they were made from")
    assert read_facts(whole[kind], "mini").experts  # which it does take


# Names and numbers that contradict each other.


def test_experts_that_are_stored_one_by_one_and_together(damaged):
    path = damaged("qwen3_moe", lambda tensors: stack(tensors, also_single=True))
    with pytest.raises(ConfigError) as caught:
        read_facts(path, "mini")
    message = one_line(caught.value)
    assert f"{path}: model.layers.0.mlp.experts.3.up_proj.weight has an expert's weights" in message
    assert "model.layers.0.mlp.experts.down_proj those of all; leave one of them out" in message


@pytest.mark.parametrize("quantizer", QUANTIZERS[:2], ids=lambda q: q.method)
def test_each_way_of_storing_experts_is_taken_also_beside_the_other(damaged, tmp_path, quantizer):
    path = damaged("qwen3_moe", lambda tensors: stack(tensors, layers=(0,)))
    assert fit_problem(path) is None
    assert quantized(path, quantizer, tmp_path / "out").size.bpw < 6


def half_stacked(tensors):
    single = {n: t for n, t in tensors.items() if n.endswith("down_proj.weight")}
    stack(tensors)
    for name in [n for n in tensors if n.endswith("experts.down_proj")]:
        del tensors[name]
    tensors.update(single)


def without(*names):
    def edit(tensors):
        for name in names:
            del tensors[name]

    return edit


def with_one_more(tensors):
    for name in [n for n in tensors if ".experts.3." in n]:
        tensors[name.replace(".experts.3.", ".experts.4.")] = tensors[name].clone()


EXPERT = [f"{LAYER}.experts.2.{kind}_proj.weight" for kind in ("gate", "up", "down")]


@pytest.mark.parametrize(
    ("edit", "settings", "told"),
    [
        (without(EXPERT[1]), {}, f"missing: {EXPERT[1]}"),
        (without(*EXPERT), {}, f"{LAYER}.experts.down_proj ([3, 64, 32], configured [4, 64, 32])"),
        (replaced(EXPERT[1], lambda t: t[:-1]), {}, f"{EXPERT[1]} ([31, 64], others [32, 64])"),
        (with_one_more, {}, "experts.down_proj ([5, 64, 32], configured [4, 64, 32])"),
        (None, {"num_experts": 3, "num_local_experts": 3}, "configured [3, 64, 32])"),
        (
            lambda t: stack(t, count=3),
            {},
            "experts.down_proj ([3, 64, 32], configured [4, 64, 32])",
        ),
    ],
    ids=["part missing", "expert missing", "odd shape", "one more", "fewer said", "short stack"],
)
def test_experts_that_are_not_as_many_or_as_large_as_said(damaged, edit, settings, told):
    problem = fit_problem(damaged("qwen3_moe", edit, **settings))
    assert told in problem and "\n" not in problem


def test_more_experts_for_a_token_than_there_are(damaged):
    path = damaged("qwen3_moe", num_experts_per_tok=5)
    with pytest.raises(ConfigError) as caught:
        read_facts(path, "mini")
    assert one_line(caught.value).endswith("config.json: num_experts_per_tok is 5, of 4 experts")


def test_stacks_beside_single_layers_of_the_same_experts_are_not_taken_apart(damaged):
    facts = read_facts(damaged("qwen3_moe", half_stacked), "mini")
    assert facts.unread_experts == (
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.1.mlp.experts.gate_up_proj",
    )


def test_a_file_that_is_cut_short(damaged):
    path = damaged("mixtral")
    file = path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError) as caught:
        read_facts(path, "mini")
    half = f"({len(whole) // 2} bytes instead of {len(whole)})"
    assert half in one_line(caught.value) and str(file) in str(caught.value)


@pytest.mark.parametrize("quantizer", QUANTIZERS[1:], ids=lambda q: q.method)
def test_text_that_few_experts_see_is_told_and_does_not_stop_it(whole, tmp_path, quantizer):
    artifact = quantized(whole["mixtral"], quantizer, tmp_path / "out", [[7, 9, 7]])
    told = artifact.details["expert_coverage"]["modules"]
    assert any(0 in module["tokens"] for module in told.values())
    weights = load_file(artifact.path / "model.safetensors")
    assert all(w.isfinite().all() for w in weights.values() if w.is_floating_point())
