"""Types of a cache: llama.cpp's bit by bit, the others against arithmetic by hand."""

import ctypes
from pathlib import Path

import numpy
import pytest
import torch

from qsweep.formats.kv_cache.rounding import blockwise, fp8, int8, nvfp4, stored, turned, turned_by
from qsweep.formats.kv_cache.types import CACHE_TYPES, QUANTIZED

LLAMA_CPP = [name for name, kind in QUANTIZED.items() if kind.rotated]


@pytest.fixture(scope="module")
def numbers():
    """Heads of 128 numbers of many sizes, with zeros, ties, a single spike and nearly nothing."""
    dice = numpy.random.default_rng(0)
    found = dice.standard_normal((2000, 128)) * numpy.exp(dice.standard_normal((2000, 1)))
    found[0], found[1], found[2, :32] = 0, numpy.round(found[1] * 2) / 2, 1e-9
    found[3, 1:] = 0
    return found.astype(numpy.float32)


@pytest.mark.parametrize("kind", [name for name in LLAMA_CPP if name != "iq4_nl"])
def test_llama_cpps_types_are_those_of_gguf_bit_by_bit(numbers, kind):
    quants = pytest.importorskip("gguf.quants")
    type_ = quants.GGMLQuantizationType[kind.upper()]
    expected = quants.dequantize(quants.quantize(numbers, type_), type_)
    assert numpy.array_equal(blockwise(torch.from_numpy(numbers), kind).numpy(), expected)


@pytest.mark.parametrize("kind", LLAMA_CPP)
def test_llama_cpps_types_are_those_of_its_library(numbers, kind):
    gguf, llama_cpp = pytest.importorskip("gguf"), pytest.importorskip("llama_cpp")
    library = Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"
    reference = getattr(ctypes.CDLL(str(library)), f"quantize_row_{kind}_ref")
    reference.argtypes, reference.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    type_ = gguf.GGMLQuantizationType[kind.upper()]
    block, size = gguf.GGML_QUANT_SIZES[type_]
    assert CACHE_TYPES[kind].bits(128) == 128 // block * size * 8
    room = numpy.empty((len(numbers), 128 // block * size), numpy.uint8)
    reference(numbers.ctypes.data, room.ctypes.data, numbers.size)
    expected = gguf.quants.dequantize(room, type_)
    found = blockwise(torch.from_numpy(numbers), kind).numpy()
    if kind == "iq4_nl":
        # Its scale is a quotient of sums, which are added up in another order: an fp16's last digit.
        assert (found != expected).mean() < 0.01
        numpy.testing.assert_allclose(found, expected, rtol=2**-10)
    else:
        assert numpy.array_equal(found, expected)


def test_fp8_saturates_and_counts():
    given = torch.tensor([1.0, 1.06, 447.0, 464.0, 465.0, -1e6, 2**-11])
    back, cut = fp8(given)
    assert back.tolist() == [1.0, 1.0, 448.0, 448.0, 448.0, -448.0, 0.0] and cut == 2
    back, cut = fp8(given, scale=2500.0)
    assert cut == 0 and back[5] == pytest.approx(-1e6, rel=2**-4)
    assert torch.equal(back, (given / 2500).to(torch.float8_e4m3fn).float() * 2500)


def test_int8_has_a_scale_per_head_and_token_and_cuts_off():
    given = torch.tensor([[[127.0, 1.9, -1.9, 0.4]], [[0.0, 0.0, 0.0, 0.0]]])
    assert int8(given).tolist() == [[[127.0, 1.0, -1.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]]]
    # Below the least scale that vLLM takes nothing is left.
    assert int8(torch.tensor([[9e-7, -9e-7]])).tolist() == [[0.0, 0.0]]


def test_nvfp4_rounds_to_the_even_code_under_a_scale_in_e4m3():
    steps = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, -0.26, -0.74, -5.1, -6.0, 0, 0, 0, 0]
    rounded = [0, 1, 1, 2, 2, 4, 4, 6, -0.5, -0.5, -6, -6, 0, 0, 0, 0]
    back, cut = nvfp4(torch.tensor([steps]))
    assert back.tolist() == [rounded] and cut == 0
    # 6.3 / 6 is 1 in e4m3, so that the largest is cut a little; above 6 x 448 there is no scale.
    back, _ = nvfp4(torch.tensor([[6.3] + [0.0] * 15]))
    assert back[0, 0] == 6.0
    back, cut = nvfp4(torch.full((1, 16), 6.0 * 896))
    assert cut == 16 and back.unique().item() == 6 * 448
    assert nvfp4(torch.zeros(1, 16))[0].tolist() == [[0.0] * 16]


def test_heads_are_turned_as_llama_cpp_turns_them():
    assert [turned_by(size, "keys") for size in (32, 80, 96, 64, 128, 192, 256)] == [
        *(1, 1, 1, 64, 128, 64, 256)
    ]
    assert [turned_by(size, "values") for size in (32, 64, 128, 256)] == [1, 64, 64, 64]
    given = torch.randn(3, 5, 128, generator=torch.Generator().manual_seed(0))
    for size in (64, 128):
        torch.testing.assert_close(turned(turned(given, size), size), given)
    # Sylvester's order, as ggml_gen_hadamard fills it.
    first = torch.zeros(64).index_fill_(0, torch.tensor([3]), 8.0)
    assert turned(first, 64)[:8].tolist() == [1, -1, -1, 1, 1, -1, -1, 1]


def test_keys_in_pairs_are_in_llama_cpps_order():
    given = torch.randn(9, 96, generator=torch.Generator().manual_seed(0))
    order = torch.arange(96).view(2, 48).T.flatten()  # 0, 48, 1, 49, …
    back = stored(given, "q4_0", "keys", pairs=True)[0]
    assert torch.equal(back[:, order], blockwise(given[:, order], "q4_0"))
    for kind, part in (("q4_0", "values"), ("nvfp4", "keys"), ("int8", "keys")):
        assert torch.equal(stored(given, kind, part, pairs=True)[0], stored(given, kind, part)[0])


def test_one_large_channel_hurts_less_after_turning():
    given = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    given[:, 7] *= 50
    plain = (blockwise(given, "q4_0") - given)[:, :7].norm()
    assert (stored(given, "q4_0", "keys")[0] - given)[:, :7].norm() < 0.6 * plain


@pytest.mark.parametrize("kind", QUANTIZED)
def test_what_comes_back_has_the_dtype_and_nearly_the_numbers(kind):
    given = torch.randn(2, 3, 5, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    back, cut = stored(given, kind, "values")
    assert back.dtype == torch.bfloat16 and back.shape == given.shape
    error = float((back - given).float().norm() / given.float().norm())
    assert error < {8: 0.03, 6: 0.04, 5: 0.08, 4: 0.13}[int(QUANTIZED[kind].number)]
    assert cut is None or cut == 0
    assert torch.equal(stored(torch.zeros(1, 64), kind, "keys")[0], torch.zeros(1, 64))
