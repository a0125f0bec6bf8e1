"""Predicted divergences beside those of models in which the layer was really swapped."""

import math
import shutil
from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr

from qsweep.base.errors import BackendUnavailable, ConfigError, TrialFailed
from qsweep.formats.dense import load_dense
from qsweep.formats.hf import reference_artifact
from qsweep.models.experts import attach_experts
from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.quantizers.gguf import GGUF
from qsweep.quantizers.native.graph import linears_of, set_weight, weight_of
from qsweep.quantizers.native.network import load_network
from qsweep.quantizers.rtn import RTN
from qsweep.quantizers.sensitivity.predict import sensitivities
from qsweep.text.calibration import CalibrationTokens
from qsweep.text.corpora import calibration_samples, load_documents
from qsweep.text.corpus import CorpusConfig

RANDOM = CalibrationTokens(
    torch.randint(5, 400, (4, 48), generator=torch.Generator().manual_seed(0)).tolist()
)


def source(path):
    return SourceModel(read_facts(path, path.name), "cpu")


def quantized(quantizer, path, out, text=None):
    out.mkdir(exist_ok=True)
    return quantizer.quantize(source(path), text, out)


def dense(artifact, path):
    model = load_dense(artifact, path, dtype=torch.float32, device="cpu")
    attach_experts(model)
    return model


@cache
def text(path, seed, samples=8):
    from transformers import AutoTokenizer

    documents = load_documents(CorpusConfig("python", "python", split="calibration"))
    return calibration_samples(documents, AutoTokenizer.from_pretrained(path), samples, 128, seed)


class Swaps:
    """Divergence per token of a model some of whose weights are an artifact's."""

    def __init__(self, artifact, path, ids):
        self.model, self.other = (
            dense(reference_artifact(read_facts(path, "m")), path),
            dense(artifact, path),
        )
        self.ids = torch.tensor(ids)
        self.plain = self.logs()

    def logs(self):
        with torch.no_grad():
            return torch.log_softmax(self.model(input_ids=self.ids).logits, -1)

    def swapped(self, *names):
        ours, theirs = linears_of(self.model), linears_of(self.other)
        before = {name: weight_of(ours[name]) for name in names}
        for name in names:
            set_weight(ours[name], weight_of(theirs[name]))
        found = float((self.plain.exp() * (self.plain - self.logs())).sum(-1).mean())
        for name in names:
            set_weight(ours[name], before[name])
        return found


@pytest.mark.parametrize("fixture", ["pocket_dir", "mixture_dir", "hybrid_dir"])
def test_predictions_rank_as_measured_swaps_do_and_are_as_large(request, fixture, tmp_path):
    path = request.getfixturevalue(fixture)
    artifact = quantized(RTN(bits=3, group_size=32), path, tmp_path / "out")
    (found,) = sensitivities(source(path), text(path, 1), {"rtn": artifact}).values()
    assert found.keys() == read_facts(path, "m").linears.keys()
    swaps = Swaps(artifact, path, text(path, 2, 4).samples)
    # One expert by itself sees too little of so short a text.
    alike = {}
    for name in found:
        alike.setdefault(name.partition(".experts.")[0], []).append(name)
    pairs = [
        (sum(found[name] for name in names), swaps.swapped(*names)) for names in alike.values()
    ]
    assert spearmanr(*zip(*pairs, strict=True)).statistic > 0.9
    logs = [math.log(one / other) for one, other in pairs]
    routed = len(alike) < len(found)
    # That an error before a router sends tokens to other experts has no gradient: it is missing.
    assert (-0.8 if routed else -0.2) < sum(logs) / len(logs) < 0.2
    # All at once they cost what they cost one by one.
    whole = swaps.swapped(*found)
    assert (0.5 if routed else 0.75) < sum(found.values()) / whole < 1.25


def test_every_candidate_by_itself_and_the_same_again(pocket_dir, tmp_path):
    made = {
        bits: quantized(RTN(bits=bits, group_size=64), pocket_dir, tmp_path / str(bits))
        for bits in (2, 8)
    }
    both = sensitivities(source(pocket_dir), RANDOM, made)
    alone = sensitivities(source(pocket_dir), RANDOM, {8: made[8]})
    assert both[8] == alone[8]
    assert all(both[2][name] > 100 * value > 0 for name, value in both[8].items())
    other = sensitivities(source(pocket_dir), RANDOM, {8: made[8]}, seed=1)
    assert other[8] != alone[8]
    assert sum(other[8].values()) == pytest.approx(sum(alone[8].values()), rel=0.3)


def test_what_an_artifact_keeps_costs_nothing(pocket_dir, tmp_path):
    rounding = RTN(bits=3, group_size=64, rules={"*.layers.1.*": "keep"})
    artifact = quantized(rounding, pocket_dir, tmp_path / "out")
    (found,) = sensitivities(source(pocket_dir), RANDOM, {"": artifact}).values()
    assert found.keys() == read_facts(pocket_dir, "m").linears.keys()
    assert all((value == 0) == (".layers.1." in name) for name, value in found.items())


def test_somebody_else_may_look_at_what_the_output_feels(pocket_dir, tmp_path):
    artifact = quantized(RTN(bits=3, group_size=64), pocket_dir, tmp_path / "out")
    products = {}

    def look(seen):
        products[seen.name] = seen.gradients.T @ seen.gradients

    sensitivities(source(pocket_dir), RANDOM, {"": artifact}, look=look)
    linears = read_facts(pocket_dir, "m").linears
    assert {name: len(value) for name, value in products.items()} == {
        name: outputs for name, (outputs, _) in linears.items()
    }


def test_no_text_and_weights_that_are_no_numbers(pocket_dir, tmp_path):
    artifact = quantized(RTN(bits=4, group_size=64), pocket_dir, tmp_path / "out")
    with pytest.raises(ConfigError, match="calibration=NAME"):
        sensitivities(source(pocket_dir), CalibrationTokens([]), {"": artifact})
    shutil.copytree(pocket_dir, tmp_path / "nan")
    file = tmp_path / "nan" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.2.self_attn.v_proj.weight"][3, 4] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(TrialFailed, match=r"model\.layers\.2\.self_attn\.v_proj"):
        sensitivities(source(tmp_path / "nan"), RANDOM, {"": artifact})


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma3_text"])
def test_embeddings_and_head_of_a_file_of_llama_cpp(architecture, tiny_model, conversions):
    pytest.importorskip("llama_cpp")
    path = tiny_model(architecture)
    try:
        out = conversions / f"ends-{architecture}"
        artifact = quantized(GGUF(type="Q4_0"), path, out)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    (found,) = sensitivities(source(path), RANDOM, {"": artifact}).values()
    network = load_network(source(path))
    tied = network.lm_head.weight is network.model.embed_tokens.weight
    assert tied == (architecture != "llama")
    ends = {"model.embed_tokens"} | (set() if tied else {"lm_head"})
    assert found.keys() - read_facts(path, "m").linears.keys() == ends
    swaps = Swaps(artifact, path, RANDOM.samples)
    for name in ends:
        ours, theirs = (model.get_submodule(name) for model in (swaps.model, swaps.other))
        with torch.no_grad():
            ours.weight.copy_(theirs.weight)
            measured = float((swaps.plain.exp() * (swaps.plain - swaps.logs())).sum(-1).mean())
            ours.weight.copy_(network.get_submodule(name).weight)
        assert found[name] == pytest.approx(measured, rel=0.5), name
