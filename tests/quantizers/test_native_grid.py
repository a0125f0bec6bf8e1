import json
import os
import time

import pytest
import torch
from safetensors import safe_open

from qsweep.base.errors import ConfigError, IncompatibleTrial, TrialFailed
from qsweep.formats import numbers
from qsweep.formats.dense import load_dense
from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ, columns, quantize_grid
from qsweep.quantizers.native import grid as native_grid
from qsweep.quantizers.rtn import RTN
from qsweep.text.calibration import CalibrationTokens

pytestmark = pytest.mark.usefixtures("one_thread")

# Read when gptqmodel is imported: on two cores its own pools do not fit into theirs.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

SAMPLES = torch.randint(0, 4096, (4, 64), generator=torch.Generator().manual_seed(0)).tolist()
PROBE = torch.randint(0, 4096, (2, 32), generator=torch.Generator().manual_seed(1))
GRID = [
    NativeGPTQ(bits=4, group_size=64),
    NativeGPTQ(bits=3, group_size=32, sym=False, sequential=False, scale_search="loss"),
    NativeGPTQ(bits=8, group_size=-1, sequential=False),
    NativeGPTQ(bits=2, group_size=128, desc_act=True, sym=False, scale_search="mse"),
    NativeGPTQ(bits=3, group_size=64, gptaq_alpha=0.5, scale_search="mse"),
    NativeGPTQ(bits=3, group_size=64, gptq_output_hessian=True, gptaq_alpha=0.5),
    NativeGPTQ(bits=4, group_size=-1, gptq_output_hessian=True, sequential=False),
    NativeAWQ(bits=4, group_size=64),
    NativeAWQ(bits=3, group_size=-1, sym=True, clip=False),
    NativeGPTQ(format=numbers.NVFP4(), scale_search="loss", gptaq_alpha=0.5),
    NativeGPTQ(format=numbers.MXFP4A16()),
    NativeGPTQ(format=numbers.W8A8(smoothquant=0.5)),
    NativeGPTQ(format=numbers.W4A8(smoothquant=0.7), gptaq_alpha=0.5),
    NativeAWQ(format=numbers.NF4()),
    NativeAWQ(format=numbers.FP8Block()),
    RTN(format=numbers.FP8()),
    RTN(format=numbers.W4A8(smoothquant=0.5)),
]


def source(path):
    return SourceModel(read_facts(path, path.name), "cpu")


def tensors(path):
    with safe_open(path / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def quantize(path, grid, root, samples=SAMPLES):
    outs = [root / str(number) for number in range(len(grid))]
    for out in outs:
        out.mkdir(parents=True)
    pairs = list(zip(grid, outs, strict=True))
    return quantize_grid(source(path), CalibrationTokens(samples), pairs)


def logits(artifact, path):
    model = load_dense(artifact, path, dtype=torch.float32, device="cpu")
    return model(PROBE).logits


def reference(path):
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(PROBE).logits


@pytest.fixture(scope="module")
def grid(tiny_model, tmp_path_factory):
    path = tiny_model("llama")
    return path, quantize(path, GRID, tmp_path_factory.mktemp("grid"))


@pytest.mark.parametrize("number", range(len(GRID)))
def test_company_changes_no_bit(grid, tmp_path, number):
    path, artifacts = grid
    (alone,) = quantize(path, [GRID[number]], tmp_path)
    expected = tensors(artifacts[number].path)
    found = tensors(alone.path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert alone.details.get("loss") == artifacts[number].details.get("loss")  # rounding has none


def test_who_shares_statistics_is_solved_along_with_those_who_walk(
    tiny_model, tmp_path, monkeypatch
):
    counts = []
    solve = columns.solve
    monkeypatch.setattr(columns, "solve", lambda w, *rest: counts.append(len(w)) or solve(w, *rest))
    grid = [NativeGPTQ(bits, 64) for bits in (3, 4, 8)]
    quantize(tiny_model("llama"), grid, tmp_path / "all")
    assert set(counts) == {3}
    counts.clear()
    monkeypatch.setattr(native_grid, "rounds_needed", lambda *_: 2)
    quantize(tiny_model("llama"), [NativeGPTQ(2, 64), *grid], tmp_path / "two")
    assert set(counts) == {2}


@pytest.mark.parametrize("rounds", [2, 5])
def test_several_rounds_change_no_bit(grid, tmp_path, monkeypatch, rounds):
    path, artifacts = grid
    monkeypatch.setattr(native_grid, "rounds_needed", lambda *_: rounds)
    for one, other in zip(quantize(path, GRID, tmp_path), artifacts, strict=True):
        expected = tensors(other.path)
        assert all(torch.equal(value, expected[name]) for name, value in tensors(one.path).items())


def test_seconds_of_all_and_of_each_add_up(tiny_model, tmp_path):
    started = time.perf_counter()
    artifacts = quantize(tiny_model("llama"), GRID, tmp_path)
    spent = time.perf_counter() - started
    told = sum(one.details["quantize_s"] for one in artifacts) + artifacts[0].details["shared_s"]
    assert 0.5 * spent < told <= spent + 0.01
    assert artifacts[0].details["shared_s"] > 0
    assert all(one.details["quantize_s"] > 0 for one in artifacts)


def test_a_pass_leaves_gradients_on_and_autocast_off(tiny_model, tmp_path):
    assert torch.is_grad_enabled()
    quantize(tiny_model("llama"), [NativeGPTQ(3, 64), NativeGPTQ(4, 64)], tmp_path)
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_statistics_that_nobody_uses_are_let_go(tiny_model, tmp_path, monkeypatch):
    kept = []
    solve = native_grid._CalibrationText._solve

    def watched(self, index, versions, plain):
        kept.extend(len(version.stats) for version in versions.values())
        solve(self, index, versions, plain)

    monkeypatch.setattr(native_grid._CalibrationText, "_solve", watched)
    path = tiny_model("llama")
    walking, sharing = NativeGPTQ(3, 64, gptaq_alpha=0.5), NativeGPTQ(8, 64)
    quantize(path, [walking, NativeAWQ(4, 64)], tmp_path / "walking")
    assert set(kept) == {0}
    kept.clear()
    quantize(path, [walking, sharing], tmp_path / "sharing")
    assert set(kept) == {4}


def test_more_bits_are_closer(grid):
    path, artifacts = grid
    expected = reference(path)
    errors = {
        quantizer.bits: float((logits(artifact, path) - expected).square().mean())
        for quantizer, artifact in zip(GRID[:4], artifacts[:4], strict=True)
    }
    assert errors[8] < errors[4] < errors[3] < errors[2]
    assert errors[8] < 1e-2 * float(expected.square().mean())


@pytest.mark.parametrize("architecture", ["gemma3_text", "gpt_neox", "qwen3"])
def test_architectures(tiny_model, tmp_path, architecture):
    path = tiny_model(architecture)
    artifacts = quantize(path, [NativeGPTQ(8, 64), NativeAWQ(8, 64)], tmp_path)
    expected = reference(path)
    for artifact in artifacts:
        error = (logits(artifact, path) - expected).square().mean()
        assert error < 1e-2 * expected.square().mean()


def test_artifact_tells_size_losses_and_times(grid):
    path, artifacts = grid
    facts = read_facts(path, "tiny")
    for quantizer, artifact in zip(GRID, artifacts, strict=True):
        settings = json.loads((artifact.path / "config.json").read_text())["quantization_config"]
        assert settings["quant_method"] == artifact.format == quantizer.holder
        if quantizer.format.name == "int":
            assert settings["bits"] == quantizer.bits
        if quantizer.method == "rtn":
            assert "loss" not in artifact.details
        else:
            assert artifact.details["loss"].keys() == facts.linears.keys()
            assert all(loss >= 0 for loss in artifact.details["loss"].values())
        # compressed-tensors keeps integers beside quantized activations in whole bytes.
        bits = 8 if quantizer.format.name == "w4a8" else quantizer.bits
        assert bits < artifact.size.bpw < bits + 1.5
        assert artifact.size.parameters == facts.parameters
        assert artifact.size.linear_weights == sum(r * c for r, c in facts.linears.values())
        assert artifact.details["quantize_s"] > 0
        assert artifact.details["shared_s"] > 0
        assert artifact.details["calibration_tokens"] == 256
        assert (artifact.path / "tokenizer.json").is_file()


def test_scaling_is_folded_without_changing_the_model(tiny_model, tmp_path):
    # At 8 bits rounding is next to nothing, so a scale that is not undone would show.
    path = tiny_model("gemma3_text")
    (artifact,) = quantize(path, [NativeAWQ(8, 32)], tmp_path)
    before, after = tensors(path), tensors(artifact.path)
    name = "model.layers.0.input_layernorm.weight"
    assert not torch.equal(before[name], after[name])
    assert after[name].dtype == before[name].dtype
    scaling = artifact.details["scaling"]["model.layers.0.self_attn.q_proj"]
    assert scaling["into"] == "input_layernorm"
    assert scaling["gain"] <= 1
    expected = reference(path)
    error = (logits(artifact, path) - expected).square().mean()
    assert error < 1e-2 * expected.square().mean()


def test_conv1d(pocket_dir, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128, "vocab_size": 4096}
    config = AutoConfig.for_model("gpt2", **sizes, bos_token_id=0, eos_token_id=0)
    path = tmp_path / "gpt2"
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    (path / "tokenizer.json").write_bytes((pocket_dir / "tokenizer.json").read_bytes())
    (artifact,) = quantize(path, [NativeGPTQ(8, 32)], tmp_path / "out")
    expected = reference(path)
    error = (logits(artifact, path) - expected).square().mean()
    assert error < 1e-3 * expected.square().mean()
    with pytest.raises(IncompatibleTrial, match="Conv1D"):
        NativeAWQ(8, 32).check(read_facts(path, "gpt2"))


def test_tied_weights_stay_tied(tiny_model, tmp_path):
    (artifact,) = quantize(tiny_model("qwen3"), [NativeGPTQ(4, 64)], tmp_path)
    assert "lm_head.weight" not in tensors(artifact.path)


def test_samples_of_several_lengths(tiny_model, tmp_path):
    samples = [*SAMPLES, SAMPLES[0][:40], SAMPLES[1][:40]]
    path = tiny_model("llama")
    (artifact,) = quantize(path, [NativeGPTQ(8, 64)], tmp_path, samples)
    expected = reference(path)
    error = (logits(artifact, path) - expected).square().mean()
    assert error < 1e-2 * expected.square().mean()


def test_one_sample_alone_is_enough(tiny_model, tmp_path):
    # 20 tokens for layers of 256 and 512 inputs: every Gram matrix is singular.
    artifacts = quantize(
        tiny_model("llama"), [NativeGPTQ(4, 64), NativeAWQ(4, 64)], tmp_path, [SAMPLES[0][:20]]
    )
    for artifact in artifacts:
        assert logits(artifact, tiny_model("llama")).isfinite().all()


def test_weights_that_are_not_finite_name_the_layer(tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    model.model.layers[1].input_layernorm.weight.data[0] = float("nan")
    path = tmp_path / "broken"
    model.save_pretrained(path)
    (path / "tokenizer.json").write_bytes((tiny_model("llama") / "tokenizer.json").read_bytes())
    with pytest.raises(
        TrialFailed, match=r"model\.layers\.1\.input_layernorm: its weights are not finite"
    ):
        quantize(path, [NativeGPTQ(4, 64)], tmp_path / "out")


@pytest.mark.parametrize("make", [NativeGPTQ, NativeAWQ])
def test_weights_that_are_nan_name_their_layer(tiny_model, tmp_path, make):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    # The last linear layer: nothing after it would notice.
    model.model.layers[1].mlp.down_proj.weight.data[3, 5] = float("nan")
    path = tmp_path / "broken"
    model.save_pretrained(path)
    (path / "tokenizer.json").write_bytes((tiny_model("llama") / "tokenizer.json").read_bytes())
    with pytest.raises(TrialFailed, match=r"layers\.1\.mlp\.down_proj: its weights are not finite"):
        quantize(path, [make(4, 64)], tmp_path / "out")


@pytest.mark.parametrize("make", [NativeGPTQ, NativeAWQ])
def test_activations_that_are_all_zero_are_no_obstacle(tiny_model, tmp_path, make):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    model.model.layers[1].post_attention_layernorm.weight.data.zero_()
    path = tmp_path / "silent"
    model.save_pretrained(path)
    (path / "tokenizer.json").write_bytes((tiny_model("llama") / "tokenizer.json").read_bytes())
    (artifact,) = quantize(path, [make(8, 64)], tmp_path / "out")
    expected = reference(path)
    error = (logits(artifact, path) - expected).square().mean()
    assert error < 1e-2 * expected.square().mean()


def test_no_calibration_text(tiny_model, tmp_path):
    with pytest.raises(ConfigError, match="calibration"):
        NativeGPTQ(4, 64).quantize(source(tiny_model("llama")), None, tmp_path)


@pytest.mark.parametrize("make", [NativeGPTQ, NativeAWQ])
def test_what_cannot_exist_is_refused_before_any_work(tiny_model, make):
    facts = read_facts(tiny_model("llama"), "tiny")
    with pytest.raises(IncompatibleTrial, match="bits"):
        make(5, 64).check(facts)
    with pytest.raises(IncompatibleTrial, match="group_size=96"):
        make(4, 96).check(facts)
    with pytest.raises(ConfigError, match="sym"):
        make(4, 64, sym="maybe")
    make(4, 64).check(facts)


def test_groups_that_blocks_do_not_hold_are_refused(tiny_model):
    with pytest.raises(IncompatibleTrial, match="multiple of 32"):
        NativeGPTQ(4, 16).check(read_facts(tiny_model("llama"), "tiny"))


def test_effective_options():
    assert NativeGPTQ(4, 64).options()["sym"] is True
    assert NativeAWQ(4, 64).options()["sym"] is False
    assert NativeGPTQ(4, 64, desc_act=True).options()["act_group_aware"] is False
    # One group per output: the columns' order is all that either option changes.
    one = NativeGPTQ(4, -1, desc_act=True, act_group_aware=False).options()
    assert one == NativeGPTQ(4, -1).options()
    with pytest.raises(ConfigError, match="scale_search"):
        NativeGPTQ(scale_search="all")
    with pytest.raises(ConfigError, match="damp_percent"):
        NativeGPTQ(damp_percent=0)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(GRID)))
def test_gptqmodel_loads_it_and_computes_the_same(grid, number):
    pytest.importorskip("gptqmodel", exc_type=ImportError)
    from gptqmodel import BACKEND, GPTQModel

    path, artifacts = grid
    artifact = artifacts[number]
    backend = BACKEND.GPTQ_TORCH if artifact.format == "gptq" else BACKEND.AWQ_TORCH
    native = GPTQModel.load(str(artifact.path), device="cpu", backend=backend, dtype=torch.float16)
    with torch.no_grad():
        found = native.model(PROBE).logits.float()
    expected = logits(artifact, path)
    # float16 weights and sums against float32.
    assert (found - expected).square().mean() < 1e-4 * expected.square().mean()


@pytest.mark.gpu
def test_on_cuda_company_changes_no_bit_and_the_model_stays_close(tiny_model, tmp_path):
    path = tiny_model("llama")
    model = SourceModel(read_facts(path, "tiny"), "cuda:0")
    outs = [tmp_path / str(number) for number in range(2 * len(GRID))]
    for out in outs:
        out.mkdir()
    text = CalibrationTokens(SAMPLES)
    together = quantize_grid(model, text, list(zip(GRID, outs, strict=False)))
    expected = reference(path)
    for quantizer, artifact, out in zip(GRID, together, outs[len(GRID) :], strict=True):
        alone = quantizer.quantize(model, text, out)
        for name, tensor in tensors(artifact.path).items():
            assert torch.equal(tensors(alone.path)[name], tensor), name
        if quantizer.bits == 8:
            error = (logits(artifact, path) - expected).square().mean()
            assert error < 1e-2 * expected.square().mean()
