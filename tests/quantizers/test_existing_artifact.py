"""``quant=artifact``: its key is its content, and what it is not is said in one line."""

import os
import shutil

import pytest

from helpers.artifacts import bad_artifacts, copied, rounded
from qsweep.base.errors import ArtifactCorrupt, ConfigError, IncompatibleTrial, TrialFailed
from qsweep.base.store import Store
from qsweep.formats.artifact import Artifact
from qsweep.formats.dense import load_dense
from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.quantizers.artifact import ExistingArtifact


@pytest.fixture(scope="module")
def base(tiny_model):
    return tiny_model("llama")


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    return rounded(base, tmp_path_factory.mktemp("made") / "my model")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def content(path, store):
    return ExistingArtifact(str(path)).identified(store).content


def test_two_copies_are_one_and_an_overwritten_file_is_another(made, tmp_path, store):
    copy = tmp_path / "elsewhere"
    shutil.copytree(made, copy)
    (copy / "README.md").write_text("of no consequence")
    assert content(copy, store) == content(made, store) is not None
    weights = copy / "model.safetensors"
    stat = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert content(copy, store) != content(made, store)
    # What its codes mean is a part of it, and the name of a GGUF file is none.
    other = copied(
        made, tmp_path / "other", quantization_config={"quant_method": "gptq", "bits": 8}
    )
    assert content(other, store) != content(made, store)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF and so on")
    assert content(tmp_path / "a.gguf", store) == content(tmp_path / "b.gguf", store)


def test_what_changed_since_it_was_planned_is_not_measured(made, tmp_path, store):
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    planned = ExistingArtifact(str(copy)).identified(store)
    planned.require_unchanged(store)
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(TrialFailed, match="changed since the sweep was planned"):
        planned.require_unchanged(store)
    (copy / "model.safetensors").unlink()
    with pytest.raises(TrialFailed, match=r"changed since .*: .*no \*.safetensors"):
        planned.require_unchanged(store)


def test_it_is_called_by_what_it_states_and_by_its_name(made):
    quant = ExistingArtifact(str(made))
    assert quant.label == "gptq 4-bit g64 · my model"
    assert quant.options()["bits"] == 4 and quant.options()["sym"] is True
    assert ExistingArtifact(str(made), "org/name").label == "gptq 4-bit g64 · org/name"
    long = ExistingArtifact(str(made), "org/" + "n" * 80, revision="v2").label
    assert len(long) < 80 and long.endswith("n@v2")
    with pytest.raises(ConfigError, match="give quant.path=FILE"):
        ExistingArtifact()


def test_it_stays_where_it_is_and_is_read_from_there(made, base, tmp_path):
    quant, facts = ExistingArtifact(str(made)), read_facts(base, "tiny")
    quant.check(facts)
    out = tmp_path / "out"
    out.mkdir()
    found = quant.quantize(SourceModel(facts, "cpu"), None, out)
    assert list(out.iterdir()) == [] and found.files == made
    assert found.runtimes == ("gptqmodel", "transformers", "vllm", "exllamav2")
    assert found.details["belonging"]["equal"] == 7
    assert found.details["provenance"]["producer"] == "qsweep:rtn"
    import torch

    here = load_dense(found, base, dtype=torch.float32, device="cpu")
    there = load_dense(Artifact(made, "gptq", found.size), base, dtype=torch.float32, device="cpu")
    pairs = zip(here.state_dict().values(), there.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_an_unquantized_checkpoint_is_read_by_its_weights_alone(base, tmp_path):
    import torch

    own = tmp_path / "own"
    shutil.copytree(base, own)
    facts = read_facts(base, "tiny")
    quant = ExistingArtifact(str(own))
    quant.check(facts)
    (tmp_path / "out").mkdir()
    found = quant.quantize(SourceModel(facts, "cpu"), None, tmp_path / "out")
    assert quant.label == "unquantized · own"
    assert found.details["belonging"]["notes"] == ["every tensor is the model's own"]
    # Its configuration is not what it is built by, nor any code that it names.
    copied_config = (own / "config.json").read_text()
    (own / "config.json").write_text(copied_config.replace("{", '{"auto_map": {"A": "x.A"},', 1))
    model = load_dense(found, base, dtype=torch.float32, device="cpu", trust_remote_code=True)
    assert type(model).__name__ == "LlamaForCausalLM"


def test_bad_ones_are_a_line_each(made, base, tmp_path, store):
    facts = read_facts(base, "tiny")
    for name, (path, message) in bad_artifacts(tmp_path / "bad", made).items():
        quant = ExistingArtifact(str(path)).identified(store)
        with pytest.raises((IncompatibleTrial, ArtifactCorrupt)) as caught:
            quant.check(facts)
        assert message in str(caught.value), name
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        assert quant.label and quant.options()["content"] in (None, quant.content)


def test_another_models_file_is_refused(made, tiny_model, tmp_path):
    facts = read_facts(tiny_model("qwen3"), "qwen")
    with pytest.raises(IncompatibleTrial) as caught:
        ExistingArtifact(str(made)).check(facts)
    assert f"{made}: is not one of qwen: architecture llama instead of qwen3" in str(caught.value)
