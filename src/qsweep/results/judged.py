"""What a record may claim, given what its reference predicts. Pure."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qsweep.evaluate.verdicts import predicts_nothing
from qsweep.results.columns.table import PPL, PPL_RATIO, QUALITY, QUALITY_PER_GB, VERDICT_SURE
from qsweep.results.record import Figures, Measurement, Record

_CLAIMS = tuple(column.name for column in (QUALITY, QUALITY_PER_GB, VERDICT_SURE))


def judged(record: Record) -> Record:
    """A record without the claims that its reference cannot bear.

    Where the reference predicts nothing, a measurement has no verdict and no quality, and says why
    in ``no_verdict``. Its perplexity is the measurement's ``reference_ppl``, where its own perplexity
    and ratio do not tell it.
    """
    reasons = [_no_verdict(record, measurement) for measurement in record.measurements]
    if not any(reasons):
        return record
    measurements = tuple(
        measurement if reason is None else _without_claims(measurement, reason)
        for measurement, reason in zip(record.measurements, reasons, strict=True)
    )
    return replace(record, measurements=measurements)


def told_reference_ppl(metrics: Mapping[str, Any], *, is_reference: bool) -> float | None:
    """The reference's perplexity, as far as a measurement's own figures tell it."""
    ppl, ratio = metrics.get(PPL.name), metrics.get(PPL_RATIO.name)
    if is_reference or ppl is None:
        return ppl
    return ppl / ratio if ratio and math.isfinite(ratio) else None


def _no_verdict(record: Record, measurement: Measurement) -> str | None:
    if measurement.no_verdict:
        return measurement.no_verdict
    ppl = measurement.reference_ppl
    if ppl is None:
        ppl = told_reference_ppl(measurement.metrics, is_reference=record.reference)
    size = record.vocab_size
    known = int(size) if size and math.isfinite(size) else None
    return None if ppl is None else predicts_nothing(ppl, known)


def _without_claims(measurement: Measurement, reason: str) -> Measurement:
    kept = Figures({k: v for k, v in measurement.metrics.items() if k not in _CLAIMS})
    return replace(measurement, metrics=kept, verdict=None, no_verdict=reason)
