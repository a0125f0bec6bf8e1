"""A sweep's answer: which trial of a model has the most quality per GB, if any can be said to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qsweep.base.contents import is_number
from qsweep.results.columns.derived import status_word
from qsweep.results.columns.table import SERVED
from qsweep.results.comparable import differences, measured_by
from qsweep.results.covered import number_of_draws
from qsweep.results.model_names import with_distinct_models
from qsweep.results.record import Record, Row
from qsweep.results.ties import is_silent, tell_of
from qsweep.results.traits import setting
from qsweep.results.winner import (
    CONTEND_BY,
    Contender,
    Decision,
    contender,
    decide,
    how_many_read,
    sentence,
)

# The perplexity ratio with activations as they are served.
_RATIO = next(column for column in SERVED if column.name == "ppl_ratio_activations")


@dataclass(frozen=True)
class Best:
    """The answer for one model: which trial leads in quality per GB, and whether it is the best.

    ``measured`` says how, where the model was measured in several ways; empty where it was not.
    """

    model: str
    record: Record
    decision: Decision
    measured: str = ""

    @property
    def is_best(self) -> bool:
        """Whether the trial is the best, not just the first of a list."""
        return self.decision.open is None


def answers(records: Iterable[Record]) -> list[Best]:
    """For each model, the quantized trial that leads in quality per GB and that can be served.

    Quality is relative to a model's own reference on the same tokens, so that no trial is better
    than one of another model by it, nor than one that was measured otherwise: each of these has an
    answer of its own. What ran for others' sake alone (``implied``) is none.
    """
    found: dict[str, dict[tuple[Any, ...], dict[str, Record]]] = {}
    for record in with_distinct_models(list(records)):
        usable = record.finished and not record.reference and not record.implied
        if usable and record.primary and record.can_serve:
            held = found.setdefault(record.model, {}).setdefault(measured_by(record.primary), {})
            # What differs in the KV cache alone is one artifact, and no rival of itself.
            if all(_artifact(other) != _artifact(record) for other in held.values()):
                held[record.key] = record
    made = []
    for model, ways in sorted(found.items()):
        own = [best for held in ways.values() if (best := _best(model, held)) is not None]
        words = (
            differences([m for best in own if (m := best.record.primary)]) if len(own) > 1 else [""]
        )
        made += [replace(best, measured=word) for best, word in zip(own, words, strict=False)]
    return made


def _artifact(record: Record) -> str:
    return (record.artifact and record.artifact.key) or record.key


def _best(model: str, records: Mapping[str, Record]) -> Best | None:
    rows = [Row(r, r.primary, r.name) for r in records.values()]
    contenders = [contender_of(row, setting(row.record)) for row in rows]
    decision = decide([one for one in contenders if one is not None], tell_of(records.values()))
    return None if decision.leader is None else Best(model, records[decision.leader], decision)


def best_lines(records: Sequence[Record]) -> list[str]:
    """The answer in plain words, a line for each model and each way that it was measured."""
    reasons = {
        (record.model, record.primary.no_verdict)
        for record in with_distinct_models(records)
        if record.primary and record.primary.no_verdict
    }
    found = answers(records)
    several = len({answer.model for answer in found} | {model for model, _ in reasons}) > 1
    lines = [f"no verdict on {model}: {reason}" for model, reason in sorted(reasons)]
    for answer in found:
        of = (f" of {answer.model}" if several else "") + (
            f" ({answer.measured})" if answer.measured else ""
        )
        leader = f"{answer.record.name} ({status_word(answer.record)})"
        said = f"{sentence(answer.decision, leader)}{beside_weights(answer.record)}"
        lines.append(f"most quality per GB{of}: {said}")
    return lines


def beside_weights(record: Record) -> str:
    """What an answer that counts weights alone leaves out of a trial; empty where that is nothing.

    A verdict is of the weights, by the protocol; who decides must not read it as all that is served.
    """
    row = Row(record, record.primary)
    ratio = _RATIO.get(row)
    if not is_number(ratio):
        return ""
    return f"; that is its weights alone, activations as served take the ratio to {ratio:.3f}"


def contender_of(row: Row, setting: str = "") -> Contender | None:
    """A row as one that may be the best; None where it has no quality per GB."""
    figures: dict[str, Any] = {column.name: column.get(row) for column in CONTEND_BY}
    more = {"silent": is_silent(row), "draws": number_of_draws(row.record)}
    return contender(row.key, row.label, figures | how_many_read(row.measurement) | more, setting)
