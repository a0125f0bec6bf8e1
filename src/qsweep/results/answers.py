"""A sweep's answer: which trial of a model has the most quality per GB, if any can be said to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qsweep.evaluate.verdicts import judged
from qsweep.results.comparable import apart, measured_by
from qsweep.results.model_names import models_apart
from qsweep.results.record import Record
from qsweep.results.rows import can_serve, primary, status_word, windows_cut
from qsweep.results.traits import setting
from qsweep.results.winner import Decision, contender, decide, sentence


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
    for record in models_apart([judged(record) for record in records]):
        usable = record["status"] == "finished" and not record.get("reference")
        measurement = primary(record)
        if usable and measurement and can_serve(record) and not record.get("implied"):
            ways = found.setdefault(record["model"], {})
            ways.setdefault(measured_by(measurement), {})[record["key"]] = record
    made = []
    for model, ways in sorted(found.items()):
        own = [best for held in ways.values() if (best := _best(model, held)) is not None]
        words = apart([primary(best.record) or {} for best in own]) if len(own) > 1 else [""]
        made += [replace(best, measured=word) for best, word in zip(own, words, strict=False)]
    return made


def _best(model: str, records: Mapping[str, Record]) -> Best | None:
    contenders = [contender(k, r["name"], _figures(r), setting(r)) for k, r in records.items()]
    decision = decide([one for one in contenders if one is not None])
    return None if decision.leader is None else Best(model, records[decision.leader], decision)


def best_lines(records: Sequence[Record]) -> list[str]:
    """The answer in plain words, a line for each model and each way that it was measured."""
    reasons = {
        (record["model"], measurement["no_verdict"])
        for record in models_apart([judged(record) for record in records])
        if (measurement := primary(record)) and measurement.get("no_verdict")
    }
    found = answers(records)
    several = len({answer.model for answer in found} | {model for model, _ in reasons}) > 1
    lines = [f"no verdict on {model}: {reason}" for model, reason in sorted(reasons)]
    for answer in found:
        of = (f" of {answer.model}" if several else "") + (
            f" ({answer.measured})" if answer.measured else ""
        )
        leader = f"{answer.record['name']} ({status_word(answer.record)})"
        lines.append(f"most quality per GB{of}: {sentence(answer.decision, leader)}")
    return lines


def _figures(record: Record) -> dict[str, Any]:
    measurement = primary(record)
    if measurement is None:
        return {}
    facts = measurement.get("facts") or {}
    return {
        **measurement["metrics"],
        "size_gb": (record.get("artifact") or {}).get("size_gb"),
        "windows": facts.get("windows"),
        "windows_cut": windows_cut(measurement),
    }
