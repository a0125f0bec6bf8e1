"""The types that runtimes store keys and values as, and the bits that each takes. No torch here."""

from dataclasses import dataclass

NONE = "none"
"""Keys and values stay as the model computes them."""


@dataclass(frozen=True)
class CacheType:
    """How one head's key or value of one token is stored.

    Attributes:
        name: As in ``kv_cache=``.
        number: Bits per number, those of its block's scale included.
        block: Numbers that share a scale, along the head; 1 where scales are elsewhere.
        head: Bits per head and token beside the numbers.
        rotated: Whether the runtime turns heads by a Hadamard matrix before they are stored, as
            llama.cpp does with its quantized types since April 2026 (its pull request 21038).
    """

    name: str
    number: float
    block: int = 1
    head: int = 0
    rotated: bool = False

    def bits(self, size: int) -> float:
        """Bits of one head of so many numbers."""
        return self.number * size + self.head


def _llama_cpp(name: str, number: float) -> CacheType:
    return CacheType(name, number, block=32, rotated=True)


QUANTIZED = {
    one.name: one
    for one in (
        # vLLM's fp8: e4m3, one scale per tensor.
        CacheType("fp8", 8.0),
        # vLLM's int8_per_token_head: a float32 scale per head and token.
        CacheType("int8", 8.0, head=32),
        # llama.cpp's type_k and type_v (ggml/src/ggml-common.h): fp16 scales, minima of those with _1.
        _llama_cpp("q8_0", 8.5),
        _llama_cpp("q5_1", 6.0),
        _llama_cpp("q5_0", 5.5),
        _llama_cpp("q4_1", 5.0),
        _llama_cpp("q4_0", 4.5),
        _llama_cpp("iq4_nl", 4.5),
        # e2m1 in blocks of 16 with an e4m3 scale.
        CacheType("nvfp4", 4.5, block=16),
    )
}
"""The types that ``kv_cache=`` simulates, by name."""

CACHE_TYPES = {
    **{
        name: CacheType(name, bits) for name, bits in (("f32", 32.0), ("f16", 16.0), ("bf16", 16.0))
    },
    **QUANTIZED,
}
"""All types that a cache may be kept in, by name."""

KEYS_IN_PAIRS = frozenset(
    "llama mistral mixtral smollm3 granite granitemoe granitemoeshared granitemoehybrid bamba olmo".split()
)
"""Types of models whose keys llama.cpp has in another order than transformers: the two numbers that are
rotated by one angle side by side, not half a head apart. Its converter turns the weights so (``permute``
in conversion/llama.py), and blocks of a cache hold other numbers then."""

SERVED_UNQUANTIZED = CACHE_TYPES["f16"]
"""What ``none`` takes where memory is counted: runtimes keep 16 bits."""
