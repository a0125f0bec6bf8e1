"""llama.cpp computes the function of the model that a file was made from, or the row says so."""

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("llama_cpp")

from qsweep.base.errors import BackendUnavailable  # noqa: E402
from qsweep.formats.artifact import from_content, to_content  # noqa: E402
from qsweep.formats.dense import load_dense  # noqa: E402
from qsweep.formats.gguf.converter import converter_dir  # noqa: E402
from qsweep.formats.gguf.reader import read_gguf  # noqa: E402
from qsweep.models.facts import read_facts  # noqa: E402
from qsweep.models.source import SourceModel
from qsweep.quantizers.conversion.agreement import measure_agreement  # noqa: E402
from qsweep.quantizers.conversion.base import unquantized  # noqa: E402
from qsweep.quantizers.gguf import GGUF  # noqa: E402

try:
    converter_dir()
except BackendUnavailable as error:
    pytest.skip(str(error), allow_module_level=True)


def source_model(path):
    return SourceModel(read_facts(path, path.name), "cpu")


@pytest.fixture
def other_base(tiny_model, tmp_path):
    """A model of the same tensors as Llama's miniature, with another rotary base."""
    path = tmp_path / "other"
    shutil.copytree(tiny_model("llama"), path)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_file_of_another_rotary_base_is_another_function(tiny_model, other_base, tmp_path):
    model = source_model(tiny_model("llama"))
    (out := tmp_path / "out").mkdir()
    with unquantized(model, out) as base:
        assert base.agreement["agrees"] and base.agreement["kld"] < 1e-7
        found = measure_agreement(base.path, "BF16", source_model(other_base), out)
    assert not found.agrees
    assert found.kld > 10 * found.limit


def test_what_llama_cpp_cannot_run_is_told_in_one_line(tiny_model, tmp_path):
    (tmp_path / "base.gguf").write_bytes(b"GGUF, or so it says")
    found = measure_agreement(
        tmp_path / "base.gguf", "F32", source_model(tiny_model("llama")), tmp_path
    )
    assert not found.agrees and found.kld is None
    assert "cannot load it" in found.reason and "\n" not in found.reason


@pytest.mark.parametrize(
    "architecture", ["stablelm", *(pytest.param(n, marks=pytest.mark.slow) for n in ("phi",))]
)
def test_a_rotary_base_that_the_converter_forgets_is_written(architecture, tiny_model, tmp_path):
    source = tiny_model(architecture)
    (out := tmp_path / "out").mkdir()
    artifact = from_content(
        out, to_content(GGUF(type="F32").quantize(source_model(source), None, out))
    )
    key = {"stablelm": "stablelm", "phi": "phi2"}[architecture] + ".rope.freq_base"
    assert artifact.details["metadata_added"] == {key: 1e6}
    assert read_gguf(out / "model.gguf").metadata[key] == 1e6
    assert artifact.details["llama_cpp"]["agrees"]
    assert artifact.runtimes == ("llama.cpp", "ollama")


def test_which_layers_have_a_sliding_window_is_written_where_the_converter_forgets_it(
    tiny_model, tmp_path
):
    path, key = tmp_path / "gemma", "gemma3.attention.sliding_window_pattern"
    shutil.copytree(tiny_model("gemma3_text"), path)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config |= {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 64}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (out := tmp_path / "out").mkdir()
    artifact = GGUF(type="Q8_0").quantize(source_model(path), None, out)
    assert artifact.details["metadata_added"] == {key: [False, True]}
    assert list(read_gguf(out / "model.gguf").metadata[key]) == [False, True]
    assert artifact.details["llama_cpp"]["agrees"], artifact.details["llama_cpp"]
    assert artifact.runtimes == ("llama.cpp", "ollama")


# What the converter did to each: stacked, fused, split, turned, squeezed, put through a function.
REARRANGED = ["deepseek_v2", "falcon", "mamba", "lfm2", "gpt_oss", "falcon_h1", "qwen3_5_text"]


@pytest.mark.parametrize(
    "architecture",
    [REARRANGED[0], *(pytest.param(n, marks=pytest.mark.slow) for n in REARRANGED[1:])],
)
def test_every_tensor_is_led_back(architecture, tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    source = tiny_model(architecture)
    (out := tmp_path / "out").mkdir()
    artifact = GGUF(type="F32").quantize(source_model(source), None, out)
    artifact = from_content(out, json.loads(json.dumps(to_content(artifact))))
    assert artifact.details["llama_cpp"]["agrees"], artifact.details["llama_cpp"]
    expected = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    dense = load_dense(artifact, source, dtype=torch.float32, device="cpu")
    ids = torch.randint(0, 4096, (1, 64), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        p, q = (m(ids, use_cache=False).logits.log_softmax(-1) for m in (expected, dense))
    # A logarithm of an exponential is itself to the last digits only; what is multiplied by factors
    # (Falcon-H1's) was rounded into the file's own type.
    limit = 5e-5 if architecture == "falcon_h1" else 1e-9
    assert float((p.exp() * (p - q)).sum(-1).mean()) < limit


# What the converter would not find, or find wrongly, in what transformers writes of them.
TOLD = [
    *("deepseek_v3", "dots1", "ernie4_5_moe", "exaone_moe", "falcon", "gemma", "glm4_moe_lite"),
    *("gpt2", "hunyuan_v1_moe", "minimax_m2", "ministral3", "phi3", "solar_open"),
]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TOLD)
def test_llama_cpp_computes_what_the_converter_is_told_of(model_type, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "bench")
    from miniatures import miniature

    path = miniature(model_type, tmp_path / "model", dtype="float32")
    (out := tmp_path / "out").mkdir()
    artifact = GGUF(type="Q8_0").quantize(source_model(path), None, out)
    assert artifact.details["llama_cpp"]["agrees"], artifact.details["llama_cpp"]
    assert artifact.details["llama_cpp"]["kld"] < 1e-6
