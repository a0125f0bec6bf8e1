"""Activations as they are served, against compressed-tensors' own fake-quantized forward."""

import math

import pytest
import torch

from helpers.compressed import changed, compress, one_layer
from helpers.quantized import IDS, dense, logits
from qsweep.base.errors import TrialFailed
from qsweep.evaluate.activations import quantized, served_activations
from qsweep.evaluate.placing import place_layers
from qsweep.formats.activations import LayerActivations, NotSimulated, Rounding
from qsweep.formats.compressed_tensors import CONTAINER
from qsweep.models.experts import attach_experts, detach_experts

SCHEMES = (
    *("W8A8", "W4A8", "W4AFP8", "FP8", "FP8_DYNAMIC"),
    *("FP8_BLOCK", "NVFP4", "MXFP4", "MXFP8"),
)
HEAD = ["lm_head"]


@pytest.fixture(scope="module")
def source(tiny_model, tmp_path_factory):
    return one_layer(tiny_model("llama"), tmp_path_factory.mktemp("source") / "one")


@pytest.fixture(scope="module")
def largest(source):
    """By layer, four fifths of the largest magnitude that its inputs have here, so that some saturate.

    Raised to a power of two times the largest code: transformers loads static scales in bfloat16.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: found.__setitem__(name, float(inputs[0].abs().max()))
            )
    logits(model)
    return {n: 448 * 2.0 ** math.floor(math.log2(0.8 * most / 448)) for n, most in found.items()}


def args(**stated):
    from compressed_tensors.quantization import QuantizationArgs

    return QuantizationArgs.model_validate(stated)


PER_TOKEN = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_logits_are_those_of_the_librarys_own_run(scheme, source, largest, tmp_path):
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    path = compress(source, tmp_path / "made", {scheme: ["Linear"]}, HEAD, largest=largest)
    decompressed = CompressedTensorsConfig(dequantize=True)
    # Otherwise it compiles the rounding of FP4.
    with torch.compiler.set_stance("force_eager"):
        owners = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.bfloat16, quantization_config=decompressed
        )
        # In bfloat16 the library computes scales in that, too, where kernels have float32.
        theirs = logits(owners.eval().float())
    model = dense(path, source, torch.bfloat16).float()
    weights_alone = logits(model)
    with served_activations(model, CONTAINER.layer_activations(path)) as served:
        ours = logits(model)
        with torch.no_grad():
            alone = model(IDS[1:]).logits
    assert torch.equal(ours, theirs)
    assert torch.equal(ours[1:], alone)
    assert not torch.equal(ours, weights_alone)
    assert torch.equal(logits(model), weights_alone)  # afterwards it is as it was
    facts = served.facts()
    assert facts["layers"] == 7
    if scheme in ("FP8", "NVFP4"):
        assert 0 < facts["saturated"] < facts["saturated_most"] < 0.2
        assert facts["saturated_layer"] in largest
    else:
        assert "saturated" not in facts


@pytest.mark.parametrize(
    "stated",
    [
        PER_TOKEN,
        {**PER_TOKEN, "symmetric": False},
        {**PER_TOKEN, "num_bits": 4, "strategy": "group", "group_size": 32},
        {**PER_TOKEN, "type": "float", "strategy": "group", "group_size": 128},
        {**PER_TOKEN, "strategy": "tensor"},
        {"num_bits": 6, "type": "float", "group_size": 32, "scale_dtype": "uint8", "dynamic": True},
    ],
)
def test_further_kinds_as_the_library_rounds_them(stated):
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    how = args(**{k: torch.uint8 if v == "uint8" else v for k, v in stated.items()})
    values = torch.randn(2, 9, 256, generator=torch.Generator().manual_seed(1)) * 3 + 1
    values[0, 0] = 0
    scale, zero = compute_dynamic_scales_and_zp(values, how, None)
    with torch.compiler.set_stance("force_eager"):
        theirs = fake_quantize(values, scale, zero, how)
    assert torch.equal(quantized(values, Rounding(how)), theirs)


def test_a_token_has_a_scale_of_its_own_where_tokens_are_rows():
    # As experts get them; the library finds one scale for all of these.
    values = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    how = Rounding(args(**PER_TOKEN))
    rows = torch.cat([quantized(row[None], how) for row in values])
    assert torch.equal(quantized(values, how), rows)
    assert torch.equal(quantized(values[:0], how), values[:0])


def test_fp4_ties_go_to_the_even_code():
    how = Rounding(args(num_bits=4, type="float"), scale=torch.ones(1))
    values = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 5.1, 9.0])
    expected = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0, 6.0])
    assert torch.equal(quantized(values, how), expected)
    assert torch.equal(quantized(-values, how), -expected)


def test_what_is_done_before_and_to_scales():
    static = args(num_bits=8, type="int")
    values = torch.tensor([[3.0, 100.0]])
    doubled = Rounding(static, scale=torch.ones(1), factor=torch.tensor([0.25, 1.0]))
    assert quantized(values, doubled).tolist() == [[4.0, 100.0]]  # 0.75 is rounded to 1
    cut = Rounding(args(**PER_TOKEN), limit=63.75)  # so that a code is worth half
    assert quantized(values, cut).tolist() == [[3.0, 63.5]]
    raised = Rounding(args(**PER_TOKEN), power_of_two=True)
    assert quantized(values, raised).tolist() == [[3.0, 100.0]]  # 100 / 127.5 is raised to 1


@pytest.mark.parametrize(
    ("value", "said"), [(math.nan, "nan"), (0.0, "0"), (-1.0, "-1"), (math.inf, "inf")]
)
def test_a_scale_that_is_none_is_told_with_its_layer(value, said, source, largest, tmp_path):
    good = compress(source, tmp_path / "good", {"FP8": ["Linear"]}, HEAD, largest=largest)
    name = "model.layers.0.mlp.up_proj"
    path = changed(
        good, tmp_path / "bad", lambda t: t.update({f"{name}.input_scale": torch.tensor([value])})
    )
    line = rf"^{name}: its input_scale is {said}, .* calibrate it again"
    model = dense(path, source)
    with (
        pytest.raises(TrialFailed, match=line),
        served_activations(model, CONTAINER.layer_activations(path)),
    ):
        pass


def test_activations_that_are_not_finite_are_told_with_their_layer(source):
    model = dense_of(source)
    name = "model.layers.0.mlp.down_proj"
    with served_activations(model, {name: LayerActivations(Rounding(args(**PER_TOKEN)))}) as seen:
        seen.require_finite()
        model.model.layers[0].mlp.up_proj.weight.fill_(math.inf)
        logits(model)
        with pytest.raises(TrialFailed, match=rf"^{name}: its activations are not finite"):
            seen.require_finite()


def test_outputs_are_quantized_where_that_is_stated(source):
    model, name = dense_of(source), "model.layers.0.self_attn.v_proj"
    module, kept = model.get_submodule(name), []
    half = Rounding(args(num_bits=8, type="int"), scale=torch.tensor([0.5]))
    with served_activations(model, {name: LayerActivations(outputs=half)}):
        module.register_forward_hook(lambda _, __, output: kept.append(output))
        logits(model)
    doubled = 2 * kept[0]
    assert torch.equal(doubled, doubled.round())


def test_a_scale_of_all_tokens_wants_windows_run_alone(source):
    name = "model.layers.0.self_attn.v_proj"
    for stated, whole in ((PER_TOKEN, False), ({**PER_TOKEN, "strategy": "tensor"}, True)):
        layers = {name: LayerActivations(Rounding(args(**stated)))}
        with served_activations(dense_of(source), layers) as served:
            assert served.whole is whole


def dense_of(source):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    return model.eval().requires_grad_(False)


# --- where layers lie --------------------------------------------------------------------------


def rounded(*names, **stated):
    return dict.fromkeys(names, LayerActivations(Rounding(args(**PER_TOKEN | stated))))


def test_a_conv1d_has_its_inputs_first():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=64, n_head=2, vocab_size=128)).eval()
    module, kept = model.transformer.h[0].mlp.c_fc, []
    module.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    # The checkpoint's names lack a prefix.
    layers = rounded("h.0.mlp.c_fc", strategy="group", group_size=32)
    with served_activations(model, layers):
        module.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        with torch.no_grad():
            model(IDS[:1] % 128)
    before, after = kept
    assert torch.equal(after, quantized(before, layers["h.0.mlp.c_fc"].inputs))
    assert not torch.equal(after, before)
    line = r"h\.0\.mlp\.c_fc: its 64 inputs are no groups of 48"
    wrong = rounded("transformer.h.0.mlp.c_fc", strategy="group", group_size=48)
    with pytest.raises(NotSimulated, match=line), served_activations(model, wrong):
        pass


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.embed_tokens", "is a Embedding in LlamaForCausalLM"),
        ("model.layers.0.mlp", "is a LlamaMLP in LlamaForCausalLM"),
        ("model.layers.0.mlp.gate_up_proj", "is no layer of its own in LlamaForCausalLM"),
        ("model.layers.9.mlp.up_proj", "is no layer of its own"),
    ],
)
def test_a_layer_that_is_no_linear_module_is_refused(name, said, source):
    good = "model.layers.0.mlp.up_proj"
    with (
        pytest.raises(NotSimulated, match=f"^{name} {said}"),
        served_activations(dense_of(source), rounded(good, name)),
    ):
        pass


def test_what_does_not_read_text_or_is_left_out_needs_no_place(source):
    model = dense_of(source)
    model.left_out = {"model.layers.*.shared_head.weight": 1}
    names = ("model.vision_tower.blocks.0.attn.qkv", "model.layers.2.shared_head")
    with served_activations(model, rounded("model.layers.0.mlp.up_proj", *names)) as served:
        logits(model)
    assert served.facts() == {"layers": 1}


# --- experts -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixture():
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        **{"vocab_size": 128, "hidden_size": 64, "moe_intermediate_size": 64, "head_dim": 32},
        **{"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2},
        **{"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64},
    )
    return Qwen3MoeForCausalLM(config).eval().requires_grad_(False)


def expert_layers(count=4, **stated):
    names = [
        f"model.layers.0.mlp.experts.{expert}.{name}"
        for expert in range(count)
        for name in ("gate_proj", "up_proj", "down_proj")
    ]
    return rounded(*names, **stated)


def by_hand(experts, hidden, chosen, weights, how):
    """Each token through its experts, one by one, as a kernel has them."""
    out = torch.zeros_like(hidden)
    for token, (index, weight) in enumerate(zip(chosen, weights, strict=True)):
        for expert, share in zip(index.tolist(), weight, strict=True):
            inputs = quantized(hidden[token][None], how)
            gate, up = (inputs @ experts.gate_up_proj[expert].T).chunk(2, -1)
            inner = quantized(experts.act_fn(gate) * up, how)
            out[token] += share * (inner @ experts.down_proj[expert].T)[0]
    return out


def test_experts_in_one_module_get_what_each_of_them_is_served_with(mixture):
    experts = mixture.model.layers[0].mlp.experts
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(9, 64, generator=generator)
    chosen = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(9)])
    weights = torch.rand(9, 2, generator=generator)
    layers, modules = expert_layers(), len(list(mixture.modules()))
    plain = experts(hidden, chosen, weights)
    with served_activations(mixture, layers) as served:
        ours = experts(hidden, chosen, weights)
    how = next(iter(layers.values())).inputs
    theirs = by_hand(experts, hidden, chosen, weights, how)
    # Products in another order, of which a few then lie on the other side of a tie.
    assert (ours - theirs).norm() < 0.05 * (ours - plain).norm()
    assert torch.equal(experts(hidden, chosen, weights), plain)
    assert len(list(mixture.modules())) == modules
    assert served.facts() == {"layers": 12}


def test_each_expert_may_have_a_scale_of_its_own(mixture):
    experts = mixture.model.layers[0].mlp.experts
    hidden, weights = torch.randn(3, 64), torch.ones(3, 1)
    one = "model.layers.0.mlp.experts.2.down_proj"
    own = Rounding(args(num_bits=8, type="float"), scale=torch.full((1,), 1e-6))
    only = {one: LayerActivations(own)}
    for expert, differs in ((1, False), (2, True)):
        chosen = torch.full((3, 1), expert)
        plain = experts(hidden, chosen, weights)
        with served_activations(mixture, only):
            ours = experts(hidden, chosen, weights)
        assert torch.allclose(ours, plain, atol=1e-6) is not differs


def test_experts_that_are_stacked_in_a_checkpoint_are_all_meant(mixture):
    stacks = ("model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj")
    attach_experts(mixture)
    placed = place_layers(mixture, stacks)
    assert [len(modules) for modules in placed.values()] == [8, 4]
    named = place_layers(mixture, ["model.layers.0.block_sparse_moe.experts.3.w1"])
    assert named.popitem()[1] == [mixture.get_submodule("model.layers.0.mlp.experts.3.gate_proj")]
    detach_experts(mixture)
    with pytest.raises(NotSimulated, match="is no layer of its own"):
        place_layers(mixture, ["model.layers.0.mlp.experts.7.gate_proj"])
