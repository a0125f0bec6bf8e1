"""GPTQ and rounding on llama.cpp's own grids, written as files that it runs."""

import pytest
import torch

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from helpers.gguf_runs import divergence, native_logits  # noqa: E402
from qsweep.base.errors import BackendUnavailable, IncompatibleTrial  # noqa: E402
from qsweep.base.scratch import OnDisk  # noqa: E402
from qsweep.formats.dense import load_dense  # noqa: E402
from qsweep.formats.gguf.converter import converter_dir  # noqa: E402
from qsweep.formats.gguf.dense import MODEL_FILE, dense_state_dict  # noqa: E402
from qsweep.formats.numbers import Q2K, Q3K, Q4K, Q5K, Q6K, Q80  # noqa: E402
from qsweep.models.facts import read_facts  # noqa: E402
from qsweep.models.source import SourceModel  # noqa: E402
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ, quantize_grid  # noqa: E402
from qsweep.quantizers.native.jobs import Job  # noqa: E402
from qsweep.quantizers.rtn import RTN  # noqa: E402
from qsweep.text.calibration import CalibrationTokens  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

try:
    converter_dir()
except BackendUnavailable as error:
    pytest.skip(str(error), allow_module_level=True)

SAMPLES = torch.randint(0, 4096, (4, 64), generator=torch.Generator().manual_seed(0)).tolist()
IDS = torch.randint(0, 4096, (2, 64), generator=torch.Generator().manual_seed(1))
GRID = {
    "q4_k": NativeGPTQ(format=Q4K()),
    "q3_k": NativeGPTQ(format=Q3K(), gptaq_alpha=0.5),
    "q2_k": NativeGPTQ(format=Q2K(), sequential=False, act_group_aware=False),
    "int": NativeGPTQ(bits=4, group_size=32),
}


def quantize(path, grid, root, samples=SAMPLES):
    # Side by side, so that they find one conversion.
    outs = [root.with_name(f"{root.name}-{number}") for number in range(len(grid))]
    for out in outs:
        out.mkdir(parents=True)
    model = SourceModel(read_facts(path, path.name), "cpu")
    pairs = list(zip(grid, outs, strict=True))
    return quantize_grid(model, CalibrationTokens(samples), pairs)


def load_weights(path):
    from safetensors.torch import load_file

    return {name: tensor.float() for name, tensor in load_file(path / "model.safetensors").items()}


@pytest.fixture(scope="module")
def passed(tiny_model, conversions):
    """The artifacts of one pass by name, and the matrices that were solved."""
    solved = {}
    add = Job._add

    def recorded(job, name, matrix, losses, inputs):
        solved[job._quantizer, name] = matrix.dense(torch.float32)
        add(job, name, matrix, losses, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "_add", recorded)
        made = quantize(tiny_model("llama"), list(GRID.values()), conversions / "solved")
    return dict(zip(GRID, made, strict=True)), solved


@pytest.mark.parametrize(("name", "bpw"), [("q4_k", 4.5), ("q3_k", 3.4375), ("q2_k", 2.625)])
def test_the_dense_model_is_what_was_solved_and_llama_cpp_runs_it(name, bpw, passed, tiny_model):
    artifacts, solved = passed
    artifact, source = artifacts[name], tiny_model("llama")
    assert artifact.format == "gguf"
    assert artifact.size.bpw == bpw
    assert artifact.details["tensor_types"] == {name.upper(): 14}
    assert artifact.details["fallback"] is False
    dense = dense_state_dict(artifact, source)
    # Query and key rows lie in another order in the file.
    for layer in read_facts(source, "llama").linears:
        assert torch.equal(dense[f"{layer}.weight"][...], solved[GRID[name], layer])
    model = load_dense(artifact, source, dtype=torch.float32, device="cpu")
    with torch.inference_mode():
        measured = model(IDS).logits
    assert divergence(measured, native_logits(artifact.path / MODEL_FILE, IDS)) < 2e-3


def test_company_changes_no_bit(passed, tiny_model, conversions):
    artifacts, _ = passed
    (alone,) = quantize(tiny_model("llama"), [GRID["q3_k"]], conversions / "alone")
    together = (artifacts["q3_k"].path / MODEL_FILE).read_bytes()
    assert (alone.path / MODEL_FILE).read_bytes() == together


def test_a_streamed_pass_writes_the_same_and_keeps_finished_layers_on_disk(
    passed, tiny_model, conversions, monkeypatch
):
    artifacts, _ = passed
    rested = []
    keep = OnDisk.keep
    monkeypatch.setattr(OnDisk, "keep", lambda self, t: rested.append(t.shape) or keep(self, t))
    model = SourceModel(read_facts(tiny_model("llama"), "llama"), "cpu", stream=True)
    (out := conversions / "streamed").mkdir()
    pairs = [(GRID["q4_k"], out)]
    (streamed,) = quantize_grid(model, CalibrationTokens(SAMPLES), pairs)
    whole = artifacts["q4_k"].path / MODEL_FILE
    assert (streamed.path / MODEL_FILE).read_bytes() == whole.read_bytes()
    assert len(rested) == len(model.facts.linears)


def test_rounding_to_nearest_is_written_alike(passed, tiny_model, conversions):
    artifacts, _ = passed
    path = tiny_model("llama")
    (out := conversions / "rounded").mkdir()
    model = SourceModel(read_facts(path, "llama"), "cpu")
    rounded = RTN(format=Q4K()).quantize(model, None, out)
    assert rounded.size == artifacts["q4_k"].size
    assert rounded.details["tensor_types"] == {"Q4_K": 14}
    rounded, exact = dense_state_dict(rounded, path), load_weights(path)
    for name in model.facts.linears:
        error = rounded[f"{name}.weight"][...] - exact[f"{name}.weight"]
        assert error.norm() < 0.08 * exact[f"{name}.weight"].norm()


@pytest.mark.slow  # a model of its own is converted
def test_rows_that_super_blocks_do_not_divide(tiny_model, tmp_path):
    import shutil

    from transformers import AutoConfig, AutoModelForCausalLM

    source = tmp_path / "odd"
    config = AutoConfig.from_pretrained(tiny_model("llama"))
    config.hidden_size, config.head_dim = 288, 72
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model("llama") / name, source / name)
    (artifact,) = quantize(source, [NativeGPTQ(format=Q5K())], tmp_path / "out")
    assert artifact.details["tensor_types"] == {"Q5_1": 12, "Q5_K": 2}
    assert artifact.details["fallback"] is True
    weights = load_dense(artifact, source, dtype=torch.float32, device="cpu")
    with torch.inference_mode():
        measured = weights(IDS).logits
    assert divergence(measured, native_logits(artifact.path / MODEL_FILE, IDS)) < 2e-3


def test_effective_options():
    options = NativeGPTQ(2, 128, sym=True, format=Q4K(), scale_search="mse").options()
    assert options["format"] == "q4_k"
    assert (options["bits"], options["group_size"], options["sym"]) == (4, 32, False)
    assert options["scale_search"] == "loss"
    assert NativeGPTQ(format=Q6K()).options()["sym"] is True
    assert NativeGPTQ(format=Q80()).options()["sequential"] is False
    assert NativeGPTQ(format=Q4K()).runtimes == ("llama.cpp", "ollama")


@pytest.mark.parametrize(
    ("quantizer", "line"),
    [
        (NativeAWQ(format=Q4K()), "awq writes no GGUF; gptq and rtn make format=q4_k"),
        (NativeGPTQ(format=Q4K(), desc_act=True), "no order across groups is written into gguf"),
        (RTN(format=Q4K(container="gptq")), "gptq does not hold format=q4_k; container=gguf does"),
    ],
)
def test_what_cannot_exist_is_refused(quantizer, line, tiny_model):
    with pytest.raises(IncompatibleTrial, match=line):
        quantizer.check(read_facts(tiny_model("llama"), "llama"))
