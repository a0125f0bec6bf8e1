"""Grids, scales and schemes beside the libraries whose formats they are."""

import pytest
import torch
from compressed_tensors.quantization import preset_name_to_scheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.quant_args import FP4_E2M1_DATA
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

from qsweep.base.errors import ConfigError
from qsweep.formats import numbers
from qsweep.formats.compressed_encoder import CompressedEncoder, _extent
from qsweep.formats.numbers.grids import E2M1, E4M3, Codebook, Integers
from qsweep.formats.numbers.rounding import round_to_nearest
from qsweep.formats.numbers.scales import E4M3_SCALE

PRESETS = [
    cls()
    for cls in (
        *(numbers.W4A16, numbers.W8A16, numbers.W8A8, numbers.FP8, numbers.FP8Dynamic),
        *(numbers.FP8Block, numbers.NVFP4, numbers.MXFP4, numbers.MXFP8),
    )
]
EVERY = [*PRESETS, numbers.NF4(), numbers.FP4(), numbers.Ternary()]
NONE = torch.zeros(())


def weights(rows=192, columns=384, seed=0):
    """Some small, some large, some tiny rows, groups of nothing, and a few outliers."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, columns, generator=generator)
    w *= torch.logspace(-6, 2, rows)[:, None]
    w[5, :128] = 0
    w[7] = 0
    w[::9, ::31] *= 20
    return w


def scheme_of(number, search="range"):
    return number.scheme(4, 128, True, dtype=torch.float32, search=search)


def test_e2m1_rounds_as_compressed_tensors_does_ties_and_all():
    steps = torch.cat([torch.linspace(-8, 8, 4097), torch.randn(5000) * 3])
    expected = FP4_E2M1_DATA.cast_to_fp4(steps.clamp(-6, 6))
    assert torch.equal(E2M1.nearest(steps.clone(), NONE), expected)
    half = steps.bfloat16()
    assert torch.equal(E2M1.nearest(half.clone(), NONE).float(), E2M1.nearest(half.float(), NONE))


@pytest.mark.parametrize(
    "grid",
    [E2M1, E4M3, Codebook(numbers.NF4._values), Codebook(numbers.FP4._values)],
    ids=("e2m1", "e4m3", "nf4", "fp4"),
)
def test_levels_come_back_from_their_codes(grid):
    levels = grid.nearest(torch.randn(3, 4000) * grid.largest / 2, NONE)
    assert torch.equal(grid.table[grid.codes(levels.clone(), NONE).long()], levels)
    # No level lies nearer than the one that was taken.
    steps = torch.rand(2000) * 2 * grid.largest - grid.largest
    table = grid.table[grid.table.isfinite()]
    nearest = (steps[:, None] - table).abs().amin(1)
    assert torch.allclose((grid.nearest(steps.clone(), NONE) - steps).abs(), nearest)


def test_narrow_integers_have_as_many_levels_below_zero_as_above():
    grid, zero = Integers(2, sym=True, narrow=True), torch.full((), 2.0)
    assert sorted(set(grid.nearest(torch.linspace(-9, 9, 50), zero).tolist())) == [-1, 0, 1]


@pytest.mark.parametrize("number", PRESETS, ids=lambda n: n.name)
def test_rounding_by_the_scheme_is_the_librarys_in_float32(number):
    w, args = weights(), preset_name_to_scheme(number.preset, ["Linear"]).weights
    whole = None
    if args.strategy == "tensor_group":
        whole = generate_gparam(w.amin(), w.amax())
    scale, zero = calculate_qparams(*_extent(w, args), args, global_scale=whole)
    expected = fake_quantize(w, scale, zero, args, global_scale=whole)
    found = round_to_nearest(w, scheme_of(number)).dense(torch.float32)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("number", [numbers.NF4(), numbers.FP4()], ids=lambda n: n.name)
def test_rounding_by_the_scheme_is_bitsandbytes(number):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    w = weights()
    codes, state = quantize_4bit(w, blocksize=64, quant_type=number.name)
    found = round_to_nearest(w, scheme_of(number))
    assert torch.equal(
        found.scales[w.unflatten(1, (-1, 64)).any(-1)],
        state.absmax.view(192, -1)[w.unflatten(1, (-1, 64)).any(-1)],
    )
    # It multiplies by the inverse, so that what lies on an edge may fall to either side.
    same = found.dense(torch.float32) == dequantize_4bit(codes, state)
    assert same.float().mean() > 0.9999


@pytest.mark.parametrize("search", ["mse", "loss"])
@pytest.mark.parametrize("number", EVERY, ids=lambda n: n.name)
def test_a_search_does_no_worse_than_the_extremes(number, search):
    w, importance = weights(64, 256), torch.rand(256) + 0.1
    if number.name in ("fp8_block", "fp8"):  # rows of one size share their scale
        w = w / w.abs().amax(1, keepdim=True).clamp(min=1e-9)
    losses = {}
    for how in ("range", search):
        scheme = scheme_of(number, how)
        layer = scheme.layers([w])[0]
        grouped = w.unflatten(1, (-1, scheme.groups(256)))
        weighed = importance[: grouped.shape[-1]]
        scale, zero = layer.find(grouped, weighed)
        error = (layer.rounded(grouped, scale, zero) - grouped).abs()
        power = error.pow(2.4) if search == "mse" else error.square() * weighed
        losses[how] = layer.share(power.sum(-1))
    assert (losses[search] <= losses["range"] * 1.0001).all()


def test_layers_that_share_their_input_share_their_global_scale():
    layers = scheme_of(numbers.NVFP4()).layers([weights(32), 3 * weights(16)])
    assert layers[0].whole == layers[1].whole
    assert layers[0].whole == E4M3_SCALE.whole(3 * weights(16).abs().amax(), 6.0)


@pytest.mark.parametrize("number", PRESETS, ids=lambda n: n.name)
def test_what_is_packed_is_what_was_chosen(number):
    w = weights(64, 256)
    encoder = CompressedEncoder(number.preset, 4, 128, True, torch.float32)
    matrix = round_to_nearest(w, scheme_of(number))
    from qsweep.formats.compressed_tensors import decompress

    found = decompress(encoder.pack(matrix), encoder.scheme, encoder.stored_as)
    assert torch.equal(found, matrix.dense(torch.float32))


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_plain_integers_are_packed_too(bits, sym):
    from qsweep.formats.compressed_tensors import decompress

    encoder = CompressedEncoder(None, bits, 32, sym, torch.bfloat16)
    scheme = numbers.Int().scheme(bits, 32, sym, dtype=torch.bfloat16)
    matrix = round_to_nearest(
        torch.randn(48, 96, generator=torch.Generator().manual_seed(1)), scheme
    )
    parts = encoder.pack(matrix)
    assert parts["weight_scale"].dtype == torch.bfloat16
    found = decompress(parts, encoder.scheme, encoder.stored_as)
    assert torch.equal(found, matrix.dense(torch.float32))


def test_blocks_at_the_edges_are_smaller():
    w = weights(200, 300)
    matrix = round_to_nearest(w, scheme_of(numbers.FP8Block()))
    assert matrix.scales.shape == (200, 3)
    assert len(matrix.scales[:128].unique(dim=0)) == len(matrix.scales[128:].unique(dim=0)) == 1
    error = (matrix.dense(torch.float32) - w).abs()
    assert (error[:, 256:] <= matrix.scales[:, 2:] * 16).all()


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: numbers.NVFP4(container="compresed-tensors"), "did you mean 'compressed-tensors'"),
        (lambda: numbers.W8A8(smoothquant=1.5), "format.smoothquant=1.5: must lie between 0 and 1"),
    ],
)
def test_what_no_format_has_is_refused(make, line):
    with pytest.raises(ConfigError, match=line):
        make()
