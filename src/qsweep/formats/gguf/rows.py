"""Finding out in which order a converter put a matrix's rows."""

from itertools import permutations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    import torch

View = tuple[tuple[int, ...], tuple[int, ...]]


def to_file(
    source: "torch.Tensor", shape: tuple[int, ...], axes: tuple[int, ...]
) -> "torch.Tensor":
    """Rows [n, ...] viewed in ``shape``, whose product is n, with its axes then in the order ``axes``."""
    rest = source.shape[1:]
    tail = tuple(range(len(shape), len(shape) + len(rest)))
    return source.reshape(*shape, *rest).permute(*axes, *tail).reshape(source.shape)


def from_file(
    stored: "torch.Tensor", shape: tuple[int, ...], axes: tuple[int, ...]
) -> "torch.Tensor":
    """The inverse of :func:`to_file`: rows [n, ...]."""
    back = sorted(range(len(axes)), key=axes.__getitem__)
    return to_file(stored, tuple(shape[a] for a in axes), tuple(back))


def find_order(source: "torch.Tensor", stored: "torch.Tensor") -> "View | torch.Tensor | None":
    """How the rows of ``source`` [n, ...] are ordered in ``stored``, of the same shape.

    Returns a view (shape and order of its three axes) if one explains it, such as Llama's
    ((heads, 2, half), (0, 2, 1)) or GPT-NeoX's ((heads, 3, size), (1, 0, 2)); else explicit indices
    into the rows of ``source``, int64 [n]; None if the rows are not the same rows.
    """
    import numpy
    import torch

    ours, theirs = row_hashes(source), row_hashes(stored)
    if not numpy.array_equal(numpy.sort(ours), numpy.sort(theirs)):
        return None
    view = _find_view(ours, theirs)
    if view is not None and torch.equal(to_file(source, *view).float(), stored.float()):
        return view
    # Equal rows may be told apart wrongly, but any such order is as good as another.
    order = numpy.empty(len(ours), numpy.int64)
    order[numpy.argsort(theirs, kind="stable")] = numpy.argsort(ours, kind="stable")
    indices = torch.from_numpy(order)
    return indices if torch.equal(source[indices].float(), stored.float()) else None


def _find_view(ours: "numpy.ndarray", theirs: "numpy.ndarray") -> View | None:
    import numpy

    size = len(ours)
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    # Few groups first: heads are few, and of several views that explain it the simplest is kept.
    for first in divisors:
        for second in divisors:
            if size % (first * second):
                continue
            shape = (first, second, size // first // second)
            for axes in permutations(range(3)):
                if numpy.array_equal(ours.reshape(shape).transpose(axes).reshape(-1), theirs):
                    return shape, axes
    return None


def row_hashes(tensor: "torch.Tensor") -> "numpy.ndarray":
    """A number per row [n, ...], uint64 [n]: equal rows have equal ones."""
    import numpy
    import torch

    rows = tensor.reshape(len(tensor), -1)
    factors = numpy.random.default_rng(0).integers(1, 1 << 63, rows.shape[1], numpy.uint64) | 1
    found = numpy.empty(len(rows), numpy.uint64)
    step = max(1, (1 << 22) // rows.shape[1])
    for at in range(0, len(rows), step):
        bits = rows[at : at + step].float().contiguous().view(torch.int32).numpy()
        products = bits.view(numpy.uint32).astype(numpy.uint64) * factors
        found[at : at + step] = products.sum(axis=1, dtype=numpy.uint64)
    return found
