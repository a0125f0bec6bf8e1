from dataclasses import dataclass

import pytest
import torch

from helpers.schemes import find_scales, integers, nearest_codes
from qsweep.base.errors import TrialFailed
from qsweep.formats import numbers
from qsweep.formats.numbers.rounding import grouped_rows, round_to_nearest
from qsweep.formats.numbers.scheme import Scheme
from qsweep.formats.numbers.superblocks import block_scheme
from qsweep.quantizers.native import columns
from qsweep.quantizers.native.gptq import Settings, factorize, retarget


def inputs(tokens=2048, channels=192, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(channels, channels, generator=generator)
    scale = torch.rand(channels, generator=generator) + 0.05
    return (torch.randn(tokens, channels, generator=generator) @ mix * scale).float()


def gram_of(x):
    return x.T @ x / len(x)


def weights(rows=96, channels=192, seed=1):
    return torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, kw_only=True)
class Setting(Settings):
    """Settings with the scheme that they are used with."""

    scheme: Scheme


def solve(weights, factors, settings):
    layers = [one.scheme.layers([w])[0] for w, one in zip(weights, settings, strict=True)]
    return columns.solve(weights, factors, settings, layers)


def settings(bits=4, group=64, *, sym=True, search="range", desc_act=False, aware=True, damp=0.05):
    scheme = integers(bits, sym, group, search)
    return Setting(group, desc_act, aware, damp, scheme=scheme)


def output_loss(w, q, x):
    return float(((w - q) @ x.T).double().square().sum() / len(x))


def rounded(w, setting):
    return round_to_nearest(w, setting.scheme).dense(torch.float32)


def column_by_column(matrix, gram, setting):
    """The algorithm as the paper has it, in float64, without blocks."""
    factor = factorize(gram, setting, "layer")
    order = torch.arange(matrix.shape[1]) if factor.order is None else factor.order
    upper, w = factor.upper.double(), matrix.double()[:, order].clone()
    done, layer = torch.zeros_like(w), setting.scheme.layers([matrix])[0]
    if setting.static:
        importance = torch.empty(w.shape[1])
        importance[order] = factor.upper.diagonal().reciprocal().square()
        size = setting.group_size
        fixed = layer.find(grouped_rows(matrix, size), grouped_rows(importance[None], size)[0])
    for i in range(w.shape[1]):
        if setting.static:
            group = order[i] // setting.group_size
            scale, zero = (part[:, group, None] for part in fixed)
        elif i % setting.group_size == 0:
            group = slice(i, i + setting.group_size)
            importance = factor.upper.diagonal()[group].reciprocal().square()
            scale, zero = layer.find(w[:, None, group].float(), importance)
        done[:, i] = layer.rounded(w[:, i, None, None].float(), scale, zero)[:, 0, 0]
        error = (w[:, i] - done[:, i]) / upper[i, i]
        w[:, i + 1 :] -= error[:, None] * upper[i, i + 1 :]
    back = torch.zeros_like(done)
    back[:, order] = done
    return back.float()


def of_format(number, group, search="range", *, aware=True, static=False):
    scheme = number.scheme(4, group, True, dtype=torch.float16, search=search)
    return Setting(scheme.groups(192), False, aware, 0.05, static=static, scheme=scheme)


CASES = {
    "plain": settings(aware=False),
    "group-aware": settings(),
    "desc_act": settings(desc_act=True, sym=False),
    "mse": settings(3, 32, search="mse", sym=False),
    "loss": settings(2, 32, search="loss"),
    "per channel": settings(8, 192, sym=False),
    "one group": settings(4, 192, aware=False),
    "nvfp4": of_format(numbers.NVFP4(), 16),
    "nvfp4 plain": of_format(numbers.NVFP4(), 16, "loss", aware=False),
    "mxfp4": of_format(numbers.MXFP4(), 32, "mse"),
    "mxfp8": of_format(numbers.MXFP8(), 32),
    "fp8": of_format(numbers.FP8(), -1),
    "fp8 ragged blocks": of_format(numbers.FP8Block(), 128),
    "nf4": of_format(numbers.NF4(), 64),
    "ternary": of_format(numbers.Ternary(), 128, "loss"),
    "static nvfp4": of_format(numbers.NVFP4(), 16, static=True),
    "static mxfp4": of_format(numbers.MXFP4(), 32, "loss", static=True),
    "static w4a16": of_format(numbers.W4A16(), 128, static=True),
    "static nf4": of_format(numbers.NF4(), 64, static=True),
}


@pytest.mark.parametrize("setting", CASES.values(), ids=CASES)
def test_solve_is_the_papers_algorithm(setting):
    w, gram = weights(), gram_of(inputs())
    ((grid, _),) = solve([w], [factorize(gram, setting, "layer")], [setting])
    expected = column_by_column(w, gram, setting)
    # A value on the edge between two codes may fall to either side in float32.
    assert (grid.dense(torch.float32) == expected).float().mean() > 0.995


@pytest.mark.parametrize("setting", CASES.values(), ids=CASES)
def test_better_than_rounding_to_nearest(setting):
    w, x = weights(), inputs()
    ((grid, losses),) = solve([w], [factorize(gram_of(x), setting, "layer")], [setting])
    loss = output_loss(w, grid.dense(torch.float32), x)
    assert loss < 0.8 * output_loss(w, rounded(w, setting), x)
    # What the solver reports is the loss on the damped matrix, so a little more.
    assert loss < float(losses.sum()) < 2 * loss


def by_spans(w, gram, setting):
    """The same for scales that hang together, of which a span's own are found first."""
    factor, (layer,) = factorize(gram, setting, "layer"), setting.scheme.layers([w])
    upper, size = factor.upper.double(), setting.group_size
    w, done = w.double()[:, factor.order].clone(), torch.zeros_like(w).double()
    for i in range(w.shape[1]):
        if i % setting.span == 0:
            span = slice(i, i + setting.span)
            importance = factor.upper.diagonal()[span].reciprocal().square()
            opened = layer.opened(w[:, span].float().reshape(len(w), -1, size), importance)
        if i % size == 0:
            group = slice(i, i + size)
            importance = factor.upper.diagonal()[group].reciprocal().square()
            scale, zero = opened.find(w[:, None, group].float(), importance)
        done[:, i] = opened.rounded(w[:, i, None, None].float(), scale, zero)[:, 0, 0]
        error = (w[:, i] - done[:, i]) / upper[i, i]
        w[:, i + 1 :] -= error[:, None] * upper[i, i + 1 :]
    back = torch.zeros_like(done)
    back[:, factor.order] = done
    return back.float()


@pytest.mark.parametrize("name", ["Q4_K", "Q3_K", "Q2_K", "Q5_1"])
def test_scales_that_hang_together_are_the_papers_algorithm_by_spans(name):
    w, x = weights(channels=512), inputs(channels=512)
    scheme = block_scheme(name)
    size, span = scheme.groups(512), scheme.span(512)
    setting = Setting(size, False, True, 0.05, span=span, scheme=scheme)
    factor = factorize(gram_of(x), setting, "layer")
    groups = factor.order.view(-1, size)
    assert (groups // size == groups[:, :1] // size).all()
    spans = factor.order.view(-1, span)
    assert (spans // span == spans[:, :1] // span).all()
    ((matrix, losses),) = solve([w], [factor], [setting])
    dense = matrix.dense(torch.float32)
    # A weight that lies between two levels may go either way; few do.
    expected = by_spans(w, gram_of(x), setting)
    assert output_loss(w, dense, x) == pytest.approx(output_loss(w, expected, x), rel=2e-2)
    assert ((dense - expected).abs() > 1e-5).float().mean() < 0.05
    assert output_loss(w, dense, x) < output_loss(w, scheme.rounded(w).dense(torch.float32), x)


def test_company_changes_no_bit():
    many = [*CASES.values(), settings(3, 128 // 2, sym=False)]
    w, gram = weights(), gram_of(inputs())
    factors = [factorize(gram, one, "layer") for one in many]
    together = solve([w] * len(many), factors, many)
    for one, factor, (grid, losses) in zip(many, factors, together, strict=True):
        ((alone, own_losses),) = solve([w], [factor], [one])
        for part in ("codes", "zeros", "scales"):
            assert torch.equal(getattr(grid, part), getattr(alone, part))
        assert torch.equal(losses, own_losses)


def test_group_aware_keeps_groups_together_and_desc_act_does_not():
    w, gram = weights(), gram_of(inputs())
    for setting, together in ((settings(), True), (settings(desc_act=True), False)):
        ((grid, _),) = solve([w], [factorize(gram, setting, "layer")], [setting])
        assert (grid.g_idx is None) is together
        if not together:
            assert torch.equal(grid.g_idx.bincount(), torch.full((3,), 64))


def test_dead_channels_are_rounded_to_nearest_and_do_not_disturb():
    x, w = inputs(), weights()
    x[:, [3, 70]] = 0
    setting = settings(aware=False)
    ((grid, losses),) = solve([w], [factorize(gram_of(x), setting, "layer")], [setting])
    quantized = grid.dense(torch.float32)
    assert losses.isfinite().all()
    step = grid.scales[:, [0, 1]]
    assert ((quantized - w)[:, [3, 70]].abs() <= 0.51 * step).float().mean() > 0.95
    assert output_loss(w, quantized, x) < 0.8 * output_loss(w, rounded(w, setting), x)


def test_inputs_that_are_all_zero_give_plain_rounding():
    w, setting = weights(), settings(aware=False)
    ((grid, _),) = solve([w], [factorize(torch.zeros(192, 192), setting, "layer")], [setting])
    assert torch.equal(grid.dense(torch.float32), rounded(w, setting))


def test_fewer_tokens_than_channels():
    x, w, setting = inputs(tokens=20), weights(), settings()
    ((grid, _),) = solve([w], [factorize(gram_of(x), setting, "layer")], [setting])
    loss = output_loss(w, grid.dense(torch.float32), x)
    assert loss < 0.5 * output_loss(w, rounded(w, setting), x)


def test_damping_grows_until_the_matrix_can_be_factorized():
    gram = gram_of(inputs())
    broken = gram - 0.3 * gram.diagonal().mean() * torch.eye(192)
    setting = settings(damp=1e-4)
    factor = factorize(broken, setting, "layer")
    assert factor.damp > setting.damp_percent
    assert factorize(gram, setting, "layer").damp == setting.damp_percent


def test_a_matrix_that_cannot_be_factorized_names_the_layer():
    gram = gram_of(inputs())
    gram[5, 6] = gram[6, 5] = float("nan")
    with pytest.raises(TrialFailed, match="model.layers.7.up_proj"):
        factorize(gram, settings(), "model.layers.7.up_proj")


def test_factor_is_of_the_inverse():
    gram, setting = gram_of(inputs()), settings(aware=False)
    upper = factorize(gram, setting, "layer").upper.double()
    damped = gram.double() + 0.05 * gram.diagonal().mean().double() * torch.eye(192)
    product = upper.T @ upper @ damped
    assert torch.allclose(product, torch.eye(192, dtype=torch.float64), atol=1e-3)
    assert torch.equal(upper, upper.triu())


@pytest.mark.parametrize("channels", [128, 129, 1000])
def test_the_inverse_of_a_triangular_matrix_at_any_size(channels):
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(3 * channels, channels, generator=generator)
    gram = x.T @ x / len(x)
    upper = factorize(gram, settings(aware=False), "layer").upper
    damped = gram.double()
    damped.diagonal().add_(0.05 * gram.diagonal().mean().double())
    lower = torch.linalg.cholesky(torch.linalg.inv(damped))
    assert torch.allclose(upper.double(), lower.T, atol=1e-4)
    assert torch.equal(upper, upper.triu()) and upper.is_contiguous()


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_rounding_error_is_half_a_step(bits, sym):
    scheme = integers(bits, sym)
    w = weights().view(96, 3, 64)
    scale, zero = find_scales(w, scheme)
    codes = nearest_codes(w, scale[..., None], zero[..., None], scheme)
    assert codes.min() >= 0
    assert codes.max() <= scheme.grid.top
    error = ((codes - zero[..., None]) * scale[..., None] - w).abs() / scale[..., None]
    # Only the far end of a range may lie outside: by half a step, the rounding of the zero point.
    assert (error <= 0.5 + 1e-3 * scheme.grid.top).float().mean() > 0.95
    assert error.max() <= 1.01 + 1e-3 * scheme.grid.top
    assert torch.equal(scale, scale.half().float())


def test_search_never_does_worse_than_the_range():
    w = weights().view(96, 3, 64)
    w[:, :, 5] *= 6
    importance = torch.rand(64) + 0.1

    def loss(search, power, weight):
        scheme = integers(3, True, search=search)
        scale, zero = find_scales(w, scheme, importance)
        codes = nearest_codes(w, scale[..., None], zero[..., None], scheme)
        error = ((codes - zero[..., None]) * scale[..., None] - w).abs()
        return (error.pow(power) * weight).sum(-1)

    assert (loss("mse", 2.4, 1.0) <= loss("range", 2.4, 1.0) * 1.0001).all()
    assert (loss("loss", 2, importance) <= loss("range", 2, importance) * 1.0001).all()


def test_groups_of_zeros_and_of_one_sign():
    w = torch.zeros(2, 64)
    w[1] = torch.linspace(1.0, 2.0, 64)
    for sym in (True, False):
        scheme = integers(4, sym)
        scale, zero = find_scales(w, scheme)
        back = (nearest_codes(w, scale[:, None], zero[:, None], scheme) - zero[:, None]) * scale[
            :, None
        ]
        assert torch.equal(back[0], torch.zeros(64))
        assert (back[1] - w[1]).abs().max() <= scale[1] * 1.01


@pytest.mark.parametrize("order", ["plain", "group-aware", "desc_act"])
def test_moved_weights_are_the_regression_on_the_changed_inputs(order):
    plain, w = inputs(), weights()
    changed = plain + 0.1 * inputs(seed=3)
    changed[:, 7] = 0  # a dead channel says nothing
    setting = settings(desc_act=order == "desc_act", aware=order == "group-aware", damp=1e-7)
    gram, cross = gram_of(changed), plain.T @ changed / len(plain)
    factor = factorize(gram, setting, "layer")
    moved = retarget(w, gram, cross, factor, 1.0)
    alive = [channel for channel in range(192) if channel != 7]
    wanted = torch.linalg.lstsq(changed[:, alive].double(), plain.double() @ w.double().T)
    assert torch.allclose(moved[:, alive].double(), wanted.solution.T, atol=2e-3)
    assert torch.equal(moved[:, 7], w[:, 7])
    half = retarget(w, gram, cross, factor, 0.5)
    assert torch.allclose(half, (w + moved) / 2, atol=1e-5)


def test_inputs_that_did_not_change_move_nothing():
    gram, w = gram_of(inputs()), weights()
    assert torch.equal(retarget(w, gram, gram, factorize(gram, settings(), "layer"), 1.0), w)


def test_moved_weights_bring_the_output_nearer_once_they_are_rounded():
    plain, w = inputs(), weights()
    changed = plain + 0.1 * inputs(seed=3)
    gram, setting = gram_of(changed), settings(4, 32)
    factor = factorize(gram, setting, "layer")
    moved = retarget(w, gram, plain.T @ changed / len(plain), factor, 1.0)
    errors = []
    for target in (w, moved):
        ((grid, _),) = solve([target], [factor], [setting])
        output = changed @ grid.dense(torch.float32).T
        errors.append(float((output - plain @ w.T).square().mean()))
    assert errors[1] < 0.9 * errors[0]
