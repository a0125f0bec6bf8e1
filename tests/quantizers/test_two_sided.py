"""GPTQ that weighs outputs by what the divergence feels of them."""

from dataclasses import replace

import pytest
import torch

from helpers.schemes import integers
from qsweep.base.errors import ConfigError, IncompatibleTrial, TrialFailed
from qsweep.formats import numbers
from qsweep.formats.dense import load_dense
from qsweep.formats.hf import reference_artifact
from qsweep.formats.numbers.superblocks import block_scheme
from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.quantizers.native import NativeGPTQ, columns, gptq, quantize_grid, two_sided
from qsweep.quantizers.native import output_hessians as felt_by
from qsweep.quantizers.native.column_blocks import Problem
from qsweep.quantizers.native.network import load_network
from qsweep.text.calibration import CalibrationTokens

pytestmark = pytest.mark.usefixtures("one_thread")

FLOAT32 = torch.float32


def correlated(size, seed, count=2048):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator)
    values = torch.randn(count, size, generator=generator) @ mix
    return values.T @ values / count


SETTINGS = {
    "groups": (integers(3, True, 64), {"act_group_aware": True}),
    "a last group that is not full": (integers(3, False, 128), {}),
    "one scale per output": (integers(3, True), {"act_group_aware": True}),
    "any order": (integers(3, True, 32, "mse"), {"desc_act": True}),
    "groups of 96": (integers(4, True, 96), {"act_group_aware": True}),
    "global scale": (numbers.NVFP4().scheme(4, 16, True, dtype=FLOAT32), {}),
    "K-quant": (block_scheme("Q3_K"), {"act_group_aware": True}),
    "K-quant with minima": (block_scheme("Q4_K"), {}),
}


def problem(name, rows=56):
    scheme, order = SETTINGS[name]
    width = 512 if name.startswith("K-quant") else 192
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(2))
    gram = correlated(width, 0)
    setting = gptq.Settings(
        scheme.groups(width),
        **({"desc_act": False, "act_group_aware": False} | order),
        damp_percent=0.05,
        span=scheme.span(width),
    )
    factor = gptq.factorize(gram, setting, "layer")
    return Problem(weight, factor, setting, scheme.layers([weight])[0]), gram


def block_after_block(one, hessian, order):
    """What is left of rows is asked of the inverse of their part of B, and GPTQ does the rest."""
    target, done = one.weight.clone(), torch.empty_like(one.weight)
    found = {}
    for start in range(0, len(order), two_sided.ROWS):
        now, rest = order[start : start + two_sided.ROWS], order[start + two_sided.ROWS :]
        layer = replace(one.layer, rows=len(now))
        ((matrix, _),) = columns.solve([target[now]], [one.factor], [one.settings], [layer])
        done[now] = matrix.dense(FLOAT32)
        found |= dict(zip(now.tolist(), matrix.codes, strict=True))
        before = order[: start + two_sided.ROWS]
        errors = (one.weight - done)[before].double()
        own = hessian[rest][:, rest].double()
        change = torch.linalg.solve(own, hessian[rest][:, before].double() @ errors)
        target[rest] = (one.weight[rest].double() + change).float()
    return torch.stack([found[row] for row in range(len(order))])


def weighted(error, hessian, gram):
    return float(((hessian @ error @ gram) * error).sum())


@pytest.mark.parametrize("name", SETTINGS)
def test_rows_are_gptqs_own_problem_once_those_before_are_made_up_for(name):
    one, gram = problem(name)
    hessian = correlated(len(one.weight), 1)
    outputs = two_sided.factorize_outputs(hessian, 1000, "layer")
    damped = hessian + outputs.damp * hessian.diagonal().mean() * torch.eye(len(hessian))
    (matrix,) = two_sided.solve([one], [[outputs]])
    expected = block_after_block(one, damped, outputs.order)
    assert float((matrix.codes == expected).float().mean()) > 0.98
    ((plain, _),) = columns.solve([one.weight], [one.factor], [one.settings], [one.layer])
    losses = [
        weighted(one.weight - found.dense(FLOAT32), hessian, gram) for found in (matrix, plain)
    ]
    assert losses[0] < 0.9 * losses[1]


@pytest.mark.parametrize("name", SETTINGS)
def test_outputs_that_have_nothing_to_do_with_each_other_get_plain_gptq(name):
    one, _ = problem(name)
    apart = two_sided.factorize_outputs(torch.diag(torch.rand(56) + 0.1), 1000, "layer")
    nothing, alone = two_sided.solve([one, one], [[], [apart]])
    ((plain, _),) = columns.solve([one.weight], [one.factor], [one.settings], [one.layer])
    assert torch.equal(nothing.codes, plain.codes)
    assert float((alone.codes == plain.codes).float().mean()) > 0.98
    assert torch.allclose(alone.scales.float(), plain.scales.float(), rtol=0.05, atol=1)


@pytest.mark.parametrize("name", ["groups", "global scale", "K-quant"])
def test_blocks_of_outputs_are_solved_as_layers_of_their_own(name):
    one, _ = problem(name)
    hessians = [correlated(size, seed) for size, seed in ((30, 1), (26, 2))]
    outputs = [two_sided.factorize_outputs(part, 1000, "layer") for part in hessians]
    (matrix,) = two_sided.solve([one], [outputs])
    for rows, factor in ((slice(0, 30), outputs[0]), (slice(30, 56), outputs[1])):
        layer = replace(one.layer, rows=rows.stop - rows.start)
        part = replace(one, weight=one.weight[rows], layer=layer)
        (own,) = two_sided.solve([part], [[factor]])
        assert torch.equal(matrix.dense(FLOAT32)[rows], own.dense(FLOAT32))


def test_what_cannot_be_factorized_is_named_with_the_way_out():
    hessian = torch.full((8, 8), 1e6).fill_diagonal_(1.0)
    with pytest.raises(TrialFailed) as caught:
        two_sided.factorize_outputs(hessian, 1000, "model.layers.0.mlp.up_proj")
    assert str(caught.value) == (
        "model.layers.0.mlp.up_proj: what the model's output feels of it cannot be factorized at any "
        "damping; quant.gptq_output_hessian=false does without"
    )


def test_where_outputs_are_felt_beyond_float32_plain_gptq_goes_on(
    tiny_model, tmp_path, monkeypatch
):
    def steep(*arguments, **options):
        for together in gradients(*arguments, **options):
            yield [replace(seen, gradients=seen.gradients * 1e25) for seen in together]

    gradients = felt_by.gradients
    monkeypatch.setattr(felt_by, "gradients", steep)
    model = SourceModel(read_facts(tiny_model("llama"), "llama"), "cpu")
    samples = torch.randint(5, 4000, (2, 24), generator=torch.Generator().manual_seed(0)).tolist()
    tokens = CalibrationTokens(samples)
    with pytest.raises(TrialFailed, match="beyond float32; quant.gptq_output_hessian=false"):
        NativeGPTQ(4, 64, gptq_output_hessian=True).quantize(model, tokens, tmp_path)
    artifact = NativeGPTQ(4, 64).quantize(model, tokens, tmp_path)
    assert artifact.details["loss"]


def test_many_outputs_are_coupled_in_blocks(tiny_model, monkeypatch):
    path = tiny_model("llama")
    network = load_network(SourceModel(read_facts(path, "llama"), "cpu"))
    samples = torch.randint(0, 4096, (2, 24), generator=torch.Generator().manual_seed(0)).tolist()
    names = {n for n, m in network.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head"}

    def found():
        return felt_by.output_hessians(network, samples, "cpu", names, lambda *_: None)

    whole = found()
    assert whole.keys() == names
    monkeypatch.setattr(felt_by, "COUPLED_OUTPUTS", 48)
    split = found()
    name = "model.layers.0.self_attn.q_proj"
    (all_of_it,), parts = whole[name].blocks, split[name].blocks
    assert len(parts) > 1
    assert max(map(len, parts)) <= 48
    start = 0
    for part in parts:
        own = slice(start, start + len(part))
        assert torch.allclose(part, all_of_it[own, own], rtol=1e-4, atol=1e-9)
        start = own.stop
    assert start == len(all_of_it)
    assert whole[name].positions == 48


@pytest.fixture(scope="module")
def text(pocket_dir):
    """Token ids: what is calibrated with, and what is measured on."""
    from transformers import AutoTokenizer

    from qsweep.text.corpora import calibration_samples, load_documents
    from qsweep.text.corpus import CorpusConfig

    tokenizer = AutoTokenizer.from_pretrained(pocket_dir)
    splits = [
        load_documents(CorpusConfig("python", "python", split=s)) for s in ("calibration", "test")
    ]
    return [calibration_samples(one, tokenizer, 4, 192, 0) for one in splits]


def divergence(artifact, path, samples):
    ids = torch.tensor(samples)
    with torch.no_grad():
        logs = [
            torch.log_softmax(
                load_dense(one, path, dtype=FLOAT32, device="cpu")(ids).logits.double(), -1
            )
            for one in (reference_artifact(read_facts(path, "pocket")), artifact)
        ]
    return float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean())


def test_the_model_diverges_less(pocket_dir, text, tmp_path):
    model = SourceModel(read_facts(pocket_dir, "pocket"), "cpu")
    outs = [tmp_path / str(number) for number in range(2)]
    for out in outs:
        out.mkdir()
    quantizers = [NativeGPTQ(3, 64), NativeGPTQ(3, 64, gptq_output_hessian=True)]
    made = quantize_grid(model, text[0], list(zip(quantizers, outs, strict=True)))
    plain, weighing = (divergence(one, pocket_dir, text[1].samples) for one in made)
    assert weighing < plain
    assert made[0].size == made[1].size


def test_experts_are_weighed_by_the_tokens_that_they_are_sent(mixture_dir, tmp_path):
    model = SourceModel(read_facts(mixture_dir, "moe"), "cpu")
    samples = torch.randint(5, 4000, (1, 12), generator=torch.Generator().manual_seed(0)).tolist()
    network = load_network(model)
    found = felt_by.output_hessians(
        network, samples, "cpu", list(model.facts.linears), lambda *_: None
    )
    experts = {n: one for n, one in found.items() if ".experts." in n}
    # Two of eight for each of 12 tokens: some are sent none.
    assert 0 < len(experts) < sum(".experts." in name for name in model.facts.linears)
    assert {one.positions for one in experts.values()} <= set(range(1, 13))
    quantizer = NativeGPTQ(4, 64, gptq_output_hessian=True)
    artifact = quantizer.quantize(model, CalibrationTokens(samples), tmp_path)
    assert artifact.details["loss"].keys() >= set(model.facts.linears)


def test_it_is_an_option_that_is_there_only_when_it_is_on():
    plain, weighing = NativeGPTQ(3, 64), NativeGPTQ(3, 64, gptq_output_hessian=True)
    assert "gptq_output_hessian" not in plain.options()
    assert weighing.options() == plain.options() | {"gptq_output_hessian": True}
    meta = weighing.packed_settings()["meta"]
    assert meta == plain.packed_settings()["meta"] | {"gptq_output_hessian": True}
    assert plain.version() == weighing.version()
    with pytest.raises(ConfigError, match="must be true or false"):
        NativeGPTQ(3, 64, gptq_output_hessian="yes")


def test_the_walk_backwards_is_planned_with(pocket_dir):
    facts = read_facts(pocket_dir, "pocket")
    plain, weighing = (
        NativeGPTQ(3, 64, gptq_output_hessian=on).pass_bytes(facts, 8192) for on in (False, True)
    )
    squares = sum(4 * rows**2 for rows, _ in facts.linears.values())
    assert weighing[0] >= plain[0] + squares
    assert weighing[1] > plain[1]


@pytest.mark.parametrize("format", [numbers.FP8(), numbers.FP8Block()], ids=lambda f: f.name)
def test_outputs_that_share_scales_are_refused(pocket_dir, format):
    facts = read_facts(pocket_dir, "pocket")
    with pytest.raises(IncompatibleTrial, match="gptq_output_hessian=false"):
        NativeGPTQ(format=format, gptq_output_hessian=True).check(facts)
    NativeGPTQ(format=format).check(facts)
