"""What must hold in every sweep. A violation is a bug somewhere, or a number that cannot be read.

Two ratios differ beyond noise where the difference of their logarithms exceeds both intervals'
half-widths combined, sqrt(a² + b²). The trials share windows and reference, so their errors are
positively correlated, and this errs on the side of silence.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from qsweep.results.columns.table import (
    BITS,
    KLD,
    PPL_RATIO,
    PPL_RATIO_HIGH,
    PPL_RATIO_LOW,
    TYPE,
)
from qsweep.results.comparable import measured_by
from qsweep.results.draws import named_singles
from qsweep.results.expert_coverage import expert_coverage
from qsweep.results.labels import with_distinct_names
from qsweep.results.model_names import with_distinct_models
from qsweep.results.record import Record, Row
from qsweep.results.traits import traits
from qsweep.text.corpora import MOST_TOKENS

# Ratios closer than this are equal, however narrow their intervals.
_EQUAL = 0.001
# What 8 bits may cost: the field's upper bound of expected ratios.
_EIGHT_BIT = 1.06
# Options whose difference makes two trials comparable all the same.
_SIZE_OPTIONS = ("quant.bits", "quant.type")
CALIBRATED = ("gptq", "awq")
"""The methods that must not be worse than rounding to nearest on the same grid."""
# Calibrated on other text, a static scale cuts off a few activations of most layers; of so many in
# one layer it is too small.
_SATURATED = 0.001
# By a run's name, which part of its facts tells what was cut off, and what there is to say of that.
_SATURATES = {
    "activations": (
        "activations",
        "{} of what goes into {layer} is beyond its static scale and saturates ({} of all "
        "activations): calibrate it on text like this, or serve it with dynamic scales",
    ),
    "kv": (
        "kv_cache",
        "{} of the {layer} is beyond what its cache can hold and saturates ({} of all): serve it "
        "with calibrated scales, or with a type that has a scale per token",
    ),
}
# A quantizer that saw less of the text than this share of what was asked for saw it again and again.
_LEAST_CALIBRATION = 0.5


def check(records: Iterable[Record]) -> list[str]:
    """Sanity checks over a sweep's records, one line per violation; none means that all hold.

    Checked on each model, corpus and preset: the reference predicts something, and is itself 0 away
    from itself; more bits are never worse within one method and otherwise equal options; 8 bits are
    close to the reference; nothing is better than the reference; calibrated methods are not worse
    than rounding to nearest on the same grid. Of each model, that the calibration text holds what
    was asked of it, and enough for its experts; and of each artifact, that its tensors are what is said of them, and that what
    is served beside them could be simulated and stays in its range.
    """
    named = with_distinct_models([record for record in records if record.finished])
    places: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for record in named:
        for measurement in record.measurements:
            place = (record.model, *measurement.place, repr(measured_by(measurement)))
            places[place].append(Row(record, measurement, record.name))
    lines = [
        f"{', '.join(place[:3])}: {line}"
        for place, found in sorted(places.items())
        for line in (
            *_reference(found),
            *_close_to_reference(found),
            *_more_bits(found),
            *_rounding(found),
        )
    ]
    # What concerns an artifact is asked of each.
    made = named_singles(named)
    more = (
        *(*_calibration(made), *_experts(made), *_other_functions(named)),
        *(*_belonging(made), *_tensors(made), *_served(named_singles(with_distinct_names(named)))),
    )
    return list(dict.fromkeys([*lines, *more]))


def _tensors(records: Iterable[Record]) -> Iterator[str]:
    """What is not as it should be in the tensors of an artifact; found when its table was made."""
    for record in records:
        for flag in () if record.tensors is None else record.tensors.flags:
            yield f"{record.name}: {flag}"


def _served(records: Iterable[Record]) -> Iterator[str]:
    """What was not simulated of serving an artifact, and what is beyond the range it is served in."""
    seen = set()
    for record in records:
        for measurement in record.measurements:
            for run in measurement.served or ():
                if run.key is not None and run.key in seen:
                    continue  # trials that differ in the cache alone share the run before it
                seen.add(run.key)
                if run.refused is not None:
                    yield f"{record.name}: with {run.name} as served: not measured: {run.refused}"
                part, words = _SATURATES.get(run.name, ("", ""))
                found = run.facts.get(part)
                most = found.get("saturated_most") if isinstance(found, Mapping) else None
                if found and most is not None and most > _SATURATED:
                    said = words.format(
                        f"{100 * most:.2g} %",
                        f"{100 * found['saturated']:.2g} %",
                        layer=found["saturated_layer"],
                    )
                    yield f"{record.name}, {measurement.corpus}: {said}"


def _belonging(records: Iterable[Record]) -> Iterator[str]:
    """What an artifact of another maker does not have in common with the model."""
    for record in records:
        found = record.details.get("belonging")
        if not isinstance(found, Mapping):
            continue
        # The table of its tensors, where there is one, says it with numbers.
        told = () if record.tensors is None else found.get("of_tensors") or ()
        for note in found.get("notes") or ():
            if note not in told:
                yield f"{record.name}: {note}"


def _other_functions(records: Iterable[Record]) -> Iterator[str]:
    """Models that llama.cpp runs otherwise: found before quantizing, so one line for all types."""
    seen = set()
    for record in records:
        found = record.details.get("llama_cpp")
        if not found or found["agrees"] or record.model in seen:
            continue
        seen.add(record.model)
        what = "cannot run its GGUF files: {reason}"
        if found.get("kld") is not None:
            what = (
                "computes another function from its GGUF files (unquantized, KLD {kld:.2g} where "
                "its kernels account for {limit:.2g} at most)"
            )
        figures = "those of that run" if record.only_own_run else "those of the weights"
        yield (
            f"{record.model}: llama.cpp {what.format(**found)}; the figures are {figures}, so "
            "serve the files with nothing that builds on llama.cpp"
        )


def _reference(rows: Iterable[Row]) -> Iterator[str]:
    rows = list(rows)
    for why in dict.fromkeys(row.no_verdict for row in rows):
        if why is not None:
            yield f"{why}: no verdict is given"
    for row in rows:
        if row.record.reference and KLD.get(row):
            yield f"the reference differs from itself (KLD {KLD.get(row):.2g} instead of 0)"


def _close_to_reference(rows: Iterable[Row]) -> Iterator[str]:
    for row, value, low, high in map(_measured, _quantized(rows)):
        if not math.isfinite(value) or value <= 0:
            yield f"{row.label}: its perplexity ratio is {value}"
        elif high < 1 - 0.01:
            yield f"{row.label} is better than its reference (ratio {_ratio(row)})"
        elif BITS.get(row) == 8 and "rules" not in row.record.options and low > _EIGHT_BIT:
            yield f"{row.label} is far from its reference for 8 bits (ratio {_ratio(row)})"


def _more_bits(rows: Iterable[Row]) -> Iterator[str]:
    families: dict[tuple[str, str], list[Measured]] = defaultdict(list)
    for row in _quantized(rows):
        if BITS.get(row) is not None:
            for family in _families(row):
                families[family, _other_options(row.record)].append(_measured(row))
    seen = set()
    for alike in families.values():
        for less, more in itertools.permutations(alike, 2):
            pair = (less.row.key, more.row.key)
            fewer = BITS.get(less.row) < BITS.get(more.row)
            if fewer and pair not in seen and _worse(more, less):
                seen.add(pair)
                words = f"{more.row.label} is worse than {less.row.label}"
                yield f"{words} ({_figures(more.row, less.row)})"


def _rounding(rows: Iterable[Row]) -> Iterator[str]:
    baselines: dict[str, list[Row]] = defaultdict(list)
    quantized = _quantized(rows)
    for row in quantized:
        grid = grid_of(row.record.options) if row.record.method == "rtn" else None
        if grid is not None:
            baselines[repr(grid)].append(row)
    for row in quantized:
        if row.record.method not in CALIBRATED:
            continue
        for base in baselines.get(repr(grid_of(row.record.options)), ()):
            if _worse(_measured(row), _measured(base)):
                words = f"{row.label} is worse than {base.label}, the baseline"
                yield f"{words} ({_figures(row, base)})"
                break


def grid_of(options: Mapping[str, Any]) -> dict[str, Any] | None:
    """The grid that rounding to nearest would have to share, as that quantizer's options.

    None where the options make it one that plain rounding does not have: groups of columns that lie
    apart (``desc_act``), scales that are searched for, a type of llama.cpp's.
    """
    searched = options.get("scale_search") not in (None, "range")
    apart = options.get("desc_act") and options.get("group_size") != -1
    if searched or apart or options.get("type") is not None or options.get("bits") is None:
        return None
    grid = {name: options.get(name) for name in ("bits", "group_size", "sym")}
    further = ("format", "container", "smoothquant", "double_quant", "rules")
    return grid | {name: options[name] for name in further if name in options}


def _calibration(records: Iterable[Record]) -> Iterator[str]:
    few: dict[str, list[str]] = defaultdict(list)
    for record in records:
        seen = record.calibration_tokens
        if seen is None or not seen.asked or seen.distinct is None:
            continue
        if seen.distinct < _LEAST_CALIBRATION * seen.asked:
            line = (
                f"{record.model}, calibrated on {record.calibration}: {seen.distinct} different "
                f"tokens where {seen.asked} were asked for "
                f"({100 * seen.distinct / seen.asked:.1f} %): give a "
                "longer text, or lower calibration.num_samples"
            )
            few[line].append(record.name)
    yield from _by_line(few)


def _experts(records: Iterable[Record]) -> Iterator[str]:
    """Experts that were sent too little of the text; one line for all that were calibrated alike."""
    few: dict[str, list[str]] = defaultdict(list)
    lines: dict[tuple[Any, ...], str] = {}
    for record in records:
        found = expert_coverage(record.details)
        if found is None or found.all_tokens or found.wanted <= 1:
            continue
        samples = (record.config.get("calibration") or {}).get("num_samples")
        asked = record.calibration_tokens.asked if record.calibration_tokens else None
        enough = (
            f"calibration.num_samples={math.ceil(found.wanted * samples)} would do for all but a "
            "twentieth of them"
            if samples and (asked or 1) * found.wanted <= MOST_TOKENS
            else "text of another kind may reach them"
        )
        # Configurations route a few tokens otherwise: the first of them speaks for all.
        line = lines.setdefault(
            (record.model, record.calibration, samples),
            f"{record.model}, calibrated on {record.calibration}: {found.short} of "
            f"{len(found.tokens)} experts were sent fewer tokens than they have inputs, "
            f"{found.unseen} of them none: {enough}",
        )
        few[line].append(record.name)
    yield from _by_line(few)


def _by_line(found: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Each line with the first of the names that it is true of."""
    for line, names in sorted(found.items()):
        yield f"{line} ({names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''})"


def _quantized(rows: Iterable[Row]) -> list[Row]:
    return [
        row
        for row in rows
        if not row.record.reference and PPL_RATIO.get(row) is not None and row.no_verdict is None
    ]


class Measured(NamedTuple):
    """A row with its ratio, and the ends of that; 0 and infinity where nothing is known of them."""

    row: Row
    value: float
    low: float
    high: float


def _measured(row: Row) -> Measured:
    # A single window has no interval: nothing can then be told from noise.
    low, high = PPL_RATIO_LOW.get(row), PPL_RATIO_HIGH.get(row)
    if high is None or low is None or not math.isfinite(high) or not math.isfinite(low):
        low, high = 0.0, math.inf
    return Measured(row, PPL_RATIO.get(row), low, high)


def _worse(one: Measured, than: Measured) -> bool:
    if not one.value > 0 or not than.value > 0:
        return False  # told elsewhere
    noise = math.hypot(_half_width(one), _half_width(than))
    return math.log(one.value) - math.log(than.value) > max(noise, _EQUAL)


def _half_width(one: Measured) -> float:
    return (math.log(one.high) - math.log(one.low)) / 2 if one.low > 0 else math.inf


def _families(row: Row) -> tuple[str, ...]:
    # GGUF's older types, K-quants and IQ types are three methods; Q8_0 is the top of each.
    kind = str(TYPE.get(row) or "")
    if not kind:
        return ("",)
    if kind.startswith(("Q8", "F16", "BF16", "F32")):
        return ("K", "IQ", "legacy")
    if kind.startswith("IQ"):
        return ("IQ",)
    return ("K",) if "_K" in kind else ("legacy",)


def _other_options(record: Record) -> str:
    # All of the configuration but the size; how it was measured is the place's.
    measured = ("eval", "corpus", "device")
    others = {
        name: value
        for name, value in traits(record).items()
        if name not in _SIZE_OPTIONS and name.partition(".")[0] not in measured
    }
    return repr((record.method, sorted(others.items())))


def _ratio(row: Row) -> str:
    return PPL_RATIO.text(PPL_RATIO.get(row))


def _figures(row: Row, than: Row) -> str:
    return f"ratio {_ratio(row)} against {_ratio(than)}"
