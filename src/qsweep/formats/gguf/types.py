"""llama.cpp's file types and tensor types, as ``llama.h`` and ``ggml.h`` number them."""

from dataclasses import dataclass
from typing import Literal

from qsweep.base.errors import ConfigError
from qsweep.base.schema import nearest


@dataclass(frozen=True)
class FileType:
    """A mixture of tensor types that ``llama_model_quantize`` knows by one number.

    ``bits`` is the nominal width. ``block`` is how many weights the type of most tensors packs
    together: rows that it does not divide fall back on another type. ``imatrix``: whether an
    importance matrix is ignored, used where there is one, or needed: llama.cpp refuses without.

    ``linears`` is the tensor type of linear layers where no mixture of llama.cpp's is what the name
    says: the file type ``mixture`` is written then, with that type in their place.
    """

    name: str
    number: int
    bits: int
    block: int
    imatrix: Literal["ignored", "used", "needed"] = "used"
    linears: str | None = None
    mixture: int | None = None


FILE_TYPES = {
    t.name: t
    for t in (
        FileType("F32", 0, 32, 1, "ignored"),
        FileType("F16", 1, 16, 1, "ignored"),
        FileType("BF16", 32, 16, 1, "ignored"),
        FileType("Q8_0", 7, 8, 32, "ignored"),
        FileType("Q6_K", 18, 6, 256),
        FileType("Q5_0", 8, 5, 32),
        FileType("Q5_1", 9, 5, 32),
        FileType("Q5_K_S", 16, 5, 256),
        FileType("Q5_K_M", 17, 5, 256),
        FileType("Q4_0", 2, 4, 32),
        FileType("Q4_1", 3, 4, 32),
        FileType("Q4_K_S", 14, 4, 256),
        FileType("Q4_K_M", 15, 4, 256),
        FileType("Q3_K_S", 11, 3, 256),
        FileType("Q3_K_M", 12, 3, 256),
        FileType("Q3_K_L", 13, 3, 256),
        FileType("Q2_K", 10, 2, 256),
        FileType("Q2_K_S", 21, 2, 256, "needed"),
        FileType("IQ4_NL", 25, 4, 32),
        FileType("IQ4_XS", 30, 4, 256),
        FileType("IQ3_M", 27, 3, 256),
        FileType("IQ3_S", 26, 3, 256),
        FileType("IQ3_XS", 22, 3, 256, "needed"),
        FileType("IQ3_XXS", 23, 3, 256, "needed"),
        FileType("IQ2_M", 29, 2, 256, "needed"),
        FileType("IQ2_S", 28, 2, 256, "needed"),
        FileType("IQ2_XS", 20, 2, 256, "needed"),
        FileType("IQ2_XXS", 19, 2, 256, "needed"),
        FileType("IQ1_M", 31, 1, 256, "needed"),
        FileType("IQ1_S", 24, 1, 256, "needed"),
        FileType("TQ2_0", 37, 2, 256),
        FileType("TQ1_0", 36, 1, 256),
        # llama.cpp's own puts experts alone into MXFP4, and everything else into Q8_0.
        FileType("MXFP4", 38, 4, 32, "ignored", linears="MXFP4", mixture=7),
        FileType("MXFP4_MOE", 38, 4, 32, "ignored"),
        FileType("NVFP4", 39, 4, 64, "ignored", linears="NVFP4", mixture=7),
        FileType("Q2_0", 41, 2, 64),
        FileType("Q1_0", 40, 1, 128),
    )
}
# As llama.cpp's own quantize tool abbreviates them.
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
BY_BITS = {2: "Q2_K", 3: "Q3_K_M", 4: "Q4_K_M", 5: "Q5_K_M", 6: "Q6_K", 8: "Q8_0"}


def file_type(name: str) -> FileType:
    """The file type of that name, in any case.

    Raises:
        ConfigError: there is none; the nearest right names are given.
    """
    upper = name.upper()
    found = FILE_TYPES.get(ALIASES.get(upper, upper))
    if found is None:
        near = nearest(upper, FILE_TYPES)
        raise ConfigError(f"quant.type={name}: llama.cpp has no such type{near}")
    return found


@dataclass(frozen=True)
class TensorType:
    """How one tensor is stored: ``size`` bytes per ``block`` weights."""

    name: str
    number: int
    block: int
    size: int

    @property
    def quantized(self) -> bool:
        """Whether it holds codes rather than numbers."""
        return self.block > 1

    def bytes_of(self, weights: int) -> int:
        """Bytes that so many weights take; rows are whole numbers of blocks."""
        return weights // self.block * self.size


TENSOR_TYPES = {
    t.number: t
    for t in (
        TensorType("F32", 0, 1, 4),
        TensorType("F16", 1, 1, 2),
        TensorType("Q4_0", 2, 32, 18),
        TensorType("Q4_1", 3, 32, 20),
        TensorType("Q5_0", 6, 32, 22),
        TensorType("Q5_1", 7, 32, 24),
        TensorType("Q8_0", 8, 32, 34),
        # Q8_1 and Q8_K hold activations while llama.cpp computes, and no file's weights.
        TensorType("Q8_1", 9, 32, 36),
        TensorType("Q2_K", 10, 256, 84),
        TensorType("Q3_K", 11, 256, 110),
        TensorType("Q4_K", 12, 256, 144),
        TensorType("Q5_K", 13, 256, 176),
        TensorType("Q6_K", 14, 256, 210),
        TensorType("Q8_K", 15, 256, 292),
        TensorType("IQ2_XXS", 16, 256, 66),
        TensorType("IQ2_XS", 17, 256, 74),
        TensorType("IQ3_XXS", 18, 256, 98),
        TensorType("IQ1_S", 19, 256, 50),
        TensorType("IQ4_NL", 20, 32, 18),
        TensorType("IQ3_S", 21, 256, 110),
        TensorType("IQ2_S", 22, 256, 82),
        TensorType("IQ4_XS", 23, 256, 136),
        TensorType("I8", 24, 1, 1),
        TensorType("I16", 25, 1, 2),
        TensorType("I32", 26, 1, 4),
        TensorType("I64", 27, 1, 8),
        TensorType("F64", 28, 1, 8),
        TensorType("IQ1_M", 29, 256, 56),
        TensorType("BF16", 30, 1, 2),
        TensorType("TQ1_0", 34, 256, 54),
        TensorType("TQ2_0", 35, 256, 66),
        TensorType("MXFP4", 39, 32, 17),
        TensorType("NVFP4", 40, 64, 36),
        TensorType("Q1_0", 41, 128, 18),
        TensorType("Q2_0", 42, 64, 18),
    )
}
_BY_NAME = {t.name: t for t in TENSOR_TYPES.values()}
# What llama.cpp writes no tensor as.
_UNWRITABLE = ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64")
WRITABLE = tuple(name for name in _BY_NAME if name not in _UNWRITABLE)
# The plain type of so many bits: the one that most tensors of BY_BITS' mixtures have.
TYPES_BY_BITS = {2: "Q2_K", 3: "Q3_K", 4: "Q4_K", 5: "Q5_K", 6: "Q6_K", 8: "Q8_0"}
# Types that llama.cpp refuses to make without an importance matrix (``tensor_requires_imatrix`` in
# src/llama-quant.cpp), embedding and output head left out.
NEEDING_IMATRIX = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")
# Types that are replaced where a row is no whole number of their blocks (``tensor_type_fallback``
# there); where any other does not fit, llama.cpp gives up.
REPLACED = (
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "Q2_0", "IQ3_S", "IQ4_XS"),
    *NEEDING_IMATRIX,
)
# Types that ggml once had, by number, and what it reads in their place.
REMOVED_TYPES = {
    4: ("Q4_2", "Q4_0"),
    5: ("Q4_3", "Q4_1"),
    **dict.fromkeys((31, 32, 33), ("Q4_0 for one kind of processor", "Q4_0")),
    **dict.fromkeys((36, 37, 38), ("IQ4_NL for one kind of processor", "IQ4_NL")),
}


def tensor_type(name: str) -> TensorType:
    """The tensor type of that name. Raises KeyError."""
    return _BY_NAME[name]
