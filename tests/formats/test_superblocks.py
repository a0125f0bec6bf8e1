"""llama.cpp's blocks: what is packed is what was solved, and scales are searched well."""

import ctypes

import pytest
import torch

pytest.importorskip("llama_cpp")

from qsweep.formats.gguf.ggml import (  # noqa: E402
    dequantize_rows,
    dequantize_rows_numpy,
    library_path,
)
from qsweep.formats.gguf.packing import block_bytes  # noqa: E402
from qsweep.formats.gguf.types import tensor_type  # noqa: E402
from qsweep.formats.numbers.block_types import BLOCK_TYPES, FALLBACKS  # noqa: E402
from qsweep.formats.numbers.superblocks import (  # noqa: E402
    block_scheme,
)


def weights(rows=24, columns=512, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(rows, 1, generator=generator) + 0.01
    return torch.randn(rows, columns, generator=generator) * sizes


def odd_weights():
    """Rows and blocks that leave something out: zeros, one sign, hardly anything, one large weight."""
    found = weights()
    found[0] = 0
    found[1, :256] = 0
    found[2] = found[2].abs()
    found[3] = -found[3].abs()
    found[4] *= 1e-7
    found[5] = 0.25
    found[6, 300] = 100
    found[7, 32:48] = 0
    return found


def by_ggml(rows, name):
    """What ggml itself rounds weights to, without an importance matrix."""
    type_ = tensor_type(name)
    out = torch.empty(len(rows), type_.bytes_of(rows.shape[1]), dtype=torch.uint8)
    quantize = ctypes.CDLL(str(library_path())).ggml_quantize_chunk
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    quantize.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    quantize.restype = ctypes.c_size_t
    rows = rows.contiguous()
    quantize(type_.number, rows.data_ptr(), out.data_ptr(), 0, *rows.shape, None)
    dense = torch.empty_like(rows)
    dequantize_rows(out, type_, dense)
    return dense


@pytest.mark.parametrize("name", BLOCK_TYPES)
@pytest.mark.parametrize("make", [weights, odd_weights])
def test_what_is_packed_is_what_was_solved(name, make):
    matrix = block_scheme(name).rounded(make())
    packed, type_ = block_bytes(matrix), tensor_type(name)
    assert packed.shape[1] == type_.bytes_of(512)
    dense = matrix.dense(torch.float32)
    found = torch.empty_like(dense)
    dequantize_rows(packed, type_, found)
    assert torch.equal(found, dense)
    assert torch.equal(dequantize_rows_numpy(packed, type_), dense)
    assert torch.equal(matrix.rows(slice(3, 9)).dense(torch.float32), dense[3:9])


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_scales_are_searched_at_least_as_well_as_ggml_does(name):
    rows = weights()
    ours = (block_scheme(name).rounded(rows).dense(torch.float32) - rows).square().sum()
    assert ours <= 1.01 * (by_ggml(rows, name) - rows).square().sum()


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_nothing_stays_nothing_and_no_weight_is_lost_beside_a_large_one(name):
    rows = odd_weights()
    dense = block_scheme(name).rounded(rows).dense(torch.float32)
    assert dense.isfinite().all()
    assert (dense[0] == 0).all()
    assert (dense[1, :256] == 0).all()
    large = dense[6, 300]
    assert large == pytest.approx(100, rel=0.2)


@pytest.mark.parametrize("name", FALLBACKS)
def test_rows_that_super_blocks_do_not_divide_are_blocks_of_32(name):
    scheme = block_scheme(name)
    assert scheme.type_of(768).name == name
    assert scheme.type_of(576).name == FALLBACKS[name]
    assert (scheme.groups(576), scheme.span(576)) == (32, 32)
    matrix = scheme.rounded(weights(columns=576))
    assert block_bytes(matrix).shape[1] == tensor_type(FALLBACKS[name]).bytes_of(576)
