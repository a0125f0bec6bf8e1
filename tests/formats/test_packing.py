"""Packing against streams of bits written out one by one, and against GPTQModel's own kernels."""

import os

import pytest
import torch

from helpers.packed import make_grid
from helpers.packed import torch_linear as new_torch_linear
from qsweep.formats.awq import pack_awq, unpack_awq
from qsweep.formats.gptq import pack_gptq, unpack_gptq
from qsweep.formats.packing import ALL_BITS, BITS, pack, unpack


def stream_of_bits(codes, bits):
    """One line's codes as a number, split into signed words of 32 bits: the definition itself."""
    number = sum(int(code) << (bits * place) for place, code in enumerate(codes))
    words = -(-len(codes) * bits // 32)
    parts = [(number >> (32 * word)) & 0xFFFFFFFF for word in range(words)]
    return [part - (1 << 32) if part >= 1 << 31 else part for part in parts]


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("count", [1, 7, 8, 11, 32, 33, 96])
def test_pack_is_a_little_endian_stream(bits, count):
    codes = torch.randint(0, 2**bits, (5, count), generator=torch.Generator().manual_seed(count))
    words = pack(codes, bits)
    assert words.dtype == torch.int32
    assert words.tolist() == [stream_of_bits(line.tolist(), bits) for line in codes]
    assert torch.equal(unpack(words, bits, count), codes.to(torch.uint8))


def test_pack_refuses_other_widths():
    with pytest.raises(ValueError, match="9 bits"):
        pack(torch.zeros(1, 8), 9)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", [None, "permuted"])
def test_gptq_round_trip(bits, version, order):
    grid = make_grid(bits, order=order)
    packed = pack_gptq(grid, bits, version)
    assert packed["qweight"].shape == (64 * bits // 32, 32)
    assert packed["qzeros"].shape == (4, 32 * bits // 32)
    found = unpack_gptq(**packed, bits=bits, version=version)
    assert torch.equal(found.codes, grid.codes)
    assert torch.equal(found.zeros, grid.zeros)
    assert (found.g_idx is None) == (order is None)
    assert torch.equal(found.dense(torch.float32), plain_dense(grid))


@pytest.mark.parametrize("bits", ALL_BITS)
def test_awq_round_trip(bits):
    grid = make_grid(bits)
    packed = pack_awq(grid, bits)
    assert packed["qweight"].shape == (64, 32 * bits // 32)
    found = unpack_awq(**packed, bits=bits)
    assert torch.equal(found.codes, grid.codes)
    assert torch.equal(found.zeros, grid.zeros)
    assert torch.equal(found.dense(torch.float32), plain_dense(grid))


def plain_dense(grid):
    """Weight by weight."""
    weight = torch.empty(grid.codes.shape)
    group_size = grid.codes.shape[1] // grid.scales.shape[1]
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            group = column // group_size if grid.g_idx is None else int(grid.g_idx[column])
            difference = int(grid.codes[row, column]) - int(grid.zeros[row, group])
            weight[row, column] = float(grid.scales[row, group]) * difference
    return weight


@pytest.fixture(scope="module")
def gptqmodel():
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    return pytest.importorskip("gptqmodel")


def torch_linear(grid, packed, bits, version):
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    module = new_torch_linear(grid, bits)
    module.load_state_dict(packed)
    if version == 1:
        convert_gptq_v1_to_v2_format_module(module, bits, torch.int32)
    module.post_init()
    return module


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", [None, "permuted"])
def test_gptqmodel_reads_what_is_packed(gptqmodel, bits, version, order):
    grid = make_grid(bits, order=order)
    module = torch_linear(grid, pack_gptq(grid, bits, version), bits, version)
    # It computes in float16, as its kernel does.
    expected = grid.dense(torch.float16)
    torch.testing.assert_close(module.dequantize_weight().T, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("bits", BITS)
def test_reads_what_gptqmodel_packs(gptqmodel, bits):
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    grid = make_grid(bits, seed=1)
    weight = grid.dense(torch.float32)
    linear = torch.nn.Linear(64, 32, bias=False)
    linear.weight.data = weight
    module = torch_linear(grid, pack_gptq(grid, bits, 2), bits, 2)
    g_idx = torch.arange(64, dtype=torch.int32) // 16
    module.pack_original(linear, grid.scales.float(), grid.zeros.float(), g_idx)

    class Settings:
        pass

    Settings.bits, Settings.pack_dtype = bits, torch.int32
    convert_gptq_v2_to_v1_format_module(module, Settings)
    found = unpack_gptq(module.qweight, module.qzeros, module.scales, module.g_idx, bits, 1)
    assert torch.equal(found.codes, grid.codes)
    assert torch.equal(found.zeros, grid.zeros)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_awq_as_gptqmodel_packs_and_reads_it(gptqmodel, bits):
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
    from gptqmodel.quantization.awq.utils.packing_utils import pack_awq as their_pack

    grid = make_grid(bits)
    ours = pack_awq(grid, bits)
    qweight, qzeros = their_pack(
        grid.codes.T.contiguous().int(), grid.zeros.T.contiguous().int(), bits
    )
    assert torch.equal(ours["qweight"], qweight)
    assert torch.equal(ours["qzeros"], qzeros)
    dense = dequantize_gemm(ours["qweight"], ours["qzeros"], ours["scales"], bits, 16)
    torch.testing.assert_close(dense.T, grid.dense(torch.float16), rtol=1e-3, atol=0)
