"""Finding a tensor's rows again among those of other tensors, wherever they were put.

Fusing, splitting, stacking, padding, regrouping of heads and swapping of axes have in common that
whole rows stay whole. So rows are looked up by a hash, and the places they were found at are told
as blocks of regular runs.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qsweep.formats.gguf.rows import row_hashes

if TYPE_CHECKING:
    import numpy
    import torch

# A place that takes more blocks than this to tell has no order worth the name.
_MOST_BLOCKS = 4096


@dataclass(frozen=True)
class Block:
    """Rows of a source that lie in the file's tensor ``tensor``.

    For each run i < ``count`` and each j < ``length``, row ``source + i * source_step + j`` of the
    source is row ``file + i * file_step + j`` of the tensor, there multiplied by ``scale``.
    ``turned``: the rows are those of the tensor with its last two axes swapped.
    """

    tensor: str
    source: int
    file: int
    length: int
    count: int = 1
    source_step: int = 0
    file_step: int = 0
    turned: bool = False
    scale: float = 1.0

    def rows(self, start: int, step: int) -> "torch.Tensor":
        """The indices of its rows on one side, int64 [count * length]."""
        import torch

        runs = torch.arange(self.count)[:, None] * step
        return (start + runs + torch.arange(self.length)).flatten()


def rows_of(tensor: "torch.Tensor", *, turned: bool = False) -> "torch.Tensor":
    """A tensor as rows along its last axis [rows, columns], that swapped with the one before it.

    Those of a vector, or of a matrix with one column, are its numbers.
    """
    if turned:
        tensor = tensor.transpose(-1, -2)
    columns = tensor.shape[-1] if tensor.ndim > 1 else 1
    return tensor.reshape(-1, columns)


def gather(
    shape: Sequence[int],
    blocks: Sequence[Block],
    read: "Callable[[str], torch.Tensor]",
    *,
    turned: bool = False,
) -> "torch.Tensor":
    """A tensor put together from blocks of rows.

    Args:
        shape: Its shape.
        blocks: Where its rows lie.
        read: Gives a tensor of the file by its name.
        turned: Whether the blocks tell of it with its last two axes swapped.

    Returns:
        [*shape], of the stored tensors' dtype.
    """
    import torch

    shape = tuple(shape)
    whole = (*shape[:-2], shape[-1], shape[-2]) if turned else shape
    columns = whole[-1] if len(whole) > 1 else 1
    stored = {name: read(name) for name in {block.tensor for block in blocks}}
    dtype = stored[blocks[0].tensor].dtype
    out = torch.empty(math.prod(whole) // columns, columns, dtype=dtype)
    for block in blocks:
        # Where the source's rows are single numbers, so are those of whatever shape the file has.
        rows = rows_of(stored[block.tensor], turned=block.turned).reshape(-1, columns)
        part = rows[block.rows(block.file, block.file_step)]
        out[block.rows(block.source, block.source_step)] = (
            part if block.scale == 1 else part / block.scale
        )
    found = out.reshape(whole)
    return found.transpose(-1, -2).contiguous() if turned else found


def find_blocks(
    source: "torch.Tensor", stored: "Mapping[str, torch.Tensor]"
) -> tuple[bool, tuple[Block, ...]] | None:
    """Where each row of ``source`` [..., columns] lies in the tensors ``stored``, by name.

    Returns whether the source's last two axes have to be swapped first, and the blocks; None if
    some row is nowhere. What is returned has been compared, number by number.
    """
    import torch

    for turned in (False, True) if source.ndim > 1 else (False,):
        found = _find(rows_of(source, turned=turned), stored)
        if found is None:
            continue
        back = gather(source.shape, found, stored.__getitem__, turned=turned)
        if torch.equal(back.float(), source.float()):
            return turned, found
    return None


def find_scales(source: "torch.Tensor", stored: "torch.Tensor", name: str) -> tuple[Block, ...]:
    """Ranges of rows that the file holds multiplied by a number each; empty if that is not it.

    ``source`` is [..., columns], ``stored`` as many numbers of the file's tensor ``name``.

    The products hold to within float32's rounding, or exactly once rounded to the stored type.
    """
    import torch

    if source.numel() != stored.numel() or not source.is_floating_point():
        return ()
    ours, theirs = rows_of(source).double(), stored.reshape(rows_of(source).shape).double()
    spread = 2.0 ** -{torch.float32: 22, torch.float16: 11, torch.bfloat16: 8}[stored.dtype]
    ratio = theirs / ours
    unknown = ours == 0
    if bool((theirs[unknown] != 0).any()):
        return ()
    half = (ratio.abs() * spread).masked_fill(unknown, torch.inf)
    low = (ratio.nan_to_num(0) - half).amax(1).tolist()
    high = (ratio.nan_to_num(0) + half).amin(1).tolist()
    blocks, start, bounds = [], 0, (low[0], high[0])
    for row in range(1, len(low) + 1):
        wider = (max(bounds[0], low[row]), min(bounds[1], high[row])) if row < len(low) else None
        if wider is not None and wider[0] <= wider[1]:
            bounds = wider
            continue
        scale = _shortest(*bounds)
        if scale == 0 or not _scaled(source, stored, scale, start, row):
            return ()
        blocks.append(Block(name, start, start, row - start, scale=scale))
        if row < len(low):
            start, bounds = row, (low[row], high[row])
    return tuple(blocks)


def _scaled(
    source: "torch.Tensor", stored: "torch.Tensor", scale: float, first: int, last: int
) -> bool:
    import torch

    rows = rows_of(source)
    ours, theirs = rows[first:last].float() * scale, stored.reshape(rows.shape)[first:last]
    if stored.dtype == torch.float32:
        return torch.allclose(ours, theirs, rtol=2.0**-21, atol=0)
    return torch.equal(ours.to(stored.dtype), theirs)


def _shortest(low: float, high: float) -> float:
    """The decimal of fewest digits between two bounds; 0 where there is none."""
    if not (low <= high and low > -1e30 and high < 1e30):
        return 1.0 if low <= 1 <= high else 0.0
    for digits in range(1, 18):
        number = float(f"{(low + high) / 2:.{digits}g}")
        if low <= number <= high:
            return number
    return 0.0


def _find(rows: "torch.Tensor", stored: "Mapping[str, torch.Tensor]") -> tuple[Block, ...] | None:
    """Blocks for rows [rows, columns]; None if some row is nowhere, or their order is none."""
    import numpy

    sides = list(_sides(rows.shape[1], stored))
    if not any(len(side) for _, _, side in sides):
        return None
    hashes = [row_hashes(side) for _, _, side in sides]
    pool, wanted = numpy.concatenate(hashes), row_hashes(rows)
    order = numpy.argsort(pool, kind="stable")
    at = numpy.minimum(numpy.searchsorted(pool[order], wanted), len(pool) - 1)
    places = order[at]
    if not numpy.array_equal(pool[places], wanted):
        return None
    _follow(places, pool, wanted)
    starts = numpy.cumsum([0, *map(len, hashes)])
    runs = _runs(places, starts)
    if len(runs) > _MOST_BLOCKS * 16:
        return None
    blocks = []
    for owner, source, file, length, count, source_step, file_step in _merged(runs):
        name, turned, _ = sides[owner]
        place = (source, int(file - starts[owner]), length, count, source_step, file_step)
        blocks.append(Block(name, *place, turned))
    return tuple(blocks) if len(blocks) <= _MOST_BLOCKS else None


def _sides(
    columns: int, stored: "Mapping[str, torch.Tensor]"
) -> "Iterator[tuple[str, bool, torch.Tensor]]":
    """The rows of each tensor as it is, and with its last two axes swapped."""
    for name, tensor in stored.items():
        if columns == 1 or (tensor.ndim > 1 and tensor.shape[-1] == columns):
            yield name, False, tensor.reshape(-1, columns)
        if columns > 1 and tensor.ndim > 1 and tensor.shape[-2] == columns:
            yield name, True, rows_of(tensor, turned=True)


def _follow(places: "numpy.ndarray", pool: "numpy.ndarray", wanted: "numpy.ndarray") -> None:
    """Of equal rows, prefer the one behind the last row's place, so that runs stay whole."""
    import numpy

    following = numpy.minimum(places[:-1] + 1, len(pool) - 1)
    breaks = numpy.flatnonzero(places[1:] != following) + 1
    for first in breaks.tolist():
        row = first
        while row < len(places):
            after = places[row - 1] + 1
            if places[row] == after or after >= len(pool) or pool[after] != wanted[row]:
                break
            places[row] = after
            row += 1


def _runs(places: "numpy.ndarray", starts: "numpy.ndarray") -> list[tuple[int, int, int, int]]:
    """(owner, first row, its place, length) of each run of rows that stayed together."""
    import numpy

    owners = numpy.searchsorted(starts, places, side="right") - 1
    new = numpy.ones(len(places), bool)
    new[1:] = (numpy.diff(places) != 1) | (numpy.diff(owners) != 0)
    firsts = numpy.flatnonzero(new)
    lengths = numpy.diff([*firsts, len(places)])
    columns = (owners[firsts], firsts, places[firsts], lengths)
    return list(zip(*(c.tolist() for c in columns), strict=True))


def _merged(runs: Sequence[tuple[int, int, int, int]]) -> list[tuple[int, ...]]:
    """(owner, source, file, length, count, source step, file step), runs at equal steps as one."""
    done: list[tuple[int, ...]] = []
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for owner, source, file, length in runs:
        groups.setdefault((owner, length), []).append((source, file))
    for (owner, length), places in groups.items():
        at = 0
        while at < len(places):
            count, steps = 1, (0, 0)
            while at + count < len(places):
                (source, file), (source_, file_) = places[at + count - 1], places[at + count]
                step = (source_ - source, file_ - file)
                if count > 1 and step != steps:
                    break
                steps, count = step, count + 1
            done.append((owner, *places[at], length, count, *steps))
            at += count
    return sorted(done, key=lambda block: block[1])
