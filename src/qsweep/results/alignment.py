"""Does calibrating on text of the right kind help? A square of calibrations by corpora."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from qsweep.base import numbers
from qsweep.results.columns.table import PPL, PPL_RATIO
from qsweep.results.model_names import with_distinct_models
from qsweep.results.record import Record, Row
from qsweep.results.traits import implied_by, traits
from qsweep.results.windows import paired_ratio, shared, windows_of


@dataclass(frozen=True)
class Gain:
    """What calibrating on a corpus's own kind of text brings on it.

    Attributes:
        corpus: Where it was measured.
        ratio: Perplexity after the other calibration over that after its own; above 1, its own
            helped. ``low`` and ``high`` are its paired 95 % interval, None where a single window
            has none.
    """

    corpus: str
    ratio: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """Whether its own calibration helped beyond noise."""
        if self.low is None or self.high is None:
            return "too few windows to tell"
        if self.low > 1:
            return "in-domain calibration helped"
        return "in-domain calibration hurt" if self.high < 1 else "no difference beyond noise"


@dataclass(frozen=True)
class Alignment:
    """One model and quantizer, calibrated on two kinds of text and measured on both.

    Attributes:
        name: Of the trial, without its calibration.
        domains: The two kinds, as calibrations and corpora are both named.
        ratios: Perplexity ratio to the reference, by calibration and corpus.
        gains: By corpus.
    """

    name: str
    domains: tuple[str, str]
    ratios: dict[tuple[str, str], float]
    gains: tuple[Gain, ...]

    @property
    def verdict(self) -> str:
        """The square in one line."""
        helped = [g.corpus for g in self.gains if g.verdict.endswith("helped")]
        hurt = [g.corpus for g in self.gains if g.verdict.endswith("hurt")]
        if helped and not hurt:
            where = "on both" if len(helped) == 2 else f"on {helped[0]}"
            return f"in-domain calibration helped beyond noise {where}"
        if helped and hurt:
            best = helped[0]
            return (
                f"calibrating on {best} was better on both: what helped was the text, not its kind"
            )
        if hurt:
            return f"in-domain calibration hurt on {' and '.join(hurt)}"
        return "in-domain calibration made no difference beyond noise"


def alignments(records: Sequence[Record]) -> list[Alignment]:
    """Every square that a sweep's records hold.

    A calibration and a corpus of the same name are of the same kind. Intervals are paired over
    windows: the two artifacts are measured on the same tokens. They cover which samples the calibration
    drew where ``seeds`` asked for several draws.
    """
    families: dict[str, dict[str, Record]] = defaultdict(dict)
    for record in with_distinct_models(list(records)):
        if record.finished and record.calibration:
            # All alike but the text: how much of it is drawn, and by which seed, is no part of that.
            alike = {
                name: value
                for name, value in traits(record).items()
                if name != "calibration" and implied_by(name) != "calibration"
            }
            family = repr((record.model, record.name, alike))
            families[family][record.calibration] = record
    found = []
    for by_calibration in families.values():
        corpora = {m.corpus for r in by_calibration.values() for m in r.measurements}
        domains = sorted(corpora & by_calibration.keys())
        for number, first in enumerate(domains):
            for second in domains[number + 1 :]:
                pair = {d: by_calibration[d] for d in (first, second)}
                if (square := _square(pair, (first, second))) is not None:
                    found.append(square)
    return found


def alignment_markdown(records: Sequence[Record]) -> str:
    """The squares as a section of Markdown; empty where there is none."""
    from qsweep.results.markdown_table import table

    parts = []
    for square in alignments(records):
        lines = [
            [f"calibrated on {c}", *(numbers.ratio(square.ratios[c, d]) for d in square.domains)]
            for c in square.domains
        ]
        gains = [
            f"- on {g.corpus}: {g.verdict} (perplexity {100 * (g.ratio - 1):+.1f} % with the other "
            f"calibration{_interval(g)})"
            for g in square.gains
        ]
        headings = ["perplexity ratio", *(f"on {d}" for d in square.domains)]
        parts.append(
            f"### {numbers.markdown(square.name)}\n\n{table(headings, lines)}\n\n"
            f"**{square.verdict}.**\n\n" + "\n".join(gains)
        )
    return "## Calibration alignment\n\n" + "\n\n".join(parts) if parts else ""


def _interval(gain: Gain) -> str:
    if gain.low is None or gain.high is None:
        return ""
    return f", 95 % {100 * (gain.low - 1):+.1f} to {100 * (gain.high - 1):+.1f}"


def _square(records: dict[str, Record], domains: tuple[str, str]) -> Alignment | None:
    ratios: dict[tuple[str, str], float] = {}
    gains = []
    for corpus in domains:
        other = domains[1 - domains.index(corpus)]
        own_measured = _measured(records[corpus], corpus)
        other_measured = _measured(records[other], corpus)
        if own_measured is None or other_measured is None:
            return None
        for calibration, measured in ((corpus, own_measured), (other, other_measured)):
            ratios[calibration, corpus] = PPL_RATIO.get(measured)
        gains.append(_gain(corpus, own_measured, other_measured))
    return Alignment(records[domains[0]].name, domains, ratios, tuple(gains))


def _measured(record: Record, corpus: str) -> Row | None:
    found = [Row(record, m) for m in record.measurements if m.corpus == corpus]
    return next((row for row in found if PPL_RATIO.get(row) is not None), None)


def _gain(corpus: str, own: Row, other: Row) -> Gain:
    first, second = windows_of(other), windows_of(own)
    pair = None if first is None or second is None else shared(first, second)
    if pair is None:  # deleted since, or of other windows
        return Gain(corpus, PPL.get(other) / PPL.get(own), None, None)
    found = paired_ratio(*pair)
    if not found.low > 0 or math.isinf(found.high):
        return Gain(corpus, found.value, None, None)
    return Gain(corpus, found.value, found.low, found.high)
