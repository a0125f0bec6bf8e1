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

from qsweep.cells import ratio

Record = dict[str, Any]

# Ratios closer than this are equal, however narrow their intervals.
_EQUAL = 0.001
# What 8 bits may cost: the field's upper bound of expected ratios.
_EIGHT_BIT = 1.06
# Options whose difference makes two trials comparable all the same.
_SIZE_OPTIONS = ("bits", "type")


def check(records: Iterable[Record]) -> list[str]:
    """Sanity checks over a sweep's records, one line per violation; none means that all hold.

    Checked on each corpus and preset: more bits are never worse within one method and otherwise
    equal options; 8 bits are close to the reference; the reference against itself is 0; nothing is
    better than the reference; calibrated methods are not worse than rounding to nearest. And of
    each model: llama.cpp computes its function from the files made of it.
    """
    records = list(records)
    places: dict[tuple[str, ...], list[tuple[Record, dict[str, Any]]]] = defaultdict(list)
    for record in records:
        if record["status"] == "finished":
            for measurement in record["measurements"]:
                place = (record["model"], measurement["corpus"], measurement["preset"])
                places[place].append((record, measurement["metrics"]))
    return [
        f"{', '.join(place)}: {line}"
        for place, found in sorted(places.items())
        for line in (
            *_reference(found),
            *_close_to_reference(found),
            *_more_bits(found),
            *_rounding(found),
        )
    ] + list(_other_functions(records))


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
        yield (
            f"{record['model']}: llama.cpp {what.format(**found)}; the figures are those of the "
            "weights, so serve the files with nothing that builds on llama.cpp"
        )


def _reference(found: Found) -> Iterator[str]:
    for record, metrics in found:
        if record.get("reference") and metrics.get("kld"):
            yield f"the reference differs from itself (KLD {metrics['kld']:.2g} instead of 0)"


def _close_to_reference(found: Found) -> Iterator[str]:
    for record, metrics in _quantized(found):
        value, high, low = metrics["ppl_ratio"], *_interval(metrics)
        if not math.isfinite(value):
            yield f"{record['name']}: its perplexity ratio is {value}"
        elif high < 1 - 0.01:
            yield f"{record['name']} is better than its reference (ratio {ratio(value)})"
        elif _bits(record) == 8 and low > _EIGHT_BIT:
            yield f"{record['name']} is far from its reference for 8 bits (ratio {ratio(value)})"


def _more_bits(found: Found) -> Iterator[str]:
    families: dict[tuple[str, ...], Found] = defaultdict(list)
    for record, metrics in _quantized(found):
        if _bits(record) is not None:
            for family in _families(record):
                families[family, *_other_options(record)].append((record, metrics))
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
    def grid(record: Record) -> tuple[Any, Any]:
        return (_bits(record), record["options"].get("group_size"))

    baselines: dict[tuple[Any, Any], Found] = defaultdict(list)
    for record, metrics in _quantized(found):
        if record["method"] == "rtn":
            baselines[grid(record)].append((record, metrics))
    for record, metrics in _quantized(found):
        if record["method"] not in ("gptq", "awq"):
            continue
        for baseline, base_metrics in baselines.get(grid(record), ()):
            if metrics["ppl_ratio"] > base_metrics["ppl_ratio"] and _worse(metrics, base_metrics):
                yield (
                    f"{record['name']} is worse than {baseline['name']}, the baseline "
                    f"({_figures(metrics, base_metrics)})"
                )
                break


def _quantized(found: Found) -> Found:
    return [
        (record, metrics)
        for record, metrics in found
        if not record.get("reference") and metrics.get("ppl_ratio") is not None
    ]


def _worse(metrics: dict[str, Any], than: dict[str, Any]) -> bool:
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


def _other_options(record: Record) -> tuple[str, ...]:
    others = {k: v for k, v in record["options"].items() if k not in _SIZE_OPTIONS}
    return (
        record["method"],
        str(record.get("backend")),
        str(record.get("calibration")),
        repr(sorted(others.items())),
    )


def _figures(metrics: dict[str, Any], than: dict[str, Any]) -> str:
    return f"ratio {ratio(metrics['ppl_ratio'])} against {ratio(than['ppl_ratio'])}"
