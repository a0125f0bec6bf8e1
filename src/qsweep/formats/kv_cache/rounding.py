"""What comes back of a key or a value that a cache stored: the arithmetic of each type. Pure.

Everything here takes and gives float32 whose last dimension is that along which blocks lie.

llama.cpp's are ``quantize_row_*_ref`` of ggml/src/ggml-quants.c; its run on a CPU rounds q8_0 to even
where these round half away from zero. vLLM's fp8 and int8 are those of
``reshape_and_cache`` (csrc/cache_kernels.cu) and of ``int8_per_token_head``
(vllm/v1/attention/ops/triton_reshape_and_cache_flash.py), which cuts off what it does not round.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Part = Literal["keys", "values"]

_E4M3_MAX, _E2M1_MAX = 448.0, 6.0
# The numbers of e2m1, and the bounds between them; a tie goes to the one with the even code.
_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# The smallest matrix that llama.cpp turns heads by; values get this one, keys the largest that fits.
_TURN = 64


def stored(
    numbers: "Tensor", kind: str, part: Part, scale: float = 1.0, *, pairs: bool = False
) -> "tuple[Tensor, Tensor | None]":
    """Keys or values as they come back from a cache.

    Args:
        numbers: [..., head size], of any floating dtype, after rotary embedding.
        kind: A name of :data:`~qsweep.formats.kv_cache.types.QUANTIZED`.
        part: Which of the two they are.
        scale: Of the whole tensor, which fp8 has.
        pairs: Whether llama.cpp has keys of this model in pairs, see
            :data:`~qsweep.formats.kv_cache.types.KEYS_IN_PAIRS`.

    Returns:
        They, in their own dtype; and how many numbers were beyond the type's range and so cut off,
        int64 [], None for a type that reaches as far as its numbers.
    """
    given = numbers.float()
    cut = None
    if kind == "fp8":
        back, cut = fp8(given, scale)
    elif kind == "nvfp4":
        back, cut = nvfp4(given)
    elif kind == "int8":
        back = int8(given)
    else:
        size = given.shape[-1]
        pairs = pairs and part == "keys" and size % 2 == 0
        if pairs:
            given = given.unflatten(-1, (2, size // 2)).mT.flatten(-2)
        turn = turned_by(size, part)
        # The matrix is its own inverse.
        back = turned(blockwise(turned(given, turn), kind), turn)
        if pairs:
            back = back.unflatten(-1, (size // 2, 2)).mT.flatten(-2)
    return back.to(numbers.dtype), cut


# --- vLLM's ------------------------------------------------------------------------------------


def fp8(numbers: "Tensor", scale: float = 1.0) -> "tuple[Tensor, Tensor]":
    """e4m3 of what is left of ``scale``, saturating; and how many numbers were cut off."""
    import torch

    left = numbers / scale
    codes = left.clamp(-_E4M3_MAX, _E4M3_MAX).to(torch.float8_e4m3fn)
    # What rounds down to the largest number is not lost: halfway to the next would be 464.
    return codes.to(torch.float32) * scale, (left.abs() > _E4M3_MAX + 16).sum()


def int8(numbers: "Tensor") -> "Tensor":
    """A scale for each head of each token, amax / 127 (at least 1e-6); codes cut off towards 0."""
    scale = (numbers.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-6)
    return (numbers * (1 / scale)).clamp(-128, 127).trunc() * scale


def nvfp4(numbers: "Tensor") -> "tuple[Tensor, Tensor]":
    """e2m1 in blocks of 16, whose scale amax / 6 is rounded to e4m3; and how many were cut off.

    The scale of the whole tensor, by which the blocks' would be divided, is 1. A block below 2^-10 x 6
    has none left and is zero.
    """
    import torch

    from qsweep.formats.numbers.grids import E2M1

    blocks = numbers.unflatten(-1, (-1, 16))
    wanted = blocks.abs().amax(-1, keepdim=True) / _E2M1_MAX
    scale = wanted.clamp(max=_E4M3_MAX).to(torch.float8_e4m3fn).to(torch.float32)
    left = torch.where(scale == 0, 0.0, blocks / scale)
    # A scale that is rounded down cuts its block's largest a little; that is no saturation.
    cut = (left.abs() > _E2M1_MAX * (1 + 2**-4)).sum()
    return (E2M1.nearest(left, scale) * scale).flatten(-2), cut


# --- llama.cpp's -------------------------------------------------------------------------------


def blockwise(numbers: "Tensor", kind: str) -> "Tensor":
    """One of llama.cpp's types in blocks of 32."""
    blocks = numbers.unflatten(-1, (-1, 32))
    return _BLOCKWISE[kind](blocks).flatten(-2)


def _q8_0(blocks: "Tensor") -> "Tensor":
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    left = blocks * _inverse(scale)
    size = left.abs()
    # Half away from zero; adding 0.5 first would round 0.49999997 up.
    codes = (size.floor() + (2 * (size - size.floor())).floor()).copysign(left)
    return codes * _half(scale)


def _symmetric(levels: int, blocks: "Tensor") -> "Tensor":
    """q4_0, q5_0: the number farthest from zero is the lowest code."""
    scale = _farthest(blocks) / -levels
    codes = (blocks * _inverse(scale) + (levels + 0.5)).trunc().clamp(0, 2 * levels - 1)
    return (codes - levels) * _half(scale)


def _affine(highest: int, blocks: "Tensor") -> "Tensor":
    """q4_1, q5_1: from the lowest number to the highest."""
    low, high = blocks.aminmax(dim=-1, keepdim=True)
    scale = (high - low) / highest
    codes = ((blocks - low) * _inverse(scale) + 0.5).trunc().clamp(0, highest)
    return codes * _half(scale) + _half(low)


def _iq4_nl(blocks: "Tensor") -> "Tensor":
    """Sixteen fixed values; the scale is that of least squares, weighted by the squares."""
    import torch

    values = blocks.new_tensor(_IQ4_NL)
    farthest = _farthest(blocks)
    left = torch.where(farthest == 0, 0.0, blocks * _inverse(farthest / values[0]))
    codes = values[torch.bucketize(left, (values[1:] + values[:-1]) / 2, right=True)]
    weight = blocks.square()
    products = (weight * codes * blocks).sum(-1, keepdim=True)
    squares = (weight * codes.square()).sum(-1, keepdim=True)
    return codes * _half(torch.where(farthest.abs() < 1e-15, 0.0, products / squares))


def _farthest(blocks: "Tensor") -> "Tensor":
    # The first of several, as a loop that asks for more finds it.
    return blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))


def _inverse(scale: "Tensor") -> "Tensor":
    import torch

    return torch.where(scale == 0, 0.0, 1 / scale)


def _half(scale: "Tensor") -> "Tensor":
    return scale.half().float()


_BLOCKWISE: "dict[str, Callable[[Tensor], Tensor]]" = {
    "q8_0": _q8_0,
    "q5_1": functools.partial(_affine, 31),
    "q5_0": functools.partial(_symmetric, 16),
    "q4_1": functools.partial(_affine, 15),
    "q4_0": functools.partial(_symmetric, 8),
    "iq4_nl": _iq4_nl,
}


def turned_by(size: int, part: Part) -> int:
    """The size of the Hadamard matrix by which llama.cpp turns a head before it quantizes it.

    None (1) for a head that 64 does not divide; else 64 for values and, for keys, the largest power
    of two that divides the head (``build_input_k_rot`` and ``_v_rot`` of src/llama-kv-cache.cpp).

    >>> turned_by(80, "keys"), turned_by(128, "keys"), turned_by(192, "keys"), turned_by(128, "values")
    (1, 128, 64, 64)
    """
    if size % _TURN:
        return 1
    return size & -size if part == "keys" else _TURN


def turned(numbers: "Tensor", size: int) -> "Tensor":
    """Numbers times the orthonormal Hadamard matrix of ``size``, block by block; 1 leaves them."""
    if size == 1:
        return numbers
    matrix = _hadamard(size, numbers.device)
    return (numbers.unflatten(-1, (-1, size)) @ matrix).flatten(-2)


@functools.lru_cache(maxsize=8)
def _hadamard(size: int, device: "torch.device") -> "Tensor":
    import torch

    matrix = torch.ones(1, 1, device=device)
    while len(matrix) < size:
        top, bottom = torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)
        matrix = torch.cat([top, bottom])
    return matrix / size**0.5
