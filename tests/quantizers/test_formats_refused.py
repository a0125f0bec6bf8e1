"""What no container holds, and what would be told wrongly: refused, or normalised away."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from qsweep.base.errors import ConfigError, IncompatibleTrial, TrialFailed
from qsweep.formats import numbers
from qsweep.formats.compressed_encoder import CompressedEncoder
from qsweep.formats.numbers.rounding import round_to_nearest
from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.quantizers.gptqmodel import GPTQ
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ
from qsweep.quantizers.rtn import RTN
from qsweep.results.checks import grid_of
from qsweep.sweep.config import number_format


def facts_of(path):
    return read_facts(path, "tiny")


@pytest.mark.parametrize("quantizer", [RTN, NativeGPTQ, NativeAWQ])
@pytest.mark.parametrize(
    "number",
    [
        numbers.MXFP4("gptq"),
        numbers.FP8Dynamic("awq"),
        numbers.NF4("compressed-tensors"),
        numbers.W8A8("bitsandbytes"),
        numbers.Int("gguf"),
    ],
    ids=lambda n: f"{n.name} in {n.container}",
)
def test_a_container_that_does_not_hold_a_format_is_refused(quantizer, number, tiny_model):
    facts = facts_of(tiny_model("llama"))
    with pytest.raises(IncompatibleTrial, match=f"{number.container} does not hold"):
        quantizer(format=number).check(facts)
    with pytest.raises(IncompatibleTrial, match="does not hold"):
        quantizer(format=number).encoder(facts)


def test_another_backends_advice_is_a_way_out(tiny_model):
    facts = facts_of(tiny_model("llama"))
    with pytest.raises(IncompatibleTrial, match="not nvfp4; quant.backend=native does"):
        GPTQ(format=numbers.NVFP4()).check(facts)
    with pytest.raises(IncompatibleTrial, match=r"not container=gguf$"):
        GPTQ(format=numbers.Int("gguf")).check(facts)


def test_groups_that_divide_nothing_and_orders_that_nothing_holds(tiny_model):
    facts = facts_of(tiny_model("llama"))
    with pytest.raises(IncompatibleTrial, match="groups of 100 do not divide"):
        RTN(group_size=100, format=numbers.Int("compressed-tensors")).check(facts)
    with pytest.raises(IncompatibleTrial, match="5 bits|not 5"):
        RTN(bits=5, format=numbers.Int("compressed-tensors")).check(facts)
    with pytest.raises(IncompatibleTrial, match="quant=rtn"):
        NativeGPTQ(format=numbers.NF4(double_quant=True)).check(facts)


def test_models_of_conv1d_layers(tiny_model):
    facts = replace(facts_of(tiny_model("llama")), model_type="gpt2")
    with pytest.raises(IncompatibleTrial, match="Conv1D"):
        RTN(format=numbers.NVFP4()).check(facts)
    RTN(format=numbers.NF4()).check(facts)


def test_equal_formats_are_one_trial():
    named = RTN(format=numbers.W4A16()).options()
    spelt = RTN(bits=4, group_size=128, sym=True, format=numbers.Int("compressed-tensors"))
    assert spelt.options() == named and spelt.format.name == "w4a16"
    assert RTN(bits=3, group_size=32, format=numbers.NVFP4()).options() == (
        RTN(bits=8, group_size=-1, sym=False, format=numbers.NVFP4()).options()
    )
    assert RTN(format=numbers.Int("gptq")).options() == RTN().options()
    assert "double_quant" not in RTN(format=numbers.NF4(double_quant=False)).options()


def test_a_check_compares_equal_formats_alone():
    grids = [
        grid_of(RTN(format=number).options())
        for number in (
            *(numbers.W4A8(), numbers.W4A8(smoothquant=0.5), numbers.NVFP4(), numbers.NF4()),
            *(numbers.NF4(double_quant=True), numbers.MXFP4(), numbers.Int()),
        )
    ]
    assert len({repr(grid) for grid in grids}) == len(grids)


def test_ternary_has_three_levels(tiny_model, tmp_path):
    path = tiny_model("llama")
    RTN(format=numbers.Ternary()).quantize(SourceModel(facts_of(path), "cpu"), None, tmp_path)
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    parts = load_file(tmp_path / "model.safetensors")
    name = next(n for n in parts if n.endswith("weight_packed"))
    shape = torch.Size(parts[name.replace("packed", "shape")].tolist())
    assert set(unpack_from_int32(parts[name], 2, shape).flatten().tolist()) == {-1, 0, 1}


@pytest.mark.parametrize(
    "number", [numbers.Int(), numbers.MXFP4A16(), numbers.MXFP8(), numbers.FP8()]
)
def test_weights_that_are_not_finite_are_named(number, tiny_model, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    original = tiny_model("llama")
    for file in original.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    weights = load_file(source / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "out").mkdir()
    from qsweep.text.calibration import CalibrationTokens

    model, text = SourceModel(facts_of(source), "cpu"), CalibrationTokens([[1, 2, 3, 4]])
    with pytest.raises(TrialFailed, match=r"model.layers.1.mlp.(up|down)_proj: its .* not finite"):
        RTN(format=number).quantize(model, text, tmp_path / "out")


def test_runtimes_are_those_that_run_it(tiny_model):
    assert RTN(bits=3, format=numbers.Int("compressed-tensors")).runtimes == ("transformers",)
    assert "vllm" in RTN(bits=4, format=numbers.Int("compressed-tensors")).runtimes
    encoder = CompressedEncoder("FP8_BLOCK", 8, 128, True, torch.bfloat16)
    assert encoder.read_by("transformers", [(256, 128)])
    assert not encoder.read_by("transformers", [(256, 192)])
    wide = CompressedEncoder("MXFP8", 8, 32, True, torch.float32)
    assert wide.read_by("vllm", []) and not wide.read_by("transformers", [])


def test_what_is_only_derived_from_is_no_choice():
    with pytest.raises(ConfigError, match="only what others are derived from"):
        number_format({"_target_": "qsweep.formats.numbers.NumberFormat"})


def test_global_scales_are_shared_by_what_is_fused_alone(tiny_model, tmp_path):
    path = tiny_model("llama")
    from qsweep.text.calibration import CalibrationTokens

    model, text = SourceModel(facts_of(path), "cpu"), CalibrationTokens([list(range(64))])
    found = {}
    for quantizer in (RTN(format=numbers.NVFP4A16()), NativeGPTQ(format=numbers.NVFP4A16())):
        out = tmp_path / quantizer.method
        out.mkdir()
        quantizer.quantize(model, text, out)
        parts = load_file(out / "model.safetensors")
        found[quantizer.method] = {
            n: float(value) for n, value in parts.items() if n.endswith("global_scale")
        }
    # Rounding to nearest computes in the weights' bfloat16, as llm-compressor does.
    assert found["rtn"] == pytest.approx(found["gptq"], rel=2**-7)
    for layer in range(2):
        for fused in (("self_attn.q", "self_attn.k", "self_attn.v"), ("mlp.gate", "mlp.up")):
            names = [f"model.layers.{layer}.{name}_proj.weight_global_scale" for name in fused]
            assert len({found["gptq"][name] for name in names}) == 1


def test_searching_a_mean_finds_more_than_the_mean():
    w = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    errors = {}
    for search in ("range", "mse"):
        scheme = numbers.Ternary().scheme(2, 128, True, dtype=torch.float16, search=search)
        errors[search] = float(
            (round_to_nearest(w, scheme).dense(torch.float32) - w).square().mean()
        )
    assert errors["mse"] < 0.9 * errors["range"]


def test_a_method_of_one_backend_names_other_methods(tiny_model):
    from qsweep.quantizers.isolated import AutoRound

    with pytest.raises(IncompatibleTrial, match="not nvfp4; quant=gptq, awq and rtn do"):
        AutoRound(format=numbers.NVFP4()).check(facts_of(tiny_model("llama")))
