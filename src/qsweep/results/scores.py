"""Artifacts ranked by what they keep of their reference, ties said as ties."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qsweep.base.errors import ArtifactCorrupt
from qsweep.base.numbers import one_line
from qsweep.results.columns.table import BPW, KLD, PPL, PPL_RATIO, SIZE_GB, TOP1_AGREEMENT, VERDICT
from qsweep.results.labels import with_distinct_names
from qsweep.results.record import Record, Row
from qsweep.results.winner import MIN_WINDOWS

if TYPE_CHECKING:
    from torch import Tensor

_COLUMNS = (SIZE_GB, BPW, PPL, PPL_RATIO, KLD, TOP1_AGREEMENT, VERDICT)
_HEADINGS = ("rank", "artifact", "GB", "bpw", "ppl", "ratio (95 %)", "KLD", "top-1", "verdict")


def ranked_by_quality(records: Sequence[Record]) -> list[tuple[int, Record]]:
    """Finished records of artifacts with their ranks, the lowest perplexity ratio first.

    One whose windows do not tell it apart from the first of its rank (the paired 95 % interval of
    the two's ratio holds 1, or there are too few windows for an interval) has the same rank.
    """
    found = [r for r in records if r.finished and not r.reference and _ratio(r) is not None]
    found.sort(key=lambda record: (_ratio(record), record.name, record.key))
    ranks: list[tuple[int, Record]] = []
    for place, record in enumerate(found, 1):
        tied = bool(ranks) and _tied(next(r for n, r in ranks if n == ranks[-1][0]), record)
        ranks.append((ranks[-1][0] if tied else place, record))
    return ranks


def scores_table(records: Sequence[Record]) -> list[str]:
    """Lines of a table of artifacts by rank, then of what did not finish, and what ties mean."""
    records = with_distinct_names(records)
    ranks = ranked_by_quality(records)
    shared = {rank for rank, _ in ranks if sum(rank == other for other, _ in ranks) > 1}
    lines = [list(_HEADINGS)]
    for rank, record in ranks:
        row = Row(record, record.primary, record.name)
        cells = [column.cell(row) for column in _COLUMNS]
        lines.append([f"{rank}{'=' if rank in shared else ''}", _named(record), *cells])
    text = _aligned(lines) if ranks else []
    for record in records:
        if not record.finished:
            reason = one_line(record.reason or "no reason recorded")
            text.append(f"{record.status}: {_named(record)}: {reason}")
    if shared:
        text.append("=: a tie, the text does not tell them apart; go by size, or measure more text")
    return text


def _ratio(record: Record) -> float | None:
    return PPL_RATIO.get(Row(record, record.primary))


def _named(record: Record) -> str:
    # By its file, which is what was asked about.
    path = record.config.get("quant", {}).get("path")
    return Path(str(path)).name if path else record.name


def _tied(first: Record, record: Record) -> bool:
    from qsweep.evaluate.metrics import ppl_ratio

    one, other = _windows(first), _windows(record)
    if one is None or other is None or len(one[0]) != len(other[0]) or len(one[0]) < MIN_WINDOWS:
        return True
    between = ppl_ratio(other[0], one[0], one[1])
    return between.low <= 1 <= between.high


def _windows(record: Record) -> "tuple[Tensor, Tensor] | None":
    """Sums of NLL and numbers of tokens over windows, [windows] each."""
    from qsweep.evaluate.measurement import read_measurement

    primary = record.primary
    if primary is None or primary.file is None:
        return None
    try:
        arrays = read_measurement(Path(primary.file)).arrays
        return arrays["window_nll"], arrays["window_tokens"]
    except (ArtifactCorrupt, KeyError):
        return None


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    left = {1, len(widths) - 1}
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
