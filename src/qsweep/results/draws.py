"""Trials that differ in nothing but the draw, as one row: a setting's mean, and what it covers.

Each draw is a trial as any other, with its record and its figures. Where ``seeds`` asked for several,
tables, answers and ranks are of settings: :func:`pooled` puts one record in the place of the draws of
each, which keeps them as its ``draws``.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from qsweep.base.keys import key_of
from qsweep.evaluate.draws import Estimate, estimate
from qsweep.evaluate.verdicts import verdict
from qsweep.results.arrays import FindArrays, stored_arrays
from qsweep.results.columns.table import KLD, PPL, PPL_RATIO
from qsweep.results.comparable import measured_by
from qsweep.results.pooled_figures import mean_of, pooled_figures
from qsweep.results.pooled_tasks import pooled_tasks
from qsweep.results.record import ArtifactFacts, Figures, Measurement, Record, Row, Speed
from qsweep.results.traits import drawn_by, is_draw, seed_of, seeds_asked, setting
from qsweep.results.windows import Windows, shared, windows_of

_SIZES = ("size_gb", "bpw", "bpw_total", "active_gb")
_MEANS = ("quantize_s", "shared_s", "evaluate_s", "seconds")
_LARGEST = ("peak_memory_gb", "peak_host_memory_gb")


def pooled(records: Iterable[Record], find: FindArrays = stored_arrays) -> list[Record]:
    """Records, one in place of all finished draws of each setting of which ``seeds`` asked for several.

    All others stay as they are: what rests on no draw, what did not finish, and draws that nobody
    asked to be pooled, as those of ``seed=1,2``. What is pooled already stays so.

    Args:
        records: Of one or several sweeps, references among them.
        find: Tells where a measurement's arrays are.
    """
    records = list(records)
    if not any(seeds_asked(record) for record in records if record.draws is None):
        return records
    drawn: dict[str, list[Record]] = {}
    for record in records:
        if record.finished and record.draws is None and (alike := _alike(record)):
            drawn.setdefault(alike, []).append(record)
    drawn = {alike: held for alike, held in drawn.items() if _several(held)}
    place = {record.key: alike for alike, held in drawn.items() for record in held}
    references = _references(records, find)
    made = {alike: _pooled(alike, held, references, find) for alike, held in drawn.items()}
    found: dict[str, Record] = {}
    for record in records:
        one = made[place[record.key]] if record.key in place else record
        found[one.key] = one
    return list(found.values())


def singles(records: Iterable[Record]) -> list[Record]:
    """Records of trials alone: in place of what is pooled its draws."""
    return [one for record in records for one in record.draws or (record,)]


def named_singles(records: Iterable[Record]) -> list[Record]:
    """The same, called by what they are draws of and their seed."""
    return [
        one if record.draws is None else replace(one, name=f"{record.name} seed={seed_of(one)}")
        for record in records
        for one in record.draws or (record,)
    ]


def one_for_each(
    draws: Sequence[int], records: Sequence[Record], among: Iterable[Record]
) -> list[Record]:
    """The record of each configuration of a batch: of several draws the pooled one.

    Where some draws did not finish it is that of the others, where none did the first one's.

    Args:
        draws: How many each configuration has.
        records: Of all of them, one configuration after the other.
        among: What holds their references.
    """
    references = [record for record in among if record.reference]
    found, rest = [], iter(records)
    for number in draws:
        own = [next(rest) for _ in range(number)]
        if number > 1:
            keys = {record.key for record in references}
            own = [one for one in pooled([*references, *own]) if one.key not in keys] or own
        found.append(min(own, key=lambda one: not one.finished))
    return found


def _alike(record: Record) -> str:
    """Equal for draws that are pooled: of one setting, measured alike; empty where nothing is drawn."""
    if not record.measurements or not (own := setting(record)):
        return ""
    ways = [(measurement.place, measured_by(measurement)) for measurement in record.measurements]
    return repr((own, record.fidelity, ways))


def _several(held: Sequence[Record]) -> bool:
    asked = {seed for record in held for seed in seeds_asked(record)}
    return bool(asked) and max(len(asked), len(set(map(drawn_by, held)))) > 1


def _references(records: Sequence[Record], find: FindArrays) -> dict[str, Windows]:
    found = {}
    for record in records:
        for measurement in record.measurements if record.reference and record.finished else ():
            windows = windows_of(Row(record, measurement), find)
            if windows is not None:
                found[_measured(record, measurement)] = windows
    return found


def _measured(record: Record, measurement: Measurement) -> str:
    return repr((record.model_hash, measurement.place, measured_by(measurement)))


def _pooled(
    alike: str, held: Sequence[Record], references: Mapping[str, Windows], find: FindArrays
) -> Record:
    by_draw = {drawn_by(record): record for record in held}
    draws = tuple(by_draw[one] for one in sorted(by_draw))
    first = draws[0]
    asked = sorted({seed for record in held for seed in seeds_asked(record)})
    artifact = _artifact(draws)
    size = artifact and artifact.size_gb
    whole = replace(first, draws=draws)
    known = partial(_known, whole, references, find)
    measured = tuple(_measurement(draws, m, known(m), size) for m in first.measurements)
    return replace(
        whole,
        key=key_of(["draws", alike]),
        options={name: value for name, value in first.options.items() if not is_draw(name)},
        config={**_without_seeds(first.config), "seeds": asked},
        artifact=artifact,
        measurements=measured,
        speed=_speed(draws),
        implied=all(record.implied for record in draws),
        cached=all(record.cached for record in draws),
        started=min((r.started for r in draws if r.started), default=None),
        ended=max((r.ended for r in draws if r.ended), default=None),
        **{name: _over(draws, name, mean_of) for name in _MEANS},
        **{name: _over(draws, name, max) for name in _LARGEST},
        **pooled_tasks(draws),
    )


def _known(
    whole: Record, references: Mapping[str, Windows], find: FindArrays, measurement: Measurement
) -> dict[str, Estimate]:
    """By name of a figure, what the windows of all draws say of it."""
    windows = windows_of(Row(whole, measurement), find)
    if windows is None:
        return {}
    counts = windows.tokens
    found = {PPL.name: estimate(windows.nll, counts)}
    if windows.kld is not None:
        found[KLD.name] = estimate(windows.kld, counts)
    reference = references.get(_measured(whole, measurement))
    if reference is not None and shared(reference, windows) is not None:
        found[PPL_RATIO.name] = estimate(windows.nll - reference.nll, counts)
    return found


def _measurement(
    draws: Sequence[Record], first: Measurement, known: Mapping[str, Estimate], size: Any
) -> Measurement:
    found = [m for record in draws for m in record.measurements if m.place == first.place]
    windows = first.facts.get("windows")
    metrics = pooled_figures([one.metrics for one in found], windows, known, size)
    ratio = metrics.get(PPL_RATIO.name)
    if first.verdict is None or ratio is None or not math.isfinite(ratio):
        return replace(first, metrics=metrics)
    return replace(first, metrics=metrics, verdict=verdict(ratio))


def _artifact(draws: Sequence[Record]) -> ArtifactFacts | None:
    """That of the first draw, for who wants one, with the draws' mean sizes."""
    first = draws[0].artifact
    made = [record.artifact for record in draws if record.artifact is not None]
    if first is None or len(made) < len(draws):
        return first
    return replace(first, **{n: mean_of([getattr(one, n) for one in made]) for n in _SIZES})


def _speed(draws: Sequence[Record]) -> Speed | None:
    timed = [record.speed.figures for record in draws if record.speed is not None]
    if len(timed) < len(draws):
        return None
    return Speed(Figures({n: mean_of([one.get(n) for one in timed]) for n in timed[0]}))


def _over(draws: Sequence[Record], name: str, of: Any) -> Any:
    values = [getattr(record, name) for record in draws]
    return None if any(value is None for value in values) else of(values)


def _without_seeds(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_seeds(value)
        if isinstance(value, Mapping)
        else None
        if is_draw(name)
        else value
        for name, value in config.items()
    }
