"""Importance matrices: what they hold, and that every way to one leads to the same."""

import gc
import shutil
import weakref

import pytest
import torch

from qsweep.base.errors import IncompatibleTrial, TrialFailed
from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.quantizers.importance import load, measure_importance, save
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ
from qsweep.quantizers.native import grid as native_grid
from qsweep.quantizers.native.names import by_checkpoint_name
from qsweep.quantizers.native.stats import InputStats
from qsweep.text.calibration import CalibrationTokens

SAMPLES = torch.randint(0, 4096, (8, 64), generator=torch.Generator().manual_seed(2)).tolist()
WALKING = [NativeGPTQ(3, 64), NativeGPTQ(4, 64)]
GRIDS = {
    "walking": WALKING,
    "gptaq": [NativeGPTQ(3, 64, gptaq_alpha=0.5)],
    "awq": [NativeAWQ(4, 64)],
    "all": [*WALKING, NativeGPTQ(8, 64), NativeAWQ(3, 64)],
}


def source(path):
    return SourceModel(read_facts(path, path.name), "cpu")


def measured(path, samples=SAMPLES):
    return measure_importance(source(path), CalibrationTokens(samples)).importance


def passed(path, grid, root, samples=SAMPLES, **options):
    outs = [root / str(number) for number in range(len(grid))]
    for out in outs:
        out.mkdir()
    pairs = list(zip(grid, outs, strict=True))
    text = CalibrationTokens(samples)
    return grid[0].quantize_together(source(path), text, pairs, **options).importance


def network(path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def refuse(*_):
    raise IncompatibleTrial("its decoder layers do not hand hidden states on one by one")


def squares(path, samples=SAMPLES):
    """Mean squared inputs of all modules in an ordinary run, by name, float64."""
    found = {}
    model = network(path)
    for name, module in model.named_modules():
        if getattr(module, "weight", None) is not None and module.weight.ndim == 2:

            def hook(_, inputs, name=name):
                found[name] = inputs[0].double().square().flatten(0, -2).mean(0)

            module.register_forward_pre_hook(hook)
    with torch.no_grad():
        model(torch.tensor(samples))
    return found


def test_it_is_the_mean_squared_input_of_every_linear_layer(tiny_model):
    path = tiny_model("llama")
    found, expected = measured(path), squares(path)
    assert found.keys() == read_facts(path, "llama").linears.keys()
    for name, values in found.items():
        assert values.dtype == torch.float32 and values.device.type == "cpu"
        # Layers behind the first see what bfloat16 made of the text where the CPU multiplies it.
        first = name in {f"model.layers.0.self_attn.{x}_proj" for x in "qkv"}
        torch.testing.assert_close(
            values.double(), expected[name], rtol=1e-5 if first else 0.05, atol=0
        )


@pytest.mark.parametrize("grid", GRIDS)
def test_a_pass_finds_the_same_bits(tiny_model, tmp_path, grid):
    path = tiny_model("llama")
    expected = measured(path)
    found = passed(path, GRIDS[grid], tmp_path, importance=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(values, expected[name]) for name, values in found.items())


def test_so_does_one_with_samples_of_several_lengths(tiny_model, tmp_path):
    path = tiny_model("llama")
    samples = [*SAMPLES, SAMPLES[0][:40]]
    expected = measured(path, samples)
    found = passed(path, GRIDS["all"], tmp_path, samples, importance=True)
    assert all(torch.equal(values, expected[name]) for name, values in found.items())
    assert not torch.equal(expected["model.layers.0.mlp.down_proj"],
                           measured(path)["model.layers.0.mlp.down_proj"])  # fmt: skip


def test_a_pass_that_need_not_look_at_the_unquantized_model_does_not(
    tiny_model, tmp_path, monkeypatch
):
    made = []

    class Watched(InputStats):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append((self.products, self.channels))

    monkeypatch.setattr(native_grid, "InputStats", Watched)
    path = tiny_model("llama")
    (walking := tmp_path / "walking").mkdir()
    assert passed(path, WALKING, walking) is None
    assert set(made) == {(True, False)}
    made.clear()
    # Where it looks anyway, the matrix costs nothing.
    (awq := tmp_path / "awq").mkdir()
    assert passed(path, GRIDS["awq"], awq).keys() == measured(path).keys()
    # Of the run for the matrix alone no Gram matrix is asked.
    assert set(made) == {(True, True), (False, True)}


def test_a_model_that_cannot_be_walked_through_runs_as_a_whole(tiny_model, monkeypatch):
    path = tiny_model("llama")
    monkeypatch.setattr(native_grid, "capture", refuse)
    expected = squares(path)
    found = measured(path)
    assert found.keys() == read_facts(path, "llama").linears.keys()
    for name, values in found.items():
        torch.testing.assert_close(values.double(), expected[name], rtol=1e-5, atol=0)


def test_so_does_one_with_layers_that_no_token_reaches(tiny_model, monkeypatch):
    from transformers import AutoModelForCausalLM

    load = AutoModelForCausalLM.from_pretrained
    alive, loaded = [], []

    def watched(*arguments, **options):
        gc.collect()
        alive.append(sum(one() is not None for one in loaded))
        model = load(*arguments, **options)
        if loaded:
            idle = model.model.layers[0].mlp
            idle.forward = lambda states: torch.zeros_like(states)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", watched)
    monkeypatch.setattr(native_grid, "capture", refuse)
    path = tiny_model("llama")
    found = measured(path)
    assert read_facts(path, "llama").linears.keys() - found.keys() == {
        f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up", "down")
    }
    # The model that could not be walked through is gone before the next is loaded.
    assert alive == [0, 0]


def test_a_mixture_of_experts_has_one_of_every_linear_layer(tmp_path, pocket_dir):
    from transformers import AutoModelForCausalLM, MixtralConfig

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=4096, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pocket_dir / name, tmp_path / name)
    found, expected = measured(tmp_path), squares(tmp_path)
    attention = {f"model.layers.{i}.self_attn.{x}_proj" for i in (0, 1) for x in "qkvo"}
    assert found.keys() == read_facts(tmp_path, "moe").linears.keys()
    for name in attention:
        first = name in {f"model.layers.0.self_attn.{x}_proj" for x in "qkv"}
        torch.testing.assert_close(
            found[name].double(), expected[name], rtol=1e-5 if first else 0.05, atol=1e-12
        )
    for layer in (0, 1):
        experts = f"model.layers.{layer}.block_sparse_moe.experts"
        for number in range(4):
            gate, up = (found[f"{experts}.{number}.{part}"] for part in ("w1", "w3"))
            assert torch.equal(gate, up) and bool(gate.all())


def test_weights_that_are_not_finite_are_named(tiny_model, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), path)
    model = network(path)
    model.model.layers[1].input_layernorm.weight.data[3] = torch.inf
    model.save_pretrained(path)
    with pytest.raises(
        TrialFailed, match=r"model\.layers\.1\.input_layernorm: its weights are not finite"
    ):
        measured(path)


def test_names_are_the_checkpoints():
    one, two = torch.ones(2), torch.zeros(2)
    found = {"model.language_model.layers.0.q": one, "model.language_model.layers.1.q": two}
    names = ["language_model.model.layers.0.q", "language_model.model.layers.1.q", "head"]
    renamed = by_checkpoint_name(found, names)
    assert list(renamed) == names[:2] and renamed[names[0]] is one
    # A name that is there counts; one that could be two layers, or is none, does not.
    both = ["a.layers.0.q", "b.layers.0.q"]
    assert by_checkpoint_name({"a.layers.0.q": one}, both) == {"a.layers.0.q": one}
    assert by_checkpoint_name({"c.layers.0.q": one, "c.layers.9.q": two}, both) == {}
    two_stacks = {"model.layers.0.q": one, "draft.layers.0.q": two}
    assert by_checkpoint_name(two_stacks, names) == {}
    assert by_checkpoint_name(two_stacks, ["model.layers.0.q"]) == {"model.layers.0.q": one}


def test_layers_that_share_values_are_saved(tmp_path):
    values = torch.arange(4.0)
    save({"q": values, "k": values}, tmp_path)
    found = load(tmp_path)
    assert found.keys() == {"q", "k"} and torch.equal(found["k"], values)


@pytest.mark.parametrize("tokens", [1, 3000])
def test_importance_is_the_diagonal_of_the_gram_matrix(tokens):
    inputs = torch.randn(tokens, 96, generator=torch.Generator().manual_seed(1))
    both, alone = InputStats("both"), InputStats("alone", products=False)
    for stats in (both, alone):
        stats.add(inputs[: tokens // 2])
        stats.add(inputs[tokens // 2 :])
        stats.finish()
    torch.testing.assert_close(both.importance, both.gram.diagonal())
    assert torch.equal(both.importance, alone.importance)
    assert torch.equal(both.magnitude, alone.magnitude)
    assert not alone.gram.numel()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_importance_on_a_gpu(dtype):
    inputs = 300 * torch.randn(40000, 64, generator=torch.Generator().manual_seed(1))
    stats = InputStats("x", products=False)
    stats.add(inputs.to("cuda", dtype))
    expected = inputs.to(dtype).double().square().mean(0)
    found = stats.finish().importance.cpu().double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
