"""GPTQ and AWQ through GPTQModel: what is refused, and real runs against its own kernels."""

import importlib.metadata
import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from qsweep.base.errors import BackendUnavailable, ConfigError, IncompatibleTrial
from qsweep.formats.dense import load_dense
from qsweep.formats.hf import reference_artifact
from qsweep.models.facts import read_facts
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.quantizers.gptqmodel import AWQ, GPTQ
from qsweep.quantizers.gptqmodel.families import FAILING, defined_types
from qsweep.quantizers.gptqmodel.run import _require_experts
from qsweep.quantizers.native import NativeAWQ
from qsweep.quantizers.rtn import RTN
from qsweep.text.calibration import CalibrationTokens

GENERATOR = torch.Generator().manual_seed(11)
CALIBRATION = CalibrationTokens(torch.randint(0, 4096, (8, 128), generator=GENERATOR).tolist())
IDS = torch.randint(0, 4096, (2, 96), generator=GENERATOR)


def test_effective_options():
    assert GPTQ().options() == {
        "bits": 4,
        "group_size": 128,
        "desc_act": False,
        "act_group_aware": True,
        "sym": True,
        "damp_percent": 0.05,
    }
    assert AWQ().options() == {"bits": 4, "group_size": 128, "sym": False}
    both = (GPTQ(desc_act=True, act_group_aware=flag).options() for flag in (True, False))
    assert next(both) == next(both)
    assert GPTQ(group_size=-1).options()["act_group_aware"] is False
    assert GPTQ(sym="auto").options() == GPTQ(sym=True).options()
    assert AWQ(sym="auto").options() == AWQ(sym=False).options()


@pytest.mark.parametrize("damp", [0.0, 1.0, -1.0])
def test_damp_percent_is_a_share(damp):
    with pytest.raises(ConfigError, match="damp_percent"):
        GPTQ(damp_percent=damp)


def facts(path, shape=(64, 128), model_type="llama"):
    (path / "config.json").write_text("{}")
    return ModelFacts("m", path, model_type, {"h.0.attn.c_proj": shape}, 1000, 512, 100)


@pytest.mark.parametrize("kind", [GPTQ, AWQ])
@pytest.mark.parametrize("bits", [5, 6, 7, 16])
def test_widths_that_the_formats_lack(kind, bits, tmp_path):
    with pytest.raises(IncompatibleTrial, match=f"writes 2, 3, 4 or 8 bits, not {bits}"):
        kind(bits=bits).check(facts(tmp_path))


def test_group_size_names_layer_and_alternatives(tmp_path):
    with pytest.raises(IncompatibleTrial, match=r"576 inputs of h.0.attn.c_proj; .*: 16, 32, 64, "):
        AWQ(group_size=128).check(facts(tmp_path, (576, 576)))
    GPTQ(group_size=64).check(facts(tmp_path, (576, 576)))


def test_conv1d_is_for_gptq_only(tmp_path):
    GPTQ().check(facts(tmp_path, model_type="gpt2"))
    with pytest.raises(IncompatibleTrial, match="Conv1D"):
        AWQ().check(facts(tmp_path, model_type="gpt2"))


def test_missing_backend_names_the_command(tmp_path, monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert GPTQ().version() == "missing"
    with pytest.raises(BackendUnavailable, match=r'pip install "qsweep\[gptqmodel\]"'):
        GPTQ().check(facts(tmp_path))


def test_calibration_is_needed(tmp_path):
    pytest.importorskip("gptqmodel")
    with pytest.raises(ConfigError, match="needs calibration"):
        AWQ().quantize(SourceModel(facts(tmp_path), "cpu"), None, tmp_path)


def test_device_with_a_number_is_refused(tmp_path):
    pytest.importorskip("gptqmodel")
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES=1"):
        GPTQ().quantize(SourceModel(facts(tmp_path), "cuda:1"), CALIBRATION, tmp_path)


@pytest.fixture(scope="module")
def native():
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    os.environ.setdefault("GPTQMODEL_DISABLE_PACK_EXT", "1")
    return pytest.importorskip("gptqmodel")


def log_probabilities(model):
    with torch.no_grad():
        return model(IDS.to(model.device)).logits.float().log_softmax(-1).cpu()


def divergence(first, second):
    return (first.exp() * (first - second)).sum(-1).mean().item()


class Run:
    """One quantization with its dense model and the reference."""

    def __init__(self, path, quantizer, out, device="cpu"):
        self.facts = read_facts(path, "mini")
        self.steps = []
        quantizer.check(self.facts)
        self.artifact = quantizer.quantize(
            SourceModel(self.facts, device),
            CALIBRATION,
            out,
            lambda step, done: self.steps.append((step, done)),
        )
        self.dense = self.load(self.artifact)
        self.kld = divergence(self.load(reference_artifact(self.facts)), self.dense)

    def load(self, artifact):
        return log_probabilities(
            load_dense(artifact, self.facts.path, dtype=torch.float32, device="cpu")
        )

    def native_kld(self, native):
        kind = self.artifact.format.upper()
        model = native.GPTQModel.load(
            str(self.artifact.path),
            device="cpu",
            backend=native.BACKEND[f"{kind}_TORCH"],
            dtype=torch.float16,
        )
        # Eager: its kernels compile themselves, which takes longer than all else here.
        with torch.compiler.set_stance("force_eager"):
            return divergence(self.dense, log_probabilities(model.model))


@pytest.mark.parametrize(
    ("quantizer", "bpw"),
    [(GPTQ(bits=4, group_size=64), 4 + 20 / 64), (AWQ(bits=4, group_size=64), 4 + 20 / 64)],
)
def test_llama(native, tiny_model, tmp_path, quantizer, bpw):
    path = tiny_model("llama")
    run = Run(path, quantizer, tmp_path)
    assert run.native_kld(native) < 1e-5
    (tmp_path / "rtn").mkdir()
    nearest = RTN(bits=4, group_size=64, sym=quantizer.options()["sym"])
    rounded = nearest.quantize(SourceModel(run.facts, "cpu"), None, tmp_path / "rtn")
    assert run.kld < divergence(run.load(reference_artifact(run.facts)), run.load(rounded))

    weights = sum(rows * columns for rows, columns in run.facts.linears.values())
    inputs = sum(columns for _, columns in run.facts.linears.values())
    indices = 32 * inputs / weights if quantizer.method == "gptq" else 0
    assert run.artifact.size.bpw == pytest.approx(bpw + indices)
    assert run.artifact.size.parameters == run.facts.parameters
    assert set(run.artifact.details["layer_loss"]) == {
        name.removeprefix("model.layers.") for name in run.facts.linears
    } - ({"0.self_attn.o_proj", "1.self_attn.o_proj"} if quantizer.method == "awq" else set())

    # The frame is the source's: dtype, tokenizer, generation settings; nothing is left over.
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("quantization_config")["quant_method"] == quantizer.method
    assert config == json.loads((path / "config.json").read_text())
    names = {file.name for file in path.iterdir()} | {"quantize_config.json", "rtn"}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert (tmp_path / "tokenizer_config.json").read_bytes() == (
        path / "tokenizer_config.json"
    ).read_bytes()
    shares = [done for step, done in run.steps if step.startswith("layer ")]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert run.steps[-1][0] == "write"


def test_awq_is_read_by_transformers(native, tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    run = Run(tiny_model("llama"), AWQ(bits=4), tmp_path)
    assert "transformers" in run.artifact.runtimes
    served = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu", dtype=torch.float16)
    assert divergence(run.dense, log_probabilities(served)) < 1e-4


def test_eight_bits_are_nearly_exact(native, tiny_model, tmp_path):
    # Weights lost in the search would show here.
    run = Run(tiny_model("qwen3"), AWQ(bits=8), tmp_path)
    assert run.kld < 1e-3


@pytest.mark.parametrize("model_type", ["gemma3_text", "gpt_neox", "phi3"])
def test_models_that_its_awq_breaks_are_refused_even_before_it_is_installed(
    model_type, tmp_path, monkeypatch
):
    monkeypatch.setattr(AWQ, "version", lambda self: "missing")
    with pytest.raises(IncompatibleTrial, match=f"{model_type} .* quant.backend=native") as caught:
        AWQ(group_size=64).check(facts(tmp_path, model_type=model_type))
    assert not isinstance(caught.value, BackendUnavailable)
    # The way out is open, and GPTQ's is not closed.
    NativeAWQ(group_size=64).check(facts(tmp_path, model_type=model_type))
    with pytest.raises(BackendUnavailable):
        monkeypatch.setattr(GPTQ, "version", lambda self: "missing")
        GPTQ(group_size=64).check(facts(tmp_path, model_type=model_type))


@pytest.mark.parametrize("kind", [GPTQ, AWQ])
def test_mixtures_that_it_has_no_definition_of_are_refused(kind, tmp_path, monkeypatch):
    pytest.importorskip("gptqmodel")
    mixture = replace(facts(tmp_path, model_type="qwen3_moe"), experts=True)
    kind(group_size=64).check(mixture)
    unknown = replace(mixture, model_type="jetmoe")
    with pytest.raises(IncompatibleTrial, match=r"gptqmodel 7\S* has no definition of jetmoe"):
        kind(group_size=64).check(unknown)
    with pytest.raises(IncompatibleTrial, match="given granitemoe, writes one expert"):
        kind(group_size=64).check(replace(mixture, model_type="granitemoe"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="given jamba, needs mamba-ssm: pip install"):
        kind(group_size=64).check(replace(mixture, model_type="jamba"))
    # The way out is open.
    NativeAWQ(group_size=64).check(unknown)
    # Of dense models, it finds the layers by itself.
    kind(group_size=64).check(replace(unknown, experts=False))


def test_its_own_table_says_what_it_has_a_definition_of(native):
    from gptqmodel.models.auto import SUPPORTED_MODELS

    assert defined_types() == {name.lower() for name in SUPPORTED_MODELS}


def test_experts_that_are_left_in_16_bits_are_found(tmp_path):
    settings = SimpleNamespace(kept=["l.0.experts.0.down_proj"])

    def written(**tensors):
        save_file({k: torch.zeros(v) for k, v in tensors.items()}, tmp_path / "model.safetensors")
        _require_experts(settings, tmp_path)

    (tmp_path / "config.json").write_text("{}")
    packed = {"l.0.experts.0.up_proj.qweight": (8, 64), "l.0.experts.0.up_proj.scales": (1, 64)}
    # Nor is a layer that is to be kept, or one of another part, left by mistake.
    odd = {"l.0.experts.0.down_proj.weight": (64, 40), "l.0.self_attn.q_proj.weight": (64, 64)}
    written(**packed, **odd)
    for name, shape in (("0.down_proj.weight", (64, 64)), ("gate_up_proj", (4, 64, 64))):
        with pytest.raises(IncompatibleTrial, match=f"left 1 tensors of experts .*{name}"):
            written(**packed, **{f"l.1.experts.{name}": shape})


@pytest.mark.slow
@pytest.mark.parametrize("kind", [GPTQ, AWQ])
def test_a_mixture_is_the_same_model_to_its_maker_and_to_us(native, tiny_model, tmp_path, kind):
    run = Run(tiny_model("qwen3_moe"), kind(bits=4, group_size=32), tmp_path)
    assert run.native_kld(native) < 1e-5
    assert run.kld < 0.1
    weights = sum(rows * columns for rows, columns in run.facts.linears.values())
    assert run.artifact.size.linear_weights == weights


@pytest.mark.slow
@pytest.mark.parametrize("model_type", FAILING)
def test_mixtures_that_it_still_fails_on(native, model_type, tmp_path, monkeypatch):
    """Where this fails, the library has learnt it: take the type out of ``FAILING``."""
    monkeypatch.setattr("qsweep.quantizers.gptqmodel.families.FAILING", {})
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "bench")
    from miniatures import miniature

    path = miniature(model_type, tmp_path / "model", dtype="float32")
    (tmp_path / "out").mkdir()
    with pytest.raises((AttributeError, TypeError, ValueError, IncompatibleTrial)):
        Run(path, GPTQ(bits=4, group_size=32), tmp_path / "out")


@pytest.mark.slow
def test_its_awq_still_breaks_gpt_neox(native, tiny_model, tmp_path, monkeypatch):
    """Where this fails, the library has learnt it: take the type out of ``UNSCALABLE``."""
    monkeypatch.setattr("qsweep.quantizers.gptqmodel.UNSCALABLE", frozenset())
    assert Run(tiny_model("gpt_neox"), AWQ(bits=8), tmp_path).kld > 0.1


ARCHITECTURES = [
    *((kind, name) for kind in (GPTQ, AWQ) for name in ("llama", "qwen3", "mistral")),
    *((GPTQ, name) for name in ("gemma3_text", "gpt_neox")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "architecture"), ARCHITECTURES)
def test_architectures(native, tiny_model, tmp_path, kind, architecture):
    found = []
    for bits in (8, 3):
        out = tmp_path / str(bits)
        out.mkdir()
        run = Run(tiny_model(architecture), kind(bits=bits), out)
        assert run.native_kld(native) < 1e-5
        found.append(run.kld)
    assert found[0] < 1e-3 < found[1]


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    "quantizer",
    [
        lambda bits: GPTQ(bits, 32, desc_act=True),
        lambda bits: GPTQ(bits, -1, sym=False),
        lambda bits: GPTQ(bits, 64, act_group_aware=False),
        lambda bits: AWQ(bits, 32),
        lambda bits: AWQ(bits, -1, sym=True),
    ],
)
def test_options_in_the_native_runtime(native, tiny_model, tmp_path, bits, quantizer):
    run = Run(tiny_model("llama"), quantizer(bits), tmp_path)
    assert run.native_kld(native) < 1e-5
    settings = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert settings["bits"] == bits


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", [GPTQ(bits=3), AWQ(bits=3)])
def test_same_input_same_bytes(native, tiny_model, tmp_path, quantizer):
    for name in "ab":
        (tmp_path / name).mkdir()
        Run(tiny_model("llama"), quantizer, tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.slow
def test_offloading_changes_nothing(native, tiny_model, tmp_path, monkeypatch):
    from qsweep.quantizers.gptqmodel import run as gptqmodel_run

    for limit in (10**9, 0):
        monkeypatch.setattr(gptqmodel_run, "_OFFLOAD_PARAMETERS", limit)
        (tmp_path / str(limit)).mkdir()
        Run(tiny_model("llama"), GPTQ(), tmp_path / str(limit))
    first, second = (tmp_path / n / "model.safetensors" for n in ("0", str(10**9)))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("kind", [GPTQ, AWQ])
def test_on_cuda(native, tiny_model, tmp_path, kind, bits):
    run = Run(tiny_model("llama"), kind(bits=bits), tmp_path, device="cuda:0")
    assert run.native_kld(native) < 1e-5
    assert run.kld < {3: 1.0, 4: 0.2, 8: 1e-3}[bits]
