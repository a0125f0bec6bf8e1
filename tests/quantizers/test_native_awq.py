import pytest
import torch

from helpers.schemes import find_scales, integers, nearest_codes
from qsweep.base.errors import TrialFailed
from qsweep.quantizers.native import stats as statistics
from qsweep.quantizers.native.awq import Shared, quantize, scaled_gram, search_scales
from qsweep.quantizers.native.fold import Fold
from qsweep.quantizers.native.stats import InputStats, quick_output_loss
from qsweep.quantizers.native.stats import output_loss as loss_by_gram

ROWS, CHANNELS, GROUP = 96, 192, 64
SCHEME = integers(3, sym=False, group=GROUP)


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1500, CHANNELS, generator=generator)
    # Few channels are much stronger than the rest: what AWQ is for.
    x[:, ::24] *= 12
    return x


def weights(seed=1):
    return torch.randn(ROWS, CHANNELS, generator=torch.Generator().manual_seed(seed))


def stats_of(x):
    stats = InputStats("layer")
    for part in x.split(400):
        stats.add(part)
    return stats.finish()


def output_loss(w, q, x):
    return float(((w - q) @ x.T).double().square().sum() / len(x))


def rounded(w, scheme=SCHEME):
    grouped = w.view(len(w), -1, GROUP)
    scale, zero = (part[..., None] for part in find_scales(grouped, scheme))
    return ((nearest_codes(grouped, scale, zero, scheme) - zero) * scale).view_as(w)


def test_scaling_lowers_the_error_of_the_output_as_told():
    w, x = weights(), inputs()
    scales, found = search_scales([Shared([w], stats_of(x), SCHEME)])
    plain = output_loss(w, rounded(w), x)
    scaled = output_loss(w, rounded(w * scales) / scales, x)
    assert scaled < 0.6 * plain
    # So few rows are not sampled, so what the Gram matrix says must be what the outputs say.
    assert found["gain"] == pytest.approx(scaled / plain, rel=1e-3)


def test_no_exponent_on_the_grid_is_better():
    w, x = weights(), inputs()
    magnitude = x.abs().mean(0)
    scales, _ = search_scales([Shared([w], stats_of(x), SCHEME)])
    best = output_loss(w, rounded(w * scales) / scales, x)
    for step in range(11):
        tried = magnitude.pow(step / 10)
        tried = tried / (tried.max() * tried.min()).sqrt()
        assert best <= output_loss(w, rounded(w * tried) / tried, x) * 1.0001


def test_layers_that_share_an_input_share_scales():
    first, second, x = weights(), weights(2), inputs()
    together, _ = search_scales([Shared([first, second], stats_of(x), SCHEME)])
    joined, _ = search_scales([Shared([torch.cat([first, second])], stats_of(x), SCHEME)])
    assert torch.allclose(together, joined)


def test_channels_that_never_fire_get_ordinary_scales():
    x = inputs()
    x[:, 7] = 0
    scales, _ = search_scales([Shared([weights()], stats_of(x), SCHEME)])
    assert scales.isfinite().all()
    assert 0.1 < scales[7] < 10
    scales, _ = search_scales([Shared([weights()], stats_of(torch.zeros(20, CHANNELS)), SCHEME)])
    assert scales.isfinite().all()


@pytest.mark.parametrize(
    "scheme", [SCHEME, integers(4, sym=True, group=GROUP), integers(2, sym=False, group=GROUP)]
)
def test_clipping_lowers_the_loss_and_the_loss_is_the_outputs(scheme):
    w, x = weights(), inputs()
    w[:, ::31] *= 4
    gram = x.T @ x / len(x)
    losses = {}
    for clip in (False, True):
        grid, rows = quantize(w, gram, scheme.layers([w])[0], clip=clip)
        losses[clip] = float(rows.sum())
        expected = output_loss(w, grid.dense(torch.float32), x)
        assert losses[clip] == pytest.approx(expected, rel=1e-3)
        if not clip:
            assert torch.allclose(grid.dense(torch.float32), rounded(w, scheme))
    assert losses[True] < losses[False]


def test_clipping_whole_rows_chooses_by_the_whole_matrix():
    w, x = weights(), inputs()
    # What channels have in common lies off the diagonal.
    x += 4 * torch.randn(len(x), 1, generator=torch.Generator().manual_seed(7))
    w[:, 5] *= 6
    gram = x.T @ x / len(x)
    whole = integers(3, sym=False)
    layer = whole.layers([w])[0]
    grid, losses = quantize(w, gram, layer, clip=True)
    assert grid.scales.shape == (len(w), 1)
    full, _ = layer.find(w[:, None])
    shares = grid.scales / full
    assert shares.min() < 0.96
    for share in (0.8, 1.0):
        low, high = (part * share for part in layer.extent(w[:, None]))
        error = layer.rounded(w[:, None], *layer.at(low, high))[:, 0] - w
        assert (losses <= loss_by_gram(error, gram) * 1.01).all()


def test_gram_of_scaled_inputs():
    x = inputs()
    scales = torch.rand(CHANNELS) + 0.5
    expected = (x / scales).T @ (x / scales) / len(x)
    assert torch.allclose(scaled_gram(x.T @ x / len(x), scales), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm_absorbs_scales_exactly_though_it_is_stored_in_bfloat16(offset):
    weight = (torch.rand(CHANNELS) * 0.8 + 0.2 - offset).to(torch.bfloat16)
    weight[3] = -offset
    wanted = torch.rand(CHANNELS) * 2 + 0.2
    new, applied = Fold("norm", torch.arange(CHANNELS), offset).storable(weight, wanted)
    assert new.dtype == torch.bfloat16
    assert torch.allclose((new.float() + offset) * applied, weight.float() + offset, rtol=1e-6)
    # A weight of zero lets nothing through: there is nothing to scale.
    assert applied[3] == 1
    others = torch.arange(CHANNELS) != 3
    assert torch.allclose(applied[others], wanted[others], rtol=0.05)


def test_inputs_from_one_output_share_its_scale():
    # Two outputs of the source, each used by two inputs, as in grouped-query attention.
    fold = Fold("values", torch.tensor([4, 4, 5, 5]), None)
    scales = fold.per_source(torch.tensor([1.0, 4.0, 9.0, 9.0]))
    assert torch.allclose(scales, torch.tensor([2.0, 2.0, 9.0, 9.0]))
    divided = fold.divide_rows(torch.ones(6, 3), scales)
    assert torch.allclose(divided[:, 0], torch.tensor([1.0, 1, 1, 1, 0.5, 1 / 9]))


@pytest.mark.parametrize("channels", [1, 191, 192, 500, 2000])
def test_half_of_a_symmetric_matrix_gives_the_loss_of_all_of_it(channels):
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(300, channels, generator=generator).double()
    error = torch.randn(7, channels, generator=generator).double()
    stats = stats_of(x.float())
    assert torch.allclose(stats.gram.double(), x.T @ x / len(x), atol=1e-5)
    assert torch.equal(stats.gram, stats.gram.T)
    found = loss_by_gram(error.float(), stats.gram).double()
    expected = (error @ x.T).square().mean(1)
    assert torch.allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("common", ["nothing", "a mean", "few tokens"])
def test_losses_in_bfloat16_keep_what_a_dominating_direction_would_drown(monkeypatch, common, fast):
    monkeypatch.setattr(statistics, "multiplies_bfloat16", lambda device: fast)
    x = inputs()
    if common == "a mean":
        x += 20 * torch.randn(CHANNELS, generator=torch.Generator().manual_seed(5))
    if common == "few tokens":
        x[::300] = 1000 * torch.randn(CHANNELS, generator=torch.Generator().manual_seed(5))
    stats = stats_of(x)
    error = weights(3) * 0.01
    # Half of the rows avoid the direction, as weights do that are rounded with it in mind.
    direction = torch.linalg.eigh(stats.gram).eigenvectors[:, -1]
    error[::2] -= (error[::2] @ direction)[:, None] * direction
    expected = ((error.double() @ stats.gram.double()) * error).sum(1)
    found = quick_output_loss(stats.gram)(error).double()
    assert torch.allclose(found, expected, rtol=0.03)
    assert float(found.sum()) == pytest.approx(float(expected.sum()), rel=2e-3)
    if fast and common != "nothing":
        rounded = loss_by_gram(error, stats.gram.bfloat16())
        assert (rounded / expected - 1).abs().max() > 0.1


def test_losses_where_nothing_fires_are_nothing(monkeypatch):
    monkeypatch.setattr(statistics, "multiplies_bfloat16", lambda device: True)
    assert not quick_output_loss(torch.zeros(CHANNELS, CHANNELS))(weights()).any()


def test_statistics_refuse_what_is_not_finite():
    x = inputs()
    x[700, 5] = float("inf")
    with pytest.raises(TrialFailed, match="layer: its inputs are not finite"):
        stats_of(x)
