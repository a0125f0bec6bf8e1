"""Which trials of sweeps run on a card. Pure."""

from collections.abc import Iterable
from dataclasses import replace

from qsweep.formats.hardware import Card
from qsweep.results.html.data import SweepData
from qsweep.results.record import Record


def on_card(sweep: SweepData, card: Card) -> SweepData:
    """A sweep with the trials alone that run on a card; its problems say what is left out, and why.

    References stay, whatever they need: all is compared with them.
    """
    kept: list[Record] = []
    left_out: dict[str, int] = {}
    unpacked: dict[str, None] = {}
    for record in sweep.records:
        why = _why_not(record, card)
        if why:
            left_out[why] = left_out.get(why, 0) + 1
            continue
        kept.append(record)
        if record.finished and (note := record.fit(card).why):
            unpacked[note] = None
    lines = [*_counted(left_out.items(), card), *(f"on {card}: {note}" for note in unpacked)]
    return replace(sweep, records=kept, problems=[*sweep.problems, *lines])


def _why_not(record: Record, card: Card) -> str:
    if record.reference:
        return ""
    size = None if record.artifact is None else record.artifact.size_gb
    if size is not None and card.memory_gb is not None and size > card.memory_gb:
        return f"larger than its {card.memory_gb} GB"
    found = record.fit(card)
    return found.why if found.how is None else ""


def _counted(reasons: Iterable[tuple[str, int]], card: Card) -> Iterable[str]:
    for why, count in reasons:
        trials = "1 trial is" if count == 1 else f"{count} trials are"
        yield f"{trials} left out on {card}: {why}"
