"""Losses by perplexity, divergence and agreement, window by window."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from qsweep.base import numbers
from qsweep.base.errors import ConfigError
from qsweep.base.schema import nearest
from qsweep.evaluate.equivalence import OfWindows
from qsweep.evaluate.metrics import clustered_mean
from qsweep.results.certificate.margins import Unit
from qsweep.results.certificate.sides import Measure, Sides, again, names
from qsweep.results.comparable import measured_by
from qsweep.results.record import Measurement, Record, Row
from qsweep.results.windows import Windows, shared, windows_of

if TYPE_CHECKING:
    import numpy as np


def of_windows(name: str, sides: Sides) -> Measure:
    """A measure of windows.

    Raises:
        ConfigError: It was not measured, or not on the same ones, or the reference predicts nothing.
    """
    kind, _, run = name.partition(":")[0].partition("_")
    measurement = _measurement(name, sides.trial)
    if measurement.no_verdict:
        # Whatever is done to a model that predicts nothing, it predicts as much as before.
        raise ConfigError(
            f"--margin {name}: nothing can be said of {sides.trial.name} on {measurement.corpus}: "
            f"{measurement.no_verdict}"
        )
    own = _read(name, sides.trial, measurement, run, sides)
    base = _base_windows(name, measurement, kind, run, sides)
    if base is not None:
        pair = shared(own, base)
        if pair is None:
            raise ConfigError(f"--margin {name}: {_not_alike(sides)}")
        own, base = pair
    sums, unit, figures = _loss(name, kind, own, base)
    mean = clustered_mean(sums, own.tokens)
    sequential = own.sequential or (base is not None and base.sequential)
    sd = None if mean.stderr is None else mean.stderr * math.sqrt(len(own))
    facts = measurement.facts
    rule = (facts.get("until") or {}).get("rule")
    return Measure(
        name,
        unit,
        OfWindows(mean.value, sd, len(own), sequential),
        "windows",
        figures,
        f"{measurement.corpus} ({measurement.preset})",
        str(facts.get("fingerprint") or measurement.key),
        f"read until {rule}" if rule else "",
    )


def _measurement(name: str, record: Record) -> Measurement:
    """The measurement that ``ppl``, ``ppl:CORPUS`` or ``ppl:CORPUS:PRESET`` means."""
    _, *place = name.split(":")
    found = [record.primary] if not place and record.primary else list(record.measurements)
    for wanted, where in zip(place, ("corpus", "preset"), strict=False):
        there = {str(getattr(one, where)) for one in found}
        found = [one for one in found if getattr(one, where) == wanted]
        if not found:
            raise ConfigError(
                f"--margin {name}: {record.name} was not measured on {wanted}{nearest(wanted, there)}"
            )
    if not found:
        raise ConfigError(f"--margin {name}: {record.name} was measured on no text")
    return found[0]


def _read(name: str, record: Record, measurement: Measurement, run: str, sides: Sides) -> Windows:
    """The windows of a measurement, or of a run of it with more as it is served."""
    if run:
        runs = {one.name: one for one in measurement.served or () if one.refused is None}
        if run not in runs:
            raise ConfigError(
                f"--margin {name}: {record.name} was not run with its {run} as served"
                f"{nearest(name, names(record))}"
            )
        served = runs[run]
        measurement = replace(
            measurement, key=served.key, file=served.file, facts=served.facts, served=None
        )
    found = windows_of(Row(record, measurement), sides.find)
    if found is None:
        raise ConfigError(
            f"--margin {name}: what was measured of {record.name} on each window is gone from the "
            f"store{again(record)}"
        )
    if record.reference and found.kld is None:
        # Its divergence from itself is measured on some windows alone, and is 0 on all.
        return replace(found, kld=0 * found.nll, top1=found.tokens[None])
    return found


def _base_windows(
    name: str, measurement: Measurement, kind: str, run: str, sides: Sides
) -> Windows | None:
    """What the trial's windows are compared with; None where they are of the reference by themselves."""
    if sides.against is None and kind != "ppl":
        return None
    run = run if sides.against is not None else ""
    gone: ConfigError | None = None
    for base in sides.bases:
        for other in base.measurements:
            if other.place == measurement.place and measured_by(other) == measured_by(measurement):
                try:
                    return _read(name, base, other, run, sides)
                except ConfigError as error:  # another sweep's record may lead to what is there
                    gone = gone or error
    raise gone or ConfigError(f"--margin {name}: {_not_alike(sides)}")


def _not_alike(sides: Sides) -> str:
    return (
        f"{sides.base_name} was not measured on the windows that {sides.trial.name} was"
        f"{again(sides.trial) if sides.against is None else '; run both in one sweep'}"
    )


def _loss(
    name: str, kind: str, own: Windows, base: Windows | None
) -> "tuple[np.ndarray, Unit, str]":
    """Each window's loss, summed over its tokens, its unit, and the figures in words."""
    tokens = own.tokens.sum()
    if kind == "ppl":
        assert base is not None
        ppl = [math.exp(min(one.nll.sum() / tokens, 700.0)) for one in (own, base)]
        return (own.nll - base.nll)[0], "%", f"{ppl[0]:.4g} against {ppl[1]:.4g}"
    values = [one.kld if kind == "kld" else one.top1 for one in (own, base) if one is not None]
    known = [value[0] for value in values if value is not None]  # of an artifact, which is one draw
    if len(known) < len(values):
        raise ConfigError(f"--margin {name}: no divergence was measured; set eval.divergence=true")
    means = [float(value.sum() / tokens) for value in known]
    if kind == "kld":
        words = " against ".join(numbers.divergence(mean) for mean in means)
        return known[0] - known[1] if base is not None else known[0], "nats", words
    words = " against ".join(numbers.percent(mean) for mean in means)
    best = known[1] if base is not None else own.tokens
    return best - known[0], "points", words
