"""The answer in a sentence or two. Plain text; the page escapes it."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from qsweep.base import numbers
from qsweep.evaluate.verdicts import BOUNDS
from qsweep.results.answers import answers as decisions
from qsweep.results.answers import beside_weights, contender_of
from qsweep.results.columns.table import PPL_RATIO, SIZE_GB, VERDICT, VERDICT_OPEN
from qsweep.results.draws import singles
from qsweep.results.html.data import Group, is_finite
from qsweep.results.model_names import dequantized_references
from qsweep.results.record import Record, Row
from qsweep.results.rows import counts
from qsweep.results.winner import says_nothing, sentence

_ACCEPTABLE = ("yes", "usually")
# Corpora whose mean ratios are closer than this suffer alike.
_ALIKE = 1.005


@dataclass(frozen=True)
class Sentence:
    """A question that people have, and its answer."""

    question: str
    answer: str


def answers(group: Group) -> list[Sentence]:
    """What the reference was; best quality per GB, smallest acceptable, what suffers most; what has no verdict, and why."""
    without = [Sentence("No verdict", line) for line in group.no_verdicts]
    return [*_references(group), *without, *_best(group), *_smallest(group), *_suffers(group)]


def _references(group: Group) -> Iterator[Sentence]:
    for line in dequantized_references(group.records):
        what, _, text = line.partition(": ")
        yield Sentence(
            what[0].upper() + what[1:],
            f"{text}: all is compared with the released weights, rounded to 16 bits",
        )


def nothing(records: Sequence[Record]) -> str:
    """What to say of a sweep without a single figure."""
    number = {status: count for status, count in counts(singles(records)).items() if count}
    if not number:
        return "This sweep is empty: no trial has been recorded yet."
    tally = ", ".join(f"{count} {status}" for status, count in number.items())
    return f"Nothing was measured: {tally}. The reasons are below."


def _best(group: Group) -> Iterator[Sentence]:
    rows = {row.key: row for row in group.quantized}
    named = [replace(r, name=rows[r.key].label) for r in group.records if r.key in rows]
    found = decisions(named)
    if rows and not found:
        yield Sentence("Best quality per GB", "no artifact here is one that a runtime serves")
    for answer in found:
        row = rows[answer.record.key]
        leader = f"{row.label}: {_figures(row)}{_share(group, row)}"
        if not answer.is_best:
            leader = f"{row.label} ({_figures(row)}{_share(group, row)})"
        of = f" of {answer.model}" if len(found) > 1 else ""
        yield Sentence(
            f"Best quality per GB{of}",
            sentence(answer.decision, leader) + beside_weights(answer.record),
        )


def _smallest(group: Group) -> Iterator[Sentence]:
    fine = [
        row
        for row in group.quantized
        if row.record.can_serve and VERDICT.get(row) in _ACCEPTABLE and is_finite(SIZE_GB.get(row))
    ]
    unclear = {row.key: why for row in fine if (why := _unclear(row))}
    fine, seeming = [row for row in fine if row.key not in unclear], fine
    if not fine and seeming:
        least = min(seeming, key=lambda row: (SIZE_GB.get(row), PPL_RATIO.get(row)))
        text = f"open: {least.label} ({_figures(least)}) may be, but {unclear[least.key]}"
    elif fine:
        least = min(fine, key=lambda row: (SIZE_GB.get(row), PPL_RATIO.get(row)))
        sure = " (its interval reaches into the next verdict)" if VERDICT_OPEN.get(least) else ""
        text = f"{least.label}: {_figures(least)}{sure}"
    elif group.quantized:
        bound = next(bound for bound, word in BOUNDS if word == _ACCEPTABLE[-1])
        text = f"none: no artifact that a runtime serves stays below a ratio of {bound}"
    else:
        return
    yield Sentence("Smallest acceptable", text)


def _unclear(row: Row) -> str | None:
    one = contender_of(row)
    return None if one is None else says_nothing(one)


def _suffers(group: Group) -> Iterator[Sentence]:
    from qsweep.results.html.capabilities import worst

    if found := worst(group):
        yield Sentence("Suffers most", found)
        return
    corpora = _mean_ratios(group)
    if len(corpora) > 1:
        (first, most), (second, next_) = corpora[0], corpora[1]
        number = len(group.quantized)
        over = "one trial" if number == 1 else f"geometric means over {number} quantized trials"
        figures = f"ratio {numbers.ratio(most)} against {numbers.ratio(next_)} on {second}"
        if most / next_ > _ALIKE:
            yield Sentence("Suffers most", f"{first}: {figures}, {over}")
        else:
            yield Sentence("Suffers most", f"no corpus in particular: {first}, {figures}, {over}")


def _mean_ratios(group: Group) -> list[tuple[str, float]]:
    # Only over trials that were measured on all corpora: else the mean would be of other trials.
    logs: dict[str, dict[str, float]] = defaultdict(dict)
    preset = group.facts.get("preset")
    for row in group.rows:
        ratio, measured = PPL_RATIO.get(row), row.measurement
        if row.record.reference or measured is None or measured.preset != preset:
            continue
        if is_finite(ratio) and ratio > 0:
            logs[measured.corpus][row.key] = math.log(ratio)
    shared = set.intersection(*(set(found) for found in logs.values())) if logs else set()
    if not shared:
        return []
    means = [
        (corpus, math.exp(sum(found[key] for key in shared) / len(shared)))
        for corpus, found in logs.items()
    ]
    return sorted(means, key=lambda pair: -pair[1])


def _figures(row: Row) -> str:
    ratio, size, verdict = (column.cell(row) for column in (PPL_RATIO, SIZE_GB, VERDICT))
    return f"perplexity ratio {ratio}, {size} GB, verdict {verdict}"


def _share(group: Group, row: Row) -> str:
    whole = next(
        (
            SIZE_GB.get(r)
            for r in group.primary_rows
            if r.record.reference and r.record.model == row.record.model
        ),
        None,
    )
    size = SIZE_GB.get(row)
    if not is_finite(whole) or not is_finite(size) or not whole:
        return ""
    return f", {100 * size / whole:.0f} % of the reference's size"
