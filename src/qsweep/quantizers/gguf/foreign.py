"""GGUF files that somebody else's converter wrote: are they laid out as ours would be?"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qsweep.formats.gguf.reader import GGUFFile
    from qsweep.quantizers.gguf.base import UnquantizedFile

# Root mean square error of a quantized tensor, as a share of its own. Two bits reach 0.4; rows in
# another order are off by the square root of 2.
_LARGEST_ERROR = 0.8


def difference(base: "UnquantizedFile", file: "GGUFFile") -> str | None:
    """What is in a quantized file where our own conversion would have something else, or None.

    The rules that lead back to the checkpoint (:mod:`qsweep.formats.gguf.layout`) are proven on our own
    conversion. They hold for another file if each tensor, brought back by them, resembles the
    checkpoint's: other names, shapes or orders of rows do not.
    """
    from qsweep.formats.gguf.dense import weight_of

    for name, rule in base.layout.rules.items():
        for tensor in rule.tensors:
            if tensor not in file.tensors:
                return f"it has no tensor {tensor}"
        source = base.checkpoint.tensor(name).float()
        found = weight_of(name, base.layout, file, tuple(source.shape))
        if found.shape != source.shape:
            return f"{rule.tensor} has the shape {tuple(found.shape)}, not {tuple(source.shape)}"
        # Not "more than": what is not a number resembles nothing.
        if not (found - source).norm() <= _LARGEST_ERROR * source.norm():
            return f"{rule.tensor} does not resemble {name}: its rows are in another order"
    return None
