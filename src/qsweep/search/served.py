"""What a search counts of a trial: its figures as the card that it is for serves them. Pure.

A format that quantizes activations is not what its weights alone are worth: where a trial was also
measured with what serving adds, a search looks at those figures instead. Where the card unpacks a
format's weights to 16 bits, activations are not quantized there, and do not count. Nor does a KV
cache then: it was measured on top of them, and what it costs without them is not known.
"""

from dataclasses import replace
from typing import Any

from qsweep.evaluate.metrics import quality, quality_per_gb
from qsweep.evaluate.served import TOLD
from qsweep.evaluate.verdicts import verdict
from qsweep.formats.hardware import Card
from qsweep.results.record import Figures, Measurement, Record

# Of the run of the weights alone, and told of no other.
_NOT_TOLD = ("ppl_stderr", "verdict_sure")


def as_served(record: Record, card: Card | None = None) -> Record:
    """A record whose figures are those of the last run with nothing on that the card does not serve.

    All that a run tells of itself; perplexity, quality and verdict follow the ratio. What was not
    told of that run (the perplexity's own error) is left out rather than taken from another. A
    record without such a run stays as it is.

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


def leaves_cache_out(record: Record) -> bool:
    """Whether a record was measured with a KV cache and its figures are of a run without."""
    measured = record.primary
    runs = () if measured is None else measured.served or ()
    return any("kv_cache" in run.serving for run in runs) and counted_run(record) != "kv"


def _as_served(measurement: Measurement, unpacked: bool, size_gb: float | None) -> Measurement:
    name = counted(measurement, unpacked)
    if name is None:
        return measurement
    found = measurement.metrics
    moved: dict[str, Any] = {
        ours: found.get(theirs.format(name)) for ours, theirs in TOLD.items() if ours in found
    }
    ratio, before = moved["ppl_ratio"], found.get("ppl_ratio")
    kept = {name: value for name, value in found.items() if name not in _NOT_TOLD}
    metrics = {**kept, **moved, "quality": quality(ratio)}
    if before and found.get("ppl") is not None:
        metrics["ppl"] = found["ppl"] / before * ratio
    if size_gb is not None:
        metrics["quality_per_gb"] = quality_per_gb(metrics["quality"], size_gb)
    word = verdict(ratio) if measurement.verdict else measurement.verdict
    return replace(measurement, metrics=Figures(metrics), verdict=word)
