"""What is patched in GPTQModel: that it helps, and that the installed version still needs it.

Where a test named "still" fails, the library does without: delete the patch, or the refusal.
"""

import os
from types import SimpleNamespace

import pytest
import torch

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ.setdefault("GPTQMODEL_DISABLE_PACK_EXT", "1")
pytest.importorskip("gptqmodel")

from gptqmodel.looper.awq_processor import AWQProcessor  # noqa: E402
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear  # noqa: E402

from qsweep.base.errors import BackendUnavailable  # noqa: E402
from qsweep.quantizers.gptqmodel import UNSCALABLE  # noqa: E402
from qsweep.quantizers.gptqmodel.patches import patched_awq, search_clip  # noqa: E402

GENERATOR = torch.Generator().manual_seed(5)


def processor(**settings):
    """As much of an AWQ run as its searches look at."""
    made = object.__new__(AWQProcessor)
    made.qcfg = SimpleNamespace(**{"group_size": 32, "bits": 3, "sym": False} | settings)
    made.duo_scaling, made._quant_batch_size = True, None
    made._scale_context = SimpleNamespace(prev_scale=None)
    made._get_root_rotary = lambda: None
    made.gptq_model = SimpleNamespace()
    return made


def searched_scales():
    """A linear layer [16, 64] after the scale search over 256 tokens, the weight before, scales."""
    linear = torch.nn.Linear(64, 16, bias=False).requires_grad_(False)
    linear.weight.copy_(torch.randn(16, 64, generator=GENERATOR))
    before = linear.weight.clone()
    inputs = torch.randn(256, 64, generator=GENERATOR) * torch.linspace(0.1, 8, 64)
    means = (before.abs() / before.abs().max()).mean(0), inputs.abs().mean(0)
    with torch.inference_mode():
        scales, _ = processor()._compute_best_scale(
            inputs, *means, linear, [linear], [linear(inputs)], {}
        )
    return linear, before, inputs, scales


def test_the_scale_search_still_ruins_float32_weights_on_a_cpu():
    linear, before, _, _ = searched_scales()
    assert not torch.equal(linear.weight, before)


def test_patched_scale_search_leaves_weights_and_finds_the_best_candidate():
    with patched_awq():
        linear, before, inputs, scales = searched_scales()
    assert torch.equal(linear.weight, before)
    assert type(linear.weight) is torch.nn.Parameter

    def loss(candidate):
        rounded = before * candidate
        processor()._pseudo_quantize_tensor_into(rounded, rounded)
        return float((inputs @ (rounded / candidate - before).T).square().sum())

    assert loss(scales) < loss(torch.ones(64))
    assert AWQProcessor._compute_best_scale.__module__.startswith("gptqmodel")


def test_the_portable_kernel_still_refuses_float32():
    assert torch.float32 not in AwqTorchLinear.SUPPORTS_DTYPES
    with patched_awq():
        assert torch.float32 in AwqTorchLinear.SUPPORTS_DTYPES
    assert torch.float32 not in AwqTorchLinear.SUPPORTS_DTYPES


def test_another_build_of_the_library_is_told(monkeypatch):
    monkeypatch.setattr(AWQProcessor, "_compute_best_clip", lambda self, w: w)
    with pytest.raises(BackendUnavailable, match="another _compute_best_clip.*gptqmodel==7.6.0"):
        patched_awq().__enter__()


def round_trip(values):
    """Asymmetric rounding to 3 bits over the last dimension, in place."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    scale = (high - low).clamp(min=1e-5) / 7
    zero = (-low / scale).round()
    values.copy_((((values / scale).round() + zero).clamp(0, 7) - zero) * scale)


@pytest.mark.parametrize("group_size", [16, 64])
@pytest.mark.parametrize("tokens", [12, 200])
def test_clip_is_the_best_of_all_factors(group_size, tokens):
    weight = torch.randn(8, 64, generator=GENERATOR) ** 3
    inputs = torch.randn(tokens, 64, generator=GENERATOR)
    factors = [1 - step / 20 for step in range(10)]
    bounds = search_clip(weight, inputs, group_size, round_trip, factors)
    assert bounds.shape == (8, 64 // group_size, 1)
    for row in range(8):
        for group in range(64 // group_size):
            columns = slice(group * group_size, (group + 1) * group_size)
            part, seen = weight[row, columns], inputs[:, columns]
            errors = {}
            for factor in factors:
                bound = part.abs().max() * factor
                rounded = part.clamp(-bound, bound)
                round_trip(rounded)
                errors[float(bound)] = float((seen @ (rounded - part)).square().sum())
            chosen = errors[min(errors, key=lambda b: abs(b - float(bounds[row, group])))]
            assert chosen <= min(errors.values()) * 1.0001


@pytest.mark.parametrize("group_size", [32, -1])
@pytest.mark.parametrize("sym", [True, False])
def test_clip_as_gptqmodel_finds_it(group_size, sym):
    own = processor(group_size=group_size, sym=sym)
    weight = torch.randn(128, 64, generator=GENERATOR) ** 3
    inputs = torch.randn(700, 64, generator=GENERATOR)
    theirs = own._compute_best_clip(weight.clone(), inputs)
    with patched_awq():
        ours = own._compute_best_clip(weight.clone(), inputs)
    assert ours.shape == theirs.shape
    assert (ours != theirs).float().mean() < 0.01
    assert own._compute_best_clip.__module__.startswith("gptqmodel")


def test_the_descriptions_of_refused_models_still_lack_what_makes_up_for_scales():
    from gptqmodel.models.auto import MODEL_MAP

    for model_type in UNSCALABLE:
        modules = MODEL_MAP[model_type].module_tree[-1]
        if model_type.startswith("gemma"):
            assert "pre_feedforward_layernorm" not in modules
        elif model_type == "phi3":
            assert "input_layernorm" not in modules
        else:
            # Two linear layers with a GELU between them, and one norm for attention and MLP.
            assert len(modules["mlp"]) == 2
