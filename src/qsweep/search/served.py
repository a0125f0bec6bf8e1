"""What a search counts of a trial: its figures as the card that it is for serves them. Pure.

A format that quantizes activations is not what its weights alone are worth: where a trial was also
measured with what serving adds, a search looks at those figures instead. Where the card unpacks a
format's weights to 16 bits, activations are not quantized there, and do not count.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qsweep.evaluate.metrics import quality, quality_per_gb
from qsweep.evaluate.verdicts import verdict
from qsweep.formats.hardware import Card
from qsweep.results.record import Figures, Measurement, Record

# Figures of the weights alone, and what a run with more than these calls its own.
_COUNTED = {
    "ppl_ratio": "ppl_ratio_{}",
    "ppl_ratio_low": "ppl_ratio_{}_low",
    "ppl_ratio_high": "ppl_ratio_{}_high",
    "kld": "kld_{}",
    "kld_stderr": "kld_{}_stderr",
    "top1_agreement": "top1_agreement_{}",
}


def as_served(record: Record, card: Card | None = None) -> Record:
    """A record whose figures are those of the last run with nothing on that the card does not serve.

    Perplexity, quality and verdict follow the ratio. A record without such a run stays as it is.

    Args:
        record: A finished trial's.
        card: What it is to run on; None: one that serves it as it is meant.
    """
    if not record.finished or not any(one.served for one in record.measurements):
        return record
    size = None if record.artifact is None else record.artifact.size_gb
    unpacked = (
        card is not None and record.number_format is not None and record.fit(card).how == "unpacked"
    )
    measured = (_as_served(one, unpacked, size) for one in record.measurements)
    return replace(record, measurements=tuple(measured))


def counted(measurement: Measurement, unpacked: bool = False) -> str | None:
    """The name of the run that counts; None where that is the one with the weights alone."""
    for run in reversed(measurement.served or ()):
        rounds = "activations" in run.serving
        if f"ppl_ratio_{run.name}" in measurement.metrics and not (rounds and unpacked):
            return run.name
    return None


def counted_run(record: Record) -> str | None:
    """The name of the run that a record's figures are of; None where that is the weights' own."""
    measured = record.primary
    ratio = None if measured is None else measured.metrics.get("ppl_ratio")
    if measured is None or ratio is None:
        return None
    names = [run.name for run in reversed(measured.served or ())]
    return next((n for n in names if measured.metrics.get(f"ppl_ratio_{n}") == ratio), None)


def _as_served(measurement: Measurement, unpacked: bool, size_gb: float | None) -> Measurement:
    name = counted(measurement, unpacked)
    if name is None:
        return measurement
    found: Mapping[str, Any] = measurement.metrics
    moved: dict[str, Any] = {
        ours: found.get(theirs.format(name)) for ours, theirs in _COUNTED.items()
    }
    ratio, before = moved["ppl_ratio"], found.get("ppl_ratio")
    metrics = {**found, **{k: v for k, v in moved.items() if k in found}, "quality": quality(ratio)}
    if before and found.get("ppl") is not None:
        metrics["ppl"] = found["ppl"] / before * ratio
    if size_gb is not None:
        metrics["quality_per_gb"] = quality_per_gb(metrics["quality"], size_gb)
    word = verdict(ratio) if measurement.verdict else measurement.verdict
    return replace(measurement, metrics=Figures(metrics), verdict=word)
