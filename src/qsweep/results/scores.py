"""Artifacts ranked by what they keep of their reference, ties said as ties."""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from qsweep.base.numbers import one_line
from qsweep.results.columns.table import BPW, KLD, PPL, PPL_RATIO, SIZE_GB, TOP1_AGREEMENT, VERDICT
from qsweep.results.labels import with_distinct_names
from qsweep.results.peers import ties
from qsweep.results.record import Record, Row
from qsweep.results.windows import windows_of

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
        tied = bool(ranks) and ties(_row(record), _row(_first_of(ranks)), windows_of)
        ranks.append((ranks[-1][0] if tied else place, record))
    return ranks


def _first_of(ranks: Sequence[tuple[int, Record]]) -> Record:
    """The record that the last rank begins with."""
    return next(record for rank, record in ranks if rank == ranks[-1][0])


def scores_table(records: Sequence[Record]) -> list[str]:
    """Lines of a table of artifacts by rank, then of what did not finish, and what ties mean."""
    records = with_distinct_names(records)
    files = Counter(_file_of(record) for record in records)

    def named(record: Record) -> str:
        # By its file, which is what was asked about, where that tells it from the others.
        file = _file_of(record)
        return file if file is not None and files[file] == 1 else record.name

    ranks = ranked_by_quality(records)
    shared = {rank for rank, _ in ranks if sum(rank == other for other, _ in ranks) > 1}
    lines = [list(_HEADINGS)]
    for rank, record in ranks:
        row = _row(record)
        cells = [column.cell(row) for column in _COLUMNS]
        lines.append([f"{rank}{'=' if rank in shared else ''}", named(record), *cells])
    text = aligned(lines, {1, len(_HEADINGS) - 1}) if ranks else []
    for record in records:
        if not record.finished:
            reason = one_line(record.reason or "no reason recorded")
            text.append(f"{record.status}: {named(record)}: {reason}")
    if shared:
        text.append("=: a tie, the text does not tell them apart; go by size, or measure more text")
    return text


def _row(record: Record) -> Row:
    return Row(record, record.primary, record.name)


def _ratio(record: Record) -> float | None:
    return PPL_RATIO.get(_row(record))


def _file_of(record: Record) -> str | None:
    path = record.config.get("quant", {}).get("path")
    return Path(str(path)).name if path else None


def aligned(lines: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """Lines of cells in columns, of which those in ``left`` begin below one another."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
