import dataclasses

import pytest
import torch

pytest.importorskip("llama_cpp")

from helpers.gguf_runs import divergence  # noqa: E402
from helpers.gguf_runs import native_logits as run_natively  # noqa: E402
from qsweep.base.errors import (  # noqa: E402
    ArtifactCorrupt,
    BackendUnavailable,
    IncompatibleTrial,
    TrialFailed,
)
from qsweep.formats.artifact import from_content, to_content  # noqa: E402
from qsweep.formats.dense import load_dense  # noqa: E402
from qsweep.formats.gguf.converter import converter_dir  # noqa: E402
from qsweep.formats.gguf.dense import MODEL_FILE, dense_state_dict  # noqa: E402
from qsweep.formats.gguf.native import NativeModel, quantize_file  # noqa: E402
from qsweep.formats.gguf.reader import read_gguf  # noqa: E402
from qsweep.formats.gguf.types import file_type  # noqa: E402
from qsweep.formats.numbers import (  # noqa: E402
    FP8,
    MXFP4,
    MXFP4A16,
    NVFP4,
    NVFP4A16,
    Int,
    Ternary,
)
from qsweep.models.facts import read_facts  # noqa: E402
from qsweep.models.source import SourceModel
from qsweep.quantizers.conversion.base import unquantized  # noqa: E402
from qsweep.quantizers.gguf import GGUF  # noqa: E402
from qsweep.quantizers.gguf.foreign import difference  # noqa: E402
from qsweep.quantizers.importance import measure_importance  # noqa: E402
from qsweep.text.calibration import CalibrationTokens

try:
    converter_dir()
except BackendUnavailable as error:
    pytest.skip(str(error), allow_module_level=True)

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3", "mistral", "gemma3_text")]
ARCHITECTURES = ["llama", *SLOW, pytest.param("gpt_neox", marks=pytest.mark.slow)]
IDS = torch.randint(0, 4096, (2, 96), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def quantized(tiny_model, conversions):
    """``quantized("llama", GGUF(bits=4))``: the artifact as the store would give it back."""

    def make(architecture, quantizer, calibration=None):
        source = tiny_model(architecture)
        facts = read_facts(source, architecture)
        options = quantizer.options()
        out = conversions / f"{architecture}-{options['type']}-{options['imatrix']}"
        out.mkdir(exist_ok=True)
        artifact = quantizer.quantize(SourceModel(facts, "cpu"), calibration, out)
        return from_content(out, to_content(artifact)), source

    return make


def original(source):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()


def logits_of(model):
    with torch.inference_mode():
        return model(IDS).logits


def dense(artifact, source):
    return load_dense(artifact, source, dtype=torch.float32, device="cpu")


def native_logits(artifact):
    return run_natively(artifact.path / MODEL_FILE, IDS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_unquantized_file_is_the_model_itself(architecture, quantized):
    artifact, source = quantized(architecture, GGUF(type="F32"))
    expected = logits_of(original(source))
    assert torch.equal(logits_of(dense(artifact, source)), expected)
    # llama.cpp keeps keys and values in float16, whence what little it differs by.
    assert divergence(expected, native_logits(artifact)) < 1e-5
    assert artifact.size.bpw == 32
    half, _ = quantized(architecture, GGUF(type="F16"))
    assert torch.allclose(logits_of(dense(half, source)), expected, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("bits", [4, 8])
def test_dense_weights_are_those_that_llama_cpp_runs(architecture, bits, quantized):
    artifact, source = quantized(architecture, GGUF(bits=bits))
    expected, measured = logits_of(original(source)), logits_of(dense(artifact, source))
    native = native_logits(artifact)
    # It rounds activations to 8 bits, which is little beside what the weights lost.
    assert divergence(measured, native) < 2e-3
    assert divergence(expected, measured) > 0
    if bits == 4:
        assert divergence(expected, measured) > 10 * divergence(measured, native)


@pytest.mark.parametrize(
    ("format", "type_", "bpw", "others"),
    [
        (NVFP4(), "NVFP4", 4.5, "Q8_0"),
        (MXFP4(), "MXFP4", 4.25, "Q8_0"),
        (Ternary(), "TQ2_0", 2.0625, "Q6_K"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_number_format_is_written_as_the_type_that_has_its_weights(
    format, type_, bpw, others, quantized
):
    quantizer = GGUF(format=format)
    artifact, source = quantized("llama", quantizer)
    assert artifact.details["tensor_types"] == {type_: 14}
    assert others in artifact.details["other_tensor_types"]
    assert artifact.size.bpw == bpw
    stated = read_gguf(artifact.path / MODEL_FILE).metadata["general.file_type"]
    assert stated == quantizer.file_type.number
    assert divergence(logits_of(dense(artifact, source)), native_logits(artifact)) < 2e-3


def test_a_number_format_is_the_trial_of_its_type():
    assert GGUF(format=Int()).options() == {"bits": 4, "type": "Q4_K_M", "imatrix": False}
    named = GGUF(type="NVFP4").options()
    assert GGUF(2, format=NVFP4()).options() == GGUF(8, format=NVFP4A16()).options() == named
    assert GGUF(format=MXFP4()).options() == GGUF(format=MXFP4A16()).options()


@pytest.mark.parametrize(
    ("quantizer", "line"),
    [
        (GGUF(format=FP8()), "no type with the weights of format=fp8; it has those of nvfp4"),
        (GGUF(type="Q4_0", format=NVFP4()), "quant.type=Q4_0 and format=nvfp4 both name a type"),
        (GGUF(format=Int(container="gptq")), "container=gptq is written by rtn, gptq and awq"),
    ],
)
def test_what_gguf_has_no_type_for_is_refused(quantizer, line, tiny_model):
    with pytest.raises(IncompatibleTrial, match=line):
        quantizer.check(read_facts(tiny_model("llama"), "llama"))


def test_the_artifact_says_what_it_stores(quantized):
    artifact, source = quantized("llama", GGUF(bits=4))
    file, facts = read_gguf(artifact.path / MODEL_FILE), read_facts(source, "llama")
    linears = [
        t for name, t in file.tensors.items() if name.startswith("blk.") and len(t.shape) > 1
    ]
    assert artifact.size.linear_weights == sum(a * b for a, b in facts.linears.values())
    assert artifact.size.parameters == facts.parameters
    assert artifact.size.bpw == pytest.approx(
        8 * sum(t.nbytes for t in linears) / sum(t.weights for t in linears)
    )
    assert 4.5 < artifact.size.bpw < 5.5
    assert artifact.size.weight_bytes == (artifact.path / MODEL_FILE).stat().st_size
    assert sum(artifact.details["tensor_types"].values()) == len(facts.linears) == 14
    assert artifact.details["fallback"] is False
    assert artifact.details["tensors"]["model.layers.*.self_attn.q_proj.weight"]["rows"] == (
        (4, 2, 32),
        (0, 2, 1),
    )
    assert artifact.runtimes == ("llama.cpp", "ollama")
    names = {p.name for p in artifact.path.iterdir()}
    assert {"config.json", "tokenizer.json", MODEL_FILE} <= names
    assert not any(name.endswith(".safetensors") for name in names)


def test_a_file_of_another_converter_is_taken_only_if_it_is_laid_out_as_ours(
    tiny_model, conversions, tmp_path
):
    source = tiny_model("llama")
    model = SourceModel(read_facts(source, "llama"), "cpu")
    (out := conversions / "laid-out").mkdir()
    with unquantized(model, out) as base:
        path = tmp_path / "other.gguf"
        for name in ("Q2_K", "Q8_0"):
            quantize_file(base.path, path, file_type(name), None)
            assert difference(base, read_gguf(path)) is None
        # Without the reordering of query and key rows that llama.cpp expects.
        name = "model.layers.0.self_attn.q_proj.weight"
        straight = dataclasses.replace(base.layout.rules[name], rows=None)
        layout = dataclasses.replace(base.layout, rules={**base.layout.rules, name: straight})
        other = dataclasses.replace(base, layout=layout)
        assert "its rows are in another order" in difference(other, read_gguf(path))
        renamed = dataclasses.replace(straight, tensor="blk.0.query.weight")
        layout = dataclasses.replace(base.layout, rules={**base.layout.rules, name: renamed})
        other = dataclasses.replace(base, layout=layout)
        assert difference(other, read_gguf(path)) == "it has no tensor blk.0.query.weight"


def test_a_damaged_file_is_corrupt(quantized, tmp_path):
    artifact, source = quantized("llama", GGUF(bits=8))
    content = (artifact.path / MODEL_FILE).read_bytes()
    (tmp_path / MODEL_FILE).write_bytes(content[: len(content) // 2])
    damaged = dataclasses.replace(artifact, path=tmp_path)
    with pytest.raises(ArtifactCorrupt, match="truncated"):
        dense_state_dict(damaged, source)
    with pytest.raises(ArtifactCorrupt, match=r"llama\.cpp cannot load it"):
        NativeModel(tmp_path / MODEL_FILE, context=8, batch=8, gpu=None, threads=1)


def test_llama_cpps_own_reason_is_passed_on(quantized, tmp_path):
    artifact, _ = quantized("llama", GGUF(type="F16"))
    source = artifact.path / MODEL_FILE
    with pytest.raises(TrialFailed, match="imatrix"):
        quantize_file(source, tmp_path / "out.gguf", file_type("IQ2_XS"), None)


@pytest.fixture(scope="module")
def calibration():
    generator = torch.Generator().manual_seed(2)
    return CalibrationTokens(torch.randint(0, 4096, (8, 64), generator=generator).tolist())


def test_an_importance_matrix_lowers_the_weighted_error(quantized, calibration):
    plain, source = quantized("llama", GGUF(bits=2))
    weighted, _ = quantized("llama", GGUF(bits=2, imatrix=True), calibration)
    assert weighted.details["imatrix_entries"] == 14
    assert weighted.size == plain.size
    facts = read_facts(source, "llama")
    importance = measure_importance(SourceModel(facts, "cpu"), calibration).importance
    weights = original(source).state_dict()

    def error(artifact, name):
        difference = dense_state_dict(artifact, source)[f"{name}.weight"][...]
        difference = difference - weights[f"{name}.weight"]
        return float((difference.square() * importance[name]).sum())

    # Where all channels are driven alike there is nothing to gain, but never anything to lose.
    gains = [error(weighted, name) / error(plain, name) for name in facts.linears]
    assert max(gains) < 1.02
    assert sum(gain < 0.99 for gain in gains) >= 7


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_S", "IQ3_XXS", "IQ3_M", "IQ4_NL", "IQ4_XS", "TQ2_0"]
)
def test_every_kind_of_type_runs(name, quantized, calibration):
    artifact, source = quantized("llama", GGUF(type=name, imatrix=True), calibration)
    measured = logits_of(dense(artifact, source))
    assert divergence(measured, native_logits(artifact)) < 5e-3


@pytest.mark.slow
def test_rows_that_no_block_divides_fall_back(tiny_model, tmp_path):
    import shutil

    from transformers import AutoConfig, AutoModelForCausalLM

    source = tmp_path / "odd"
    config = AutoConfig.from_pretrained(tiny_model("llama"))
    config.hidden_size, config.head_dim = 288, 72
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model("llama") / name, source / name)
    (out := tmp_path / "out").mkdir()
    model = SourceModel(read_facts(source, "odd"), "cpu")
    artifact = GGUF(bits=4).quantize(model, None, out)
    assert artifact.details["fallback"] is True
    assert {"Q5_0", "Q8_0"} <= set(artifact.details["tensor_types"])
    assert divergence(logits_of(dense(artifact, source)), native_logits(artifact)) < 2e-3


def test_a_known_importance_matrix_is_taken(tiny_model, calibration, conversions, monkeypatch):
    from qsweep.quantizers import importance

    model = SourceModel(read_facts(tiny_model("llama"), "llama"), "cpu")
    known = measure_importance(model, calibration).importance
    monkeypatch.setattr(importance, "measure_importance", lambda *_: pytest.fail("measured again"))

    def written(name, calibration):
        (out := conversions / f"known-{name}").mkdir()
        GGUF(bits=2, imatrix=True).quantize(model, calibration, out)
        return (out / MODEL_FILE).read_bytes()

    first = written("first", dataclasses.replace(calibration, importance=known))
    assert first == written("again", dataclasses.replace(calibration, importance=known))
    other = {name: values.flip(0) for name, values in known.items()}
    assert first != written("other", dataclasses.replace(calibration, importance=other))
