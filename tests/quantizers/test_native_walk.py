import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from qsweep.base.errors import IncompatibleTrial, TrialFailed
from qsweep.quantizers.native import memory
from qsweep.quantizers.native import walk as walking
from qsweep.quantizers.native.capture import capture
from qsweep.quantizers.native.fold import find_folds
from qsweep.quantizers.native.graph import find_decoder, set_weight, weight_of
from qsweep.quantizers.native.layers import Chunk, Stage, run_layer
from qsweep.quantizers.native.memory import Room
from qsweep.quantizers.native.stages import find_stages
from qsweep.quantizers.native.stats import InputStats, shared_products
from qsweep.quantizers.native.walk import advance, fewest_rounds, rounds_needed

MULTIPLIES_BFLOAT16 = walking.multiplies_bfloat16
SAMPLES = torch.randint(0, 4096, (6, 48), generator=torch.Generator().manual_seed(0)).tolist()
SEPARATE = [
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
]
STAGES = {
    "llama": SEPARATE,
    "qwen3": SEPARATE,
    "mistral": SEPARATE,
    "gemma3_text": SEPARATE,
    "gpt_neox": [
        ("attention.query_key_value",),
        ("attention.dense",),
        ("mlp.dense_h_to_4h",),
        ("mlp.dense_4h_to_h",),
    ],
}
FOLDS = {
    "llama": ["input_layernorm", "self_attn.v_proj", "post_attention_layernorm", "mlp.up_proj"],
    "gemma3_text": [
        "input_layernorm",
        "self_attn.v_proj",
        "pre_feedforward_layernorm",
        "mlp.up_proj",
    ],
    "gpt_neox": [
        "input_layernorm",
        "attention.query_key_value",
        "post_attention_layernorm",
        None,
    ],
}
FOLDS |= {"qwen3": FOLDS["llama"], "mistral": FOLDS["llama"]}


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def nothing(stages, stats):
    pass


def walk(model, samples, on_stage=nothing, changes=False):
    decoder = find_decoder(model)
    decoder, chunks, probe = capture(model, samples, "cpu")
    for index, layer in enumerate(decoder.layers):
        stages = find_stages(layer, chunks[0], index)
        chunks = advance(layer, index, stages, chunks, str, on_stage, changes_weights=changes)
    return chunks


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """Whatever this machine's processor can do."""
    monkeypatch.setattr(walking, "multiplies_bfloat16", lambda device: False)


@pytest.mark.parametrize(
    ("able", "device", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "cpu", True),
        ({"amx_bf16": True}, "cpu", True),
        ({"avx512_f": True, "avx512_bf16": False}, "cpu", False),
        ({}, "cpu", False),
        ({"avx512_bf16": True}, "cuda", False),
    ],
)
def test_bfloat16_where_the_processor_multiplies_it(monkeypatch, able, device, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert MULTIPLIES_BFLOAT16(device) is expected


@pytest.mark.parametrize("lengths", [[48] * 6, [48] * 3 + [24] * 3])
def test_products_of_the_layers_in_bfloat16_and_not_those_of_the_statistics(
    tiny_model, monkeypatch, lengths
):
    def run():
        model = load(tiny_model("llama"))
        products = []

        def look(stages, found):
            # Statistics are of float32, and what is computed in the middle of a layer stays exact.
            (stats,) = found
            assert stats.gram.dtype == torch.float32
            third = torch.full((8, 8), 1 / 3)
            assert torch.equal(third @ torch.eye(8), third)
            products.append(stats)

        samples = [sample[:n] for sample, n in zip(SAMPLES, lengths, strict=True)]
        return walk(model, samples, look, changes=True), products

    exact, stats = run()
    monkeypatch.setattr(walking, "multiplies_bfloat16", lambda device: True)
    close, rounded = run()
    for one, other in zip(exact, close, strict=True):
        assert other.hidden.dtype == torch.float32
        error = (one.hidden - other.hidden).norm() / one.hidden.norm()
        assert 1e-6 < error < 1e-2
    for one, other in zip(stats, rounded, strict=True):
        assert (one.gram - other.gram).norm() < 2e-2 * one.gram.norm()


@pytest.mark.parametrize("architecture", STAGES)
def test_layers_one_by_one_are_the_model(tiny_model, architecture):
    model = load(tiny_model(architecture))
    expected = model.base_model(torch.tensor(SAMPLES), output_hidden_states=True, use_cache=False)
    (chunk,) = walk(model, SAMPLES)
    norms = [m for n, m in model.base_model.named_children() if "norm" in n]
    with torch.no_grad():
        final = norms[-1](chunk.hidden)
    assert torch.allclose(final, expected.last_hidden_state, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", STAGES)
def test_stages_and_what_absorbs_scales(tiny_model, architecture):
    model = load(tiny_model(architecture))
    # Norm weights away from 0 and 1, so that both kinds of norm can be told apart.
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.add_(0.3 * torch.rand_like(parameter))
    decoder = find_decoder(model)
    decoder, _, probe = capture(model, SAMPLES, "cpu")
    stages = find_stages(decoder.layers[0], probe, 0)
    assert [stage.linears for stage in stages] == STAGES[architecture]
    before = copy.deepcopy(decoder.layers[0].state_dict())
    folds = find_folds(decoder.layers[0], stages, probe, 0, model.config)
    assert [fold and fold.source for fold in folds] == FOLDS[architecture]
    assert folds[0].offset == (1.0 if architecture == "gemma3_text" else 0.0)
    for name, value in decoder.layers[0].state_dict().items():
        assert torch.equal(value, before[name]), name


def test_statistics_are_those_of_the_inputs(tiny_model):
    model = load(tiny_model("llama"))
    seen, gathered = {}, {}
    layer = find_decoder(model).layers[1]
    for name in ("self_attn.k_proj", "mlp.down_proj"):
        module = layer.get_submodule(name)
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.__setitem__(name, inputs[0].detach().flatten(0, 1))
        )
    walk(model, SAMPLES, lambda block, found: gathered.__setitem__(block[0].linears, found[0]))
    model(torch.tensor(SAMPLES))
    for stage, name in ((SEPARATE[0], "self_attn.k_proj"), (SEPARATE[3], "mlp.down_proj")):
        x, stats = seen[name].double(), gathered[stage]
        assert stats.tokens == len(x) == 6 * 48
        assert torch.allclose(stats.gram.double(), x.T @ x / len(x), rtol=1e-3, atol=1e-5)
        assert torch.allclose(stats.magnitude.double(), x.abs().mean(0), rtol=1e-4)


@pytest.mark.parametrize("changes", [False, True])
def test_chunks_give_what_one_piece_gives(tiny_model, changes):
    # Samples of two lengths make two chunks; their statistics together are those of both.
    def run(samples):
        model = load(tiny_model("llama"))
        stages, modules = [], {}

        def halve(block, found):
            stages.extend(found)
            if changes:
                for name in block[0].linears:
                    linear = modules[len(stages) > 4].get_submodule(name)
                    set_weight(linear, weight_of(linear) * 0.5)

        modules.update({False: find_decoder(model).layers[0], True: find_decoder(model).layers[1]})
        chunks = walk(model, samples, halve, changes)
        return chunks, stages

    long, short = SAMPLES[:3], [sample[:24] for sample in SAMPLES[3:]]
    both, stats = run(long + short)
    assert [chunk.hidden.shape[1] for chunk in both] == [48, 24]
    if not changes:
        parts = [run(long)[1], run(short)[1]]
        for one, first, second in zip(stats, *parts, strict=True):
            mixed = (first.gram * first.tokens + second.gram * second.tokens) / one.tokens
            assert torch.allclose(one.gram, mixed, rtol=1e-3, atol=1e-5)
    else:
        # Weights do not depend on the text here, so each part must come out as by itself.
        assert torch.allclose(both[0].hidden, run(long)[0][0].hidden, atol=1e-5)
        assert torch.allclose(both[1].hidden, run(short)[0][0].hidden, atol=1e-5)


@pytest.mark.parametrize("lengths", [(48, 48), (48, 24)], ids=["one chunk", "two chunks"])
def test_unquantized_inputs_are_compared_with_those_of_the_same_tokens(tiny_model, lengths):
    model = load(tiny_model("llama"))
    decoder = find_decoder(model)
    samples = [sample[:length] for sample, length in zip(SAMPLES[:4], lengths * 2, strict=True)]
    decoder, chunks, probe = capture(model, samples, "cpu")
    stages = find_stages(decoder.layers[0], probe, 0)
    kept, seen = {}, []

    def note(stages, stats):
        seen.extend(stats)

    def run(**options):
        advance(decoder.layers[0], 0, stages, chunks, str, note, **options)

    run(changes_weights=False, keep=kept)
    assert all(stats.cross is None for stats in seen)
    assert kept.keys() == {stage.linears[0] for stage in stages}
    seen.clear()
    # Nothing is changed, so that across both runs there is what there is in one.
    run(changes_weights=True, plain=kept)
    assert len(seen) == len(stages)
    for stats in seen:
        assert torch.allclose(stats.cross, stats.gram, rtol=1e-3, atol=1e-6)
    seen.clear()
    doubled = {
        name: [replace(inputs, values=2 * inputs.values) for inputs in chunk]
        for name, chunk in kept.items()
    }
    run(changes_weights=True, plain=doubled)
    for stats in seen:
        assert torch.allclose(stats.cross, 2 * stats.gram, rtol=1e-3, atol=1e-6)


def test_a_stage_sees_what_changing_the_stages_before_made(tiny_model):
    model = load(tiny_model("llama"))
    decoder = find_decoder(model)
    decoder, chunks, _ = capture(model, SAMPLES, "cpu")
    layer = decoder.layers[0]
    stages = find_stages(layer, chunks[0], 0)
    plain, changed = [], []

    def remember(stages, stats):
        plain.append(stats[0].gram)

    def silence(stages, stats):
        changed.append(stats[0].gram)
        if stages[0].linears[0].endswith("q_proj"):
            set_weight(layer.self_attn.v_proj, torch.zeros(128, 256))

    advance(layer, 0, stages, chunks, str, remember, changes_weights=False)
    advance(layer, 0, stages, chunks, str, silence, changes_weights=True)
    assert torch.equal(plain[0], changed[0])
    assert changed[1].abs().max() == 0
    assert not torch.allclose(plain[2], changed[2])


def test_inputs_that_are_not_finite_name_the_layer(tiny_model):
    model = load(tiny_model("llama"))
    model.model.layers[1].post_attention_layernorm.weight.data[3] = float("inf")
    with pytest.raises(TrialFailed, match="mlp.gate_proj: its inputs are not finite"):
        walk(model, SAMPLES)


def tiny(model_type, **extra):
    sizes = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes | extra))


def test_conv1d_is_a_linear_layer_the_other_way_round():
    model = tiny("gpt2", n_embd=64, n_layer=2, n_head=2, n_positions=64).eval()
    decoder = find_decoder(model)
    assert decoder.paths == ["transformer.h.0", "transformer.h.1"]
    linear = decoder.layers[0].attn.c_attn
    assert weight_of(linear).shape == (192, 64)
    set_weight(linear, weight_of(linear) * 2)
    decoder, _, probe = capture(model, [list(range(40))], "cpu")
    stages = find_stages(decoder.layers[0], probe, 0)
    assert [stage.channels for stage in stages] == [64, 64, 64, 256]
    folds = find_folds(decoder.layers[0], stages, probe, 0, model.config)
    assert [fold and fold.source for fold in folds] == ["ln_1", "attn.c_attn", "ln_2", None]


def test_layers_that_hand_on_tuples():
    model = tiny("bloom", n_head=2, n_layer=2).eval()
    samples = [list(range(i, i + 20)) for i in range(3)]
    (chunk,) = walk(model, samples)
    with torch.no_grad():
        final = model.transformer.ln_f(chunk.hidden)
        expected = model.transformer(torch.tensor(samples)).last_hidden_state
    assert torch.allclose(final, expected, atol=1e-5)


def test_layers_that_share_a_weight_are_one_with_all_inputs():
    model = tiny("llama", num_key_value_heads=2).eval()
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    decoder, _, probe = capture(model, [list(range(40))], "cpu")
    assert decoder.is_whole
    stages = find_stages(decoder.layers[0], probe, 0)
    (shared,) = [stage for stage in stages if stage.repeats]
    assert "layers.0.mlp.up_proj" in shared.linears
    assert not any("layers.1.mlp.up_proj" in stage.linears for stage in stages)


def test_layers_that_hand_more_on_than_hidden_states_are_one():
    model = tiny("llama", num_key_value_heads=2).eval()
    first, second = model.model.layers
    seen = []
    first.register_forward_hook(lambda _, inputs, output: seen.append(output))
    plain = second.forward
    second.forward = lambda hidden, **named: plain(hidden + seen.pop(), **named)
    decoder, (chunk,), probe = capture(model, [list(range(40))] * 3, "cpu")
    assert decoder.is_whole
    assert chunk.hidden.shape == (3, 40)
    stages = find_stages(decoder.layers[0], probe, 0)
    assert decoder.full_name(0, stages[0].linears[0]) == "model.layers.0.self_attn.q_proj"
    assert len(stages) == 8


@pytest.mark.parametrize("lengths", [(48, 48), (48, 24)], ids=["one chunk", "two chunks"])
def test_what_runs_twice_is_quantized_for_all_its_inputs(lengths):
    model = tiny("llama", num_key_value_heads=2).eval()
    layers = model.model.layers
    layers[1] = layers[0]
    samples = [SAMPLES[0][: lengths[0]], SAMPLES[1][: lengths[1]]]
    decoder, chunks, probe = capture(model, [[n % 128 for n in one] for one in samples], "cpu")
    assert decoder.is_whole
    stages = find_stages(decoder.layers[0], probe, 0)
    assert len(stages) == 4
    assert all(stage.repeats for stage in stages)
    seen = {}

    def silence(block, found):
        seen[block[0].linears[0]] = found[0].tokens
        for name in block[0].linears:
            linear = decoder.layers[0].get_submodule(name)
            set_weight(linear, torch.zeros_like(linear.weight))

    after = advance(decoder.layers[0], 0, stages, chunks, str, silence, changes_weights=True)
    assert set(seen.values()) == {2 * sum(lengths)}
    with torch.no_grad():
        expected = model.model(chunks[0].hidden).last_hidden_state
    assert torch.equal(after[0].hidden, expected)


def test_quantized_models_are_refused():
    model = tiny("llama", num_key_value_heads=2)
    model.model.layers[0].mlp.up_proj.qweight = torch.zeros(1)
    with pytest.raises(IncompatibleTrial, match="already quantized"):
        find_decoder(model)


def test_the_probe_is_a_run_of_the_layer(tiny_model):
    model = load(tiny_model("mistral"))
    decoder = find_decoder(model)
    decoder, _, probe = capture(model, SAMPLES, "cpu")
    states = model(torch.tensor(SAMPLES[:1]), output_hidden_states=True).hidden_states
    assert torch.allclose(run_layer(decoder.layers[0], probe, 0), states[1], atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_summed_in_float32_on_cuda(dtype):
    x = torch.randn(50_000, 64, generator=torch.Generator().manual_seed(0)).to("cuda", dtype)
    stats = InputStats("layer")
    for part in x.split(20_000):
        stats.add(part)
    stats.finish()
    expected = x.double().T @ x.double() / len(x)
    assert stats.gram.dtype == torch.float32
    # Sums in the inputs' own dtype would be off by a hundred times as much.
    assert torch.allclose(stats.gram.double(), expected, atol=1e-4, rtol=1e-4)


def test_memory_decides_in_how_many_rounds_configurations_go():
    layer = nn.Sequential(nn.Linear(64, 64, bias=False))
    chunk, stages = Chunk(torch.zeros(4, 128, 64), []), [Stage(("0",), 64, 0)]
    weights = square = 4 * 64 * 64
    forward = 4 * 64 * 4 * (4 * 128)
    room = 2 * (weights + 2 * square + forward)
    assert rounds_needed(layer, stages, [chunk], 4, 0, room) == 2
    assert rounds_needed(layer, stages, [chunk], 4, 1, room) == 3
    # Who shares statistics, or is run anew up to each stage, has no forward that waits.
    assert rounds_needed(layer, stages, [chunk], 0, 20, room) == 1
    assert rounds_needed(layer, stages, [chunk, chunk], 20, 0, room) == 1
    assert rounds_needed(layer, stages, [chunk], 3, 2, 1) == 5
    assert rounds_needed(layer, stages, [chunk], 0, 0, 1) == 1


def test_experts_that_run_side_by_side_need_a_gram_matrix_each():
    layer = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(8)))
    chunk = Chunk(torch.zeros(4, 128, 64), [])
    stages = [Stage((str(number),), 64, 0, "experts") for number in range(8)]
    square = 4 * 64 * 64
    room = 2 * (8 * square + square + 8 * square)
    assert rounds_needed(layer, stages, [chunk, chunk], 4, 0, room) == 2
    assert rounds_needed(layer, stages, [chunk, chunk], 0, 4, room) == 2
    one_by_one = [Stage((str(number),), 64, number) for number in range(8)]
    assert rounds_needed(layer, one_by_one, [chunk, chunk], 3, 0, room) == 1


def test_room_is_no_more_than_there_has_been(monkeypatch):
    """What seems to be free once a file was written may not be there."""
    layer = nn.Linear(256, 256, bias=False)
    size = 4 * 256 * 256
    device, room = torch.device("cpu"), Room()
    for free, held, ahead in (
        (12, 6, True),
        (10, 5, True),
        (40, 5, True),
        (5, 2.5, False),
        (400, 2.5, False),
    ):
        monkeypatch.setattr(memory, "available_bytes", lambda free=free: free * size)
        assert room.free(device) == held * size
        assert room.reads_ahead(layer) is ahead


def test_experts_without_a_token_may_share_what_those_beside_them_see():
    generator = torch.Generator().manual_seed(0)
    seen = [InputStats("x") for _ in range(3)]
    for one, count in zip(seen, (30, 0, 10), strict=True):
        one.add(torch.randn(count, 8, generator=generator), routed=count)
        one.finish()
    first, lent, last = shared_products(seen)
    assert first is seen[0]
    assert last is seen[2]
    assert torch.allclose(lent.gram, 0.75 * first.gram + 0.25 * last.gram)
    assert torch.allclose(lent.magnitude, 0.75 * first.magnitude + 0.25 * last.magnitude)
    assert not seen[1].gram.any()
    assert shared_products(seen[:1]) == seen[:1]


@pytest.mark.parametrize(
    ("costs", "room", "expected"),
    [
        ([370] * 4, 560, 4),  # three rounds would have two in the first
        ([370] * 4, 740, 2),
        ([370] * 4, 1479, 2),
        ([370] * 4, 1480, 1),
        ([370] * 4, 100, 4),
        ([600, 200, 200, 200], 800, 2),
        ([], 1, 1),
    ],
)
def test_no_round_takes_more_than_there_is(costs, room, expected):
    assert fewest_rounds(costs, room) == expected
