"""Which of the trials in an outputs folder a word means."""

import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from qsweep.base.errors import QsweepError
from qsweep.base.numbers import counted, one_line
from qsweep.base.schema import nearest
from qsweep.results.answers import answers
from qsweep.results.draws import named_singles, pooled, singles
from qsweep.results.labels import with_distinct_names
from qsweep.results.record import Record
from qsweep.results.sources import known_sweeps, read_sweep
from qsweep.results.traits import seed_of
from qsweep.results.winner import sentence


def find_trial(outputs: Path, word: str, sweep: str | None = None) -> Record:
    """The finished trial of an artifact that a word means.

    Args:
        outputs: Where sweeps lie.
        word: A key or its beginning, a name as tables show it, or ``best``.
        sweep: The only one to look in.

    Raises:
        QsweepError: there is none, or several; the line names near ones or their keys.
    """
    records = [r for r in all_records(outputs, sweep) if not r.reference]
    return one_of(records, word, outputs)


def all_records(outputs: Path, sweep: str | None = None) -> list[Record]:
    """The records of all sweeps, or of one, each trial once. Raises QsweepError: there is no such."""
    sweeps = known_sweeps(outputs)
    if sweep is not None and sweep not in sweeps:
        raise QsweepError(f"no sweep {sweep!r} in {outputs}{nearest(sweep, sweeps)}")
    chosen = [sweeps[sweep]] if sweep is not None else list(sweeps.values())
    records: dict[str, Record] = {}
    for record in (r for directory in chosen for r in read_sweep(directory).records):
        if record.key not in records or not record.implied:
            records[record.key] = record  # asked for once is asked for
    return list(records.values())


def one_of(records: Sequence[Record], word: str, outputs: Path) -> Record:
    """The finished one of some records that a word means; see :func:`find_trial`.

    A setting of several draws means its first: an artifact is one draw.
    """
    finished = [r for r in pooled(records) if r.finished]
    if not finished:
        _require_finished(records, word)
        raise QsweepError(f"no finished trial in {outputs}; --outputs DIR names another folder")
    if word == "best":
        return _one_draw(_best([r for r in finished if not r.reference]))
    keyed = {r.key: r for r in (*finished, *singles(finished))} if len(word) >= 4 else {}
    found = [r for key, r in keyed.items() if key.startswith(word)]
    # As a table calls it, and where that is not enough to tell, as its trial does.
    shown = with_distinct_names(finished)
    labelled = {r.key for r in shown if word in (r.name, _setting(r))}
    found = found or [r for r in finished if r.key in labelled]
    found = found or [r for r in finished if word in (r.name, _setting(r))]
    found = found or _draws_called(word, finished)
    if len(found) > 1:
        raise QsweepError(
            f"{word!r} means {len(found)} trials; give a key: "
            + ", ".join(f"{r.key[:12]} ({r.calibration or r.backend})" for r in found)
        )
    if not found:
        _require_finished(records, word)
        raise QsweepError(f"no trial {word!r}{nearest(word, {_setting(r) for r in finished})}")
    return _one_draw(found[0])


def _draws_called(word: str, records: Sequence[Record]) -> list[Record]:
    """The draws of settings that a table calls so: that of draws alone, or one that has more."""
    drawn = [r for r in records if r.draws is not None]
    own = singles(drawn)
    named = (named_singles(with_distinct_names(there)) for there in (drawn, records))
    shown = (*with_distinct_names(own), *chain(*named))
    called = {r.key for r in shown if word in (r.name, _setting(r))}
    return [r for r in own if r.key in called]


def _one_draw(record: Record) -> Record:
    # Not the one that came out best: it is that by luck.
    if record.draws is None:
        return record
    first, number = record.draws[0], len(record.draws)
    print(
        f"note: {record.name} is {counted(number, 'draw')}; that of seed {seed_of(first)} is taken",
        file=sys.stderr,
    )
    return first


def _require_finished(records: Sequence[Record], word: str) -> None:
    """Refuse what a word means that did not finish, with the reason. Raises QsweepError."""
    for record in records:
        meant = word in (record.name, _setting(record))
        if not record.finished and (meant or (len(word) >= 4 and record.key.startswith(word))):
            again = f"; {record.command} runs it again" if record.command else ""
            reason = one_line(record.reason or "no reason recorded")
            raise QsweepError(f"{record.name} {record.status}: {reason}{again}")


def _best(records: Sequence[Record]) -> Record:
    # What leads is what "best" asks for; that its lead is none is said, and nothing is refused.
    found = answers(with_distinct_names(records))
    if not found:
        raise QsweepError("no artifact here is one that a serving runtime loads")
    if len(found) > 1:
        leaders = ", ".join(
            f"{one.record.name} ({one.record.key[:12]}{one.measured and ', ' + one.measured})"
            for one in found
        )
        raise QsweepError(
            "'best' means one trial of each model and each way of measuring it; "
            f"give a key, or one sweep: {leaders}"
        )
    if not found[0].is_best:
        line = sentence(found[0].decision, found[0].record.name)
        print(f"note: {line}; it is taken all the same", file=sys.stderr)
    return next(r for r in records if r.key == found[0].record.key)


def _setting(record: Record) -> str:
    return record.name.removeprefix(f"{record.model} ")
