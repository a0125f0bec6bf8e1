"""What must hold in every sweep. A violation is a bug somewhere, or a number that cannot be read.

Two ratios differ beyond noise where the difference of their logarithms exceeds both intervals'
half-widths combined, sqrt(a² + b²). The trials share windows and reference, so their errors are
positively correlated, and this errs on the side of silence.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from qsweep.base.numbers import ratio
from qsweep.evaluate.verdicts import judged
from qsweep.results.comparable import measured_by
from qsweep.results.model_names import models_apart
from qsweep.results.rows import only_own_run
from qsweep.results.traits import traits

Record = dict[str, Any]

# Ratios closer than this are equal, however narrow their intervals.
_EQUAL = 0.001
# What 8 bits may cost: the field's upper bound of expected ratios.
_EIGHT_BIT = 1.06
# Options whose difference makes two trials comparable all the same.
_SIZE_OPTIONS = ("quant.bits", "quant.type")
CALIBRATED = ("gptq", "awq")
"""The methods that must not be worse than rounding to nearest on the same grid."""
# A quantizer that saw less of the text than this share of what was asked for saw it again and again.
_LEAST_CALIBRATION = 0.5


def check(records: Iterable[Record]) -> list[str]:
    """Sanity checks over a sweep's records, one line per violation; none means that all hold.

    Checked on each model, corpus and preset: the reference predicts something, and is itself 0 away
    from itself; more bits are never worse within one method and otherwise equal options; 8 bits are
    close to the reference; nothing is better than the reference; calibrated methods are not worse
    than rounding to nearest on the same grid. And of each model, that the calibration text holds
    what was asked of it.
    """
    finished = [judged(record) for record in records if record["status"] == "finished"]
    named = models_apart(finished)
    places: dict[tuple[str, ...], Found] = defaultdict(list)
    for record in named:
        for measurement in record["measurements"]:
            tokens = repr(measured_by(measurement))
            place = (record["model"], measurement["corpus"], measurement["preset"], tokens)
            why = measurement.get("no_verdict")
            places[place].append((record, {**measurement["metrics"], "no_verdict": why}))
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
    return list(dict.fromkeys([*lines, *_calibration(named), *_other_functions(named)]))


Found = list[tuple[Record, dict[str, Any]]]


def _other_functions(records: Iterable[Record]) -> Iterator[str]:
    """Models that llama.cpp runs otherwise: found before quantizing, so one line for all types."""
    seen = set()
    for record in records:
        found = ((record.get("artifact") or {}).get("details") or {}).get("llama_cpp")
        if not found or found["agrees"] or record["model"] in seen:
            continue
        seen.add(record["model"])
        what = "cannot run its GGUF files: {reason}"
        if found.get("kld") is not None:
            what = (
                "computes another function from its GGUF files (unquantized, KLD {kld:.2g} where "
                "its kernels account for {limit:.2g} at most)"
            )
        figures = "those of that run" if only_own_run(record) else "those of the weights"
        yield (
            f"{record['model']}: llama.cpp {what.format(**found)}; the figures are {figures}, so "
            "serve the files with nothing that builds on llama.cpp"
        )


def _reference(found: Found) -> Iterator[str]:
    for why in dict.fromkeys(metrics["no_verdict"] for _, metrics in found):
        if why is not None:
            yield f"{why}: no verdict is given"
    for record, metrics in found:
        if record.get("reference") and metrics.get("kld"):
            yield f"the reference differs from itself (KLD {metrics['kld']:.2g} instead of 0)"


def _close_to_reference(found: Found) -> Iterator[str]:
    for record, metrics in _quantized(found):
        value, high, low = metrics["ppl_ratio"], *_interval(metrics)
        if not math.isfinite(value) or value <= 0:
            yield f"{record['name']}: its perplexity ratio is {value}"
        elif high < 1 - 0.01:
            yield f"{record['name']} is better than its reference (ratio {ratio(value)})"
        elif _bits(record) == 8 and low > _EIGHT_BIT:
            yield f"{record['name']} is far from its reference for 8 bits (ratio {ratio(value)})"


def _more_bits(found: Found) -> Iterator[str]:
    families: dict[tuple[str, str], Found] = defaultdict(list)
    for record, metrics in _quantized(found):
        if _bits(record) is not None:
            for family in _families(record):
                families[family, _other_options(record)].append((record, metrics))
    seen = set()
    for alike in families.values():
        for (less, less_metrics), (more, more_metrics) in itertools.permutations(alike, 2):
            pair = (less["key"], more["key"])
            if (
                _bits(less) < _bits(more)
                and pair not in seen
                and _worse(more_metrics, less_metrics)
            ):
                seen.add(pair)
                yield (
                    f"{more['name']} is worse than {less['name']} "
                    f"({_figures(more_metrics, less_metrics)})"
                )


def _rounding(found: Found) -> Iterator[str]:
    baselines: dict[str, Found] = defaultdict(list)
    for record, metrics in _quantized(found):
        if record["method"] == "rtn" and (grid := grid_of(record["options"])) is not None:
            baselines[repr(grid)].append((record, metrics))
    for record, metrics in _quantized(found):
        if record["method"] not in CALIBRATED:
            continue
        for baseline, base_metrics in baselines.get(repr(grid_of(record["options"])), ()):
            if _worse(metrics, base_metrics):
                yield (
                    f"{record['name']} is worse than {baseline['name']}, the baseline "
                    f"({_figures(metrics, base_metrics)})"
                )
                break


def grid_of(options: dict[str, Any]) -> dict[str, Any] | None:
    """The grid that rounding to nearest would have to share, as that quantizer's options.

    None where the options make it one that plain rounding does not have: groups of columns that lie
    apart (``desc_act``), scales that are searched for, a type of llama.cpp's.
    """
    searched = options.get("scale_search") not in (None, "range")
    apart = options.get("desc_act") and options.get("group_size") != -1
    if searched or apart or options.get("type") is not None or options.get("bits") is None:
        return None
    return {name: options.get(name) for name in ("bits", "group_size", "sym")}


def _calibration(records: Iterable[Record]) -> Iterator[str]:
    few: dict[str, list[str]] = defaultdict(list)
    for record in records:
        seen = record.get("calibration_tokens") or {}
        asked, distinct = seen.get("asked"), seen.get("distinct")
        if asked and distinct is not None and distinct < _LEAST_CALIBRATION * asked:
            line = (
                f"{record['model']}, calibrated on {record.get('calibration')}: {distinct} different "
                f"tokens where {asked} were asked for ({100 * distinct / asked:.1f} %): give a "
                "longer text, or lower calibration.num_samples"
            )
            few[line].append(record["name"])
    for line, names in sorted(few.items()):
        yield f"{line} ({names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''})"


def _quantized(found: Found) -> Found:
    return [
        (record, metrics)
        for record, metrics in found
        if not record.get("reference")
        and metrics.get("ppl_ratio") is not None
        and metrics["no_verdict"] is None
    ]


def _worse(metrics: dict[str, Any], than: dict[str, Any]) -> bool:
    if not metrics["ppl_ratio"] > 0 or not than["ppl_ratio"] > 0:
        return False  # told elsewhere
    difference = math.log(metrics["ppl_ratio"]) - math.log(than["ppl_ratio"])
    noise = math.hypot(_half_width(metrics), _half_width(than))
    return difference > max(noise, _EQUAL)


def _half_width(metrics: dict[str, Any]) -> float:
    high, low = _interval(metrics)
    return (math.log(high) - math.log(low)) / 2 if low > 0 else math.inf


def _interval(metrics: dict[str, Any]) -> tuple[float, float]:
    # A single window has no interval: nothing can then be told from noise.
    high, low = metrics.get("ppl_ratio_high"), metrics.get("ppl_ratio_low")
    if high is None or low is None or not math.isfinite(high) or not math.isfinite(low):
        return math.inf, 0.0
    return high, low


def _bits(record: Record) -> Any:
    return record["options"].get("bits")


def _families(record: Record) -> tuple[str, ...]:
    # GGUF's older types, K-quants and IQ types are three methods; Q8_0 is the top of each.
    kind = str(record["options"].get("type") or "")
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
    return repr((record["method"], sorted(others.items())))


def _figures(metrics: dict[str, Any], than: dict[str, Any]) -> str:
    return f"ratio {ratio(metrics['ppl_ratio'])} against {ratio(than['ppl_ratio'])}"
