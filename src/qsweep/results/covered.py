"""What an interval covers: the text's windows, and the draw where several were measured. Pure."""

from collections.abc import Sequence

from qsweep.evaluate.intervals import is_sequential
from qsweep.results.record import Record, Row
from qsweep.results.traits import drawn_by, seed_of, seeds_asked, setting

WINDOWS, DRAWS = "windows", "windows, draws"


def number_of_draws(record: Record) -> int | None:
    """How many draws a record's figures rest on; None where nothing is drawn."""
    if record.draws is not None:
        return len(record.draws)
    return 1 if record.finished and seed_of(record) is not None else None


def number_asked(record: Record) -> int | None:
    """How many draws ``seeds`` asked for; None where it did not, or nothing is drawn.

    Draws that others made, and that are pooled with them, count as if they had been asked for.
    """
    asked = seeds_asked(record)
    if not asked or number_of_draws(record) is None:
        return None
    if record.draws is None:
        return len(asked)
    return len(record.draws) + len(set(asked) - set(map(seed_of, record.draws)))


def covers(record: Record) -> str | None:
    """What the intervals of its figures cover; None where it has no such figures."""
    if not record.finished or record.reference:
        return None
    return DRAWS if len(record.draws or ()) > 1 else WINDOWS


def draws_text(row: Row) -> str:
    """``8``, or ``3 of 4`` where some did not finish; nothing where none are pooled."""
    number, asked = number_of_draws(row.record), number_asked(row.record)
    if row.record.draws is None or asked is None:
        return ""
    return str(number) if number == asked else f"{number} of {asked}"


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader of intervals must know: whether they cover the draw, and what to do about it."""
    records = {row.key: row.record for row in rows if row.measurement is not None}.values()
    once = sum(number_of_draws(record) == 1 for record in records)
    if any(covers(record) == DRAWS for record in records):
        but = (
            f", but {_rows(once)} of one draw, with {_intervals(once)} over windows alone"
            if once
            else ""
        )
        return [f"intervals and ranks cover windows and draws of the calibration text{but}"]
    if not once:
        return []
    more = "; seeds=4 measures 4 draws, and covers them" if _may_ask(rows) else ""
    return [
        f"intervals and ranks cover the text's windows alone: {_rows(once)} of one draw of the calibration "
        f"text{more}"
    ]


def _may_ask(rows: Sequence[Row]) -> bool:
    """Whether the command that made all these rows could ask for several draws as it stands."""
    records = {row.key: row.record for row in rows}.values()
    drawn = [own for record in records if (own := setting(record))]
    stopped = any(row.measurement and is_sequential(row.measurement.facts) for row in rows)
    asked = any(number_asked(record) is not None for record in records)
    seeded = any(_has_own_seed(record) for record in records)
    return not (stopped or asked or seeded or len(set(drawn)) < len(drawn))


def _has_own_seed(record: Record) -> bool:
    """Whether text or quantizer are drawn by another seed than ``seed``: ``seeds`` takes none beside it."""
    own = record.config.get("seed")
    return own is not None and any(seed != own for seed in drawn_by(record))


def _intervals(number: int) -> str:
    return "an interval" if number == 1 else "intervals"


def _rows(number: int) -> str:
    return "1 row is" if number == 1 else f"{number} rows are"
