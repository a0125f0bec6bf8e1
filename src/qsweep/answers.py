"""A sweep's answer: for each model, which trial has the most quality per GB, if any can be said to."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qsweep.model_names import models_apart
from qsweep.results import Record, can_serve, primary, status_word, windows_cut
from qsweep.traits import setting
from qsweep.verdicts import judged
from qsweep.winner import Decision, contender, decide, sentence


@dataclass(frozen=True)
class Best:
    """The answer for one model: which trial leads in quality per GB, and whether it is the best."""

    model: str
    record: Record
    decision: Decision

    @property
    def is_best(self) -> bool:
        """Whether the trial is the best, not just the first of a list."""
        return self.decision.open is None


def answers(records: Iterable[Record]) -> list[Best]:
    """For each model, the quantized trial that leads in quality per GB and that can be served.

    Quality is relative to a model's own reference, so that no trial is better than one of another
    model by it. What ran for others' sake alone (``implied``) is no answer.
    """
    found: dict[str, dict[str, Record]] = {}
    for record in models_apart([judged(record) for record in records]):
        usable = record["status"] == "finished" and not record.get("reference")
        if usable and can_serve(record) and not record.get("implied"):
            found.setdefault(record["model"], {})[record["key"]] = record
    made = []
    for model, own in sorted(found.items()):
        contenders = [contender(k, r["name"], _figures(r), setting(r)) for k, r in own.items()]
        decision = decide([one for one in contenders if one is not None])
        if decision.leader is not None:
            made.append(Best(model, own[decision.leader], decision))
    return made


def best_lines(records: Sequence[Record]) -> list[str]:
    """The answer in plain words, a line for each model: the best, or why there is none."""
    reasons = {
        (record["model"], measurement["no_verdict"])
        for record in models_apart([judged(record) for record in records])
        if (measurement := primary(record)) and measurement.get("no_verdict")
    }
    found = answers(records)
    several = len({answer.model for answer in found} | {model for model, _ in reasons}) > 1
    lines = [f"no verdict on {model}: {reason}" for model, reason in sorted(reasons)]
    for answer in found:
        of = f" of {answer.model}" if several else ""
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
