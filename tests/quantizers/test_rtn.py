"""Round to nearest: every code against all levels of its grid; the artifact in its own runtime."""

import json

import pytest
import torch

from qsweep.base.errors import ConfigError, IncompatibleTrial
from qsweep.formats.dense import load_dense
from qsweep.formats.hf import reference_artifact
from qsweep.formats.numbers.rounding import round_to_grid
from qsweep.models.facts import read_facts
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.quantizers.none import Unquantized
from qsweep.quantizers.rtn import RTN


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, -1])
def test_codes_are_the_nearest_levels(sym, bits, group_size):
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(bits)) / 30
    grid = round_to_grid(weight, bits, group_size, sym)
    size = 64 if group_size == -1 else group_size
    for row in range(6):
        for column in range(64):
            scale = float(grid.scales[row, column // size])
            zero = int(grid.zeros[row, column // size])
            levels = [scale * (code - zero) for code in range(2**bits)]
            chosen = levels[int(grid.codes[row, column])]
            value = float(weight[row, column])
            nearest = min(abs(level - value) for level in levels)
            assert abs(chosen - value) == pytest.approx(nearest, abs=1e-7)
    if sym:
        assert (grid.zeros == 2 ** (bits - 1)).all()


def test_asymmetric_groups_reach_both_ends():
    weight = torch.linspace(-0.3, 0.9, 32)[None]
    grid = round_to_grid(weight, 4, -1, sym=False)
    assert {0, 15} <= set(grid.codes[0].tolist())
    error = (grid.dense(torch.float32) - weight).abs().max()
    assert error <= grid.scales.max() * 0.51


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("value", [0.0, 0.7, -0.7, 1e-9])
def test_constant_groups(sym, value):
    grid = round_to_grid(torch.full((2, 32), value), 4, 32, sym)
    found = grid.dense(torch.float32)
    assert torch.isfinite(found).all()
    assert (found - value).abs().max() <= float(grid.scales.max()) * 0.51


def test_options_resolve_auto():
    assert RTN(sym="auto").options() == RTN(sym=None).options() == RTN(sym=False).options()
    assert RTN(sym=True).options()["sym"] is True


@pytest.mark.parametrize("values", [{"bits": 0}, {"group_size": 0}, {"group_size": -2}])
def test_impossible_values(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        RTN(**values)


def facts(path, linears):
    return ModelFacts("mini", path, "llama", linears, 1000, 512, 100)


@pytest.mark.parametrize(
    ("quantizer", "shape", "message"),
    [
        (RTN(bits=5), (64, 64), "not 5; gguf has 5 and 6"),
        (RTN(group_size=128), (64, 192), r"layers.0.up_proj; for this model: 16, 32, 64, -1"),
        (RTN(group_size=48), (64, 96), "no kernel runs group_size=48"),
        (RTN(group_size=-1), (48, 64), "is 48 x 64"),
        (RTN(group_size=-1), (64, 48), "is 64 x 48"),
    ],
)
def test_incompatible_shapes(tmp_path, quantizer, shape, message):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(IncompatibleTrial, match=message):
        quantizer.check(facts(tmp_path, {"layers.0.up_proj": shape}))


@pytest.fixture(scope="module")
def llama(tiny_model):
    return read_facts(tiny_model("llama"), "llama")


def log_probabilities(model):
    ids = torch.randint(0, 4096, (2, 96), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return model(ids).logits.float().log_softmax(-1)


def divergence(first, second):
    return (first.exp() * (first - second)).sum(-1).mean().item()


def test_more_bits_are_better_and_sizes_add_up(llama, tmp_path):
    reference = log_probabilities(
        load_dense(reference_artifact(llama), llama.path, dtype=torch.float32, device="cpu")
    )
    found = []
    weights = sum(rows * columns for rows, columns in llama.linears.values())
    for bits in (2, 3, 4, 8):
        out = tmp_path / str(bits)
        out.mkdir()
        quantizer = RTN(bits=bits, group_size=64)
        quantizer.check(llama)
        artifact = quantizer.quantize(SourceModel(llama, "cpu"), None, out)
        dense = load_dense(artifact, llama.path, dtype=torch.float32, device="cpu")
        found.append(divergence(reference, log_probabilities(dense)))
        # A scale of 16 bits and a zero point per group, an index of 32 bits per input.
        indices = 32 * sum(columns for _, columns in llama.linears.values()) / weights
        assert artifact.size.bpw == pytest.approx(bits + (16 + bits) / 64 + indices)
        assert artifact.size.linear_weights == weights
        assert artifact.size.parameters == llama.parameters
        assert artifact.size.weight_bytes == (out / "model.safetensors").stat().st_size
    assert found == sorted(found, reverse=True)
    assert found[-1] < 1e-3 < found[-2]


def test_artifact_carries_the_tokenizer(llama, tmp_path):
    from transformers import AutoTokenizer

    RTN().quantize(SourceModel(llama, "cpu"), None, tmp_path)
    own, source = (AutoTokenizer.from_pretrained(p) for p in (tmp_path, llama.path))
    text = "def f(x): return x\n"
    assert own(text).input_ids == source(text).input_ids
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == (llama.path / name).read_bytes()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("quantization_config")["bits"] == 4
    assert config == json.loads((llama.path / "config.json").read_text())


def test_progress_ends_at_one(llama, tmp_path):
    steps = []
    RTN().quantize(SourceModel(llama, "cpu"), None, tmp_path, lambda *step: steps.append(step))
    assert len(steps) == len(llama.linears)
    assert steps[-1] == ("round", 1.0)


def test_same_input_same_bytes(llama, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        RTN(bits=3).quantize(SourceModel(llama, "cpu"), None, tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.parametrize(("bits", "sym"), [(4, True), (3, False), (2, False), (8, True)])
def test_native_runtime_agrees(llama, tmp_path, bits, sym):
    native = pytest.importorskip("gptqmodel")
    artifact = RTN(bits=bits, sym=sym).quantize(SourceModel(llama, "cpu"), None, tmp_path)
    assert "gptqmodel" in artifact.runtimes
    served = native.GPTQModel.load(
        str(tmp_path), device="cpu", backend=native.BACKEND.GPTQ_TORCH, dtype=torch.float16
    )
    dense = load_dense(artifact, llama.path, dtype=torch.float32, device="cpu")
    expected = log_probabilities(dense)
    # Eager: its kernels compile themselves, which takes longer than all else here.
    with torch.compiler.set_stance("force_eager"):
        assert divergence(expected, log_probabilities(served.model)) < 1e-5


def test_transformers_agrees(llama, tmp_path):
    pytest.importorskip("optimum")
    from transformers import AutoModelForCausalLM

    artifact = RTN(sym=True).quantize(SourceModel(llama, "cpu"), None, tmp_path)
    dense = load_dense(artifact, llama.path, dtype=torch.float32, device="cpu")
    served = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu")
    expected = log_probabilities(dense)
    assert divergence(expected, log_probabilities(served)) < 1e-5


def test_unquantized_refers_to_the_source(llama, tmp_path):
    artifact = Unquantized().quantize(SourceModel(llama, "cpu"), None, tmp_path)
    assert artifact.path == llama.path
    assert artifact.format == "hf"
    assert list(tmp_path.iterdir()) == []
    assert artifact.size.bpw == artifact.size.bpw_total == 16
    assert artifact.size.parameters == llama.parameters
    assert not (llama.path / "manifest.json").exists()
