"""The types of llama.cpp's blocks that are solved here (``ggml-common.h``)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockType:
    """A tensor type of llama.cpp's that is solved here.

    Attributes:
        name: As ``ggml.h`` has it, in capitals.
        bits: Of a code.
        group: Weights that share a scale.
        span: Weights that share d and dmin; a multiple of ``group``.
        scales: Lowest and highest whole scale of a group; None where a group is a span.
        minimum: The highest whole minimum; 0: there is none, and levels lie about 0. A span that is
            a group has a minimum of its own in float16 where this is above 0.
    """

    name: str
    bits: int
    group: int
    span: int
    scales: tuple[int, int] | None = None
    minimum: int = 0

    @property
    def top(self) -> int:
        """The highest code."""
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        """The code of 0, where there is no minimum."""
        return 2 ** (self.bits - 1)


BLOCK_TYPES = {
    type_.name: type_
    for type_ in (
        BlockType("Q2_K", 2, 16, 256, (0, 15), 15),
        BlockType("Q3_K", 3, 16, 256, (-32, 31)),
        BlockType("Q4_K", 4, 32, 256, (0, 63), 63),
        BlockType("Q5_K", 5, 32, 256, (0, 63), 63),
        BlockType("Q6_K", 6, 16, 256, (-128, 127)),
        BlockType("Q4_0", 4, 32, 32),
        BlockType("Q5_0", 5, 32, 32),
        BlockType("Q5_1", 5, 32, 32, minimum=1),
        BlockType("Q8_0", 8, 32, 32),
    )
}
# What llama.cpp takes for rows that super-blocks do not divide.
FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
