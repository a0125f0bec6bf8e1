"""From records to rows, and from rows to ``results.csv`` and ``results.md``."""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from qsweep.base.contents import is_number
from qsweep.base.numbers import one_line
from qsweep.evaluate.verdicts import expected_range, is_open, judged
from qsweep.results.model_names import models_apart
from qsweep.results.record import Record
from qsweep.tasks.task import CAPABILITIES

Row = dict[str, Any]
Place = tuple[str, str, str]

# The promised columns in their order; what follows them may grow.
# fmt: off
COLUMNS = (
    "status", "model", "method", "backend", "bits", "group_size", "desc_act", "sym", "type",
    "calibration", "corpus", "preset", "bpw", "bpw_total", "size_gb", "ppl", "ppl_stderr",
    "ppl_ratio", "ppl_ratio_low", "ppl_ratio_high", "kld", "kld_stderr", "kld_p99",
    "top1_agreement", "quality", "quality_per_gb", "verdict", "quantize_s", "evaluate_s",
    "peak_memory_gb", "reason", "key", "artifact",
)
MORE_COLUMNS = (
    "name", "reference", "primary", "verdict_open", "expected_low", "expected_high", "kld_median",
    "kld_p90", "kld_p999", "kld_max", "noise_floor", "tokens_scored", "windows", "format",
    "runtimes", "peak_host_memory_gb", "prefill_tps", "decode_tps", "peak_memory_gb_speed",
    "kld_native", "device", "dtype", "sweep", "log", "shared_s", "fidelity",
    "worst_capability", "worst_retention",
    *(f"retention_{capability}" for capability in CAPABILITIES),
    "kept_layers",
    "model_path", "model_hash", "calibration_tokens", "calibration_tokens_distinct", "no_verdict",
    "implied", "label", "top1_agreement_native",
)
# fmt: on
# What serves models to others. A quantizing library's own kernel loads an artifact too, but is not
# what one ships with.
SERVING = ("vllm", "sglang", "transformers", "llama.cpp", "ollama", "tensorrt-llm", "exllama")

# Instead of a verdict, where no dense model can be made of a file.
OWN_RUN = "llama.cpp's own run only"

_OPTIONS = ("bits", "group_size", "desc_act", "sym", "type")
_STATUS_ORDER = {"finished": 0, "failed": 1, "skipped": 2}


def rows(records: Iterable[Record]) -> list[Row]:
    """One row per trial, corpus and preset, best quality per GB first.

    A trial's rows stay together, the primary one first. A failed or skipped trial has one row
    without figures.
    """
    from qsweep.results.labels import named_apart

    records = [judged(record) for record in records]
    named = {r["key"]: r for r in named_apart(records)}
    floors = noise_floors(records)
    return [
        row for record in ranked(records) for row in _rows_of(record, floors, named[record["key"]])
    ]


def ranked(records: Iterable[Record]) -> list[Record]:
    """Finished trials by quality per GB, best first; then the failed ones, then the skipped."""

    def order(record: Record) -> tuple[int, float, str, str]:
        value = primary_metric(record, "quality_per_gb")
        rank = -value if value is not None and math.isfinite(value) else math.inf
        return (_STATUS_ORDER.get(record["status"], 3), rank, record["name"], record["key"])

    return sorted(records, key=order)


def primary(record: Record) -> dict[str, Any] | None:
    """The measurement that verdict and quality rest on; None if nothing was measured."""
    measurements = record.get("measurements") or []
    return next(
        (m for m in measurements if m.get("primary")), measurements[0] if measurements else None
    )


def primary_metric(record: Record, name: str) -> float | None:
    """One figure of the primary measurement, or None."""
    measurement = primary(record)
    return None if measurement is None else measurement["metrics"].get(name)


def windows_cut(measurement: Mapping[str, Any]) -> bool:
    """Whether fewer windows were asked for than the text has: ``eval.max_windows`` is a most."""
    facts = measurement.get("facts") or {}
    overrides = facts.get("overrides")
    most: Any = overrides.get("max_windows") if isinstance(overrides, dict) else None
    if not is_number(most):
        return False
    return bool((facts.get("windows") or most) >= most)


def can_serve(record: Record) -> bool:
    """Whether one of the artifact's runtimes is one that people deploy with."""
    runtimes = (record.get("artifact") or {}).get("runtimes") or ()
    return any(str(runtime).lower().startswith(SERVING) for runtime in runtimes)


def counts(records: Iterable[Record]) -> dict[str, int]:
    """How many trials finished, failed and were skipped."""
    found = Counter(record["status"] for record in records)
    return {status: found[status] for status in _STATUS_ORDER}


def places(records: Iterable[Record]) -> list[tuple[str, str]]:
    """The corpora and presets that were measured, the primary one first, then in their order."""
    found: dict[tuple[str, str], bool] = {}
    for record in records:
        for measurement in record.get("measurements") or []:
            place = (measurement["corpus"], measurement["preset"])
            found[place] = found.get(place, False) or bool(measurement.get("primary"))
    return sorted(found, key=lambda place: not found[place])


def status_word(record: Record, measurement: dict[str, Any] | None = None) -> str:
    """A finished trial's verdict, else its status; ``usually?`` where that verdict is open.

    The primary measurement's verdict unless another measurement is given.
    """
    if record["status"] != "finished":
        return str(record["status"])
    if record.get("reference"):
        return "reference"
    if only_own_run(record):
        return OWN_RUN
    measurement = measurement or primary(record)
    if measurement is not None and measurement.get("no_verdict"):
        return "no verdict"
    if measurement is None or not measurement.get("verdict"):
        return "finished"
    return (
        f"{measurement['verdict']}?" if verdict_open(measurement) else str(measurement["verdict"])
    )


def only_own_run(record: Record) -> str | None:
    """Why a finished trial has figures of llama.cpp's own run only; None if it has the usual ones.

    Such a row takes no part in verdicts and comparisons: it was measured by other means, on a
    sample of windows.
    """
    details = (record.get("artifact") or {}).get("details") or {}
    return details.get("unexplained") if record["status"] == "finished" else None


def total_seconds(record: Record) -> float | None:
    """Seconds of quantizing and measuring together."""
    spent = [record.get("quantize_s"), record.get("evaluate_s")]
    known = [value for value in spent if value is not None]
    return sum(known) if known else None


def to_csv(rows: Iterable[Row]) -> str:
    """Rows as CSV with a header, numbers in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS + MORE_COLUMNS)
    for row in rows:
        writer.writerow([_csv_cell(row.get(name)) for name in COLUMNS + MORE_COLUMNS])
    return out.getvalue()


def _rows_of(record: Record, floors: Mapping[Place, float], named: Record) -> Iterator[Row]:
    common = {**_common(record), "label": named["name"]}
    measurements = record.get("measurements") or []
    if record["status"] != "finished" or not measurements:
        yield common
        return
    for measurement in sorted(measurements, key=lambda m: not m.get("primary")):
        metrics, facts = measurement["metrics"], measurement.get("facts") or {}
        figures = {k: v for k, v in metrics.items() if k in COLUMNS + MORE_COLUMNS}
        yield {
            **common,
            **figures,
            "corpus": measurement["corpus"],
            "preset": measurement["preset"],
            "primary": bool(measurement.get("primary")),
            "verdict": measurement.get("verdict"),
            "verdict_open": verdict_open(measurement),
            "no_verdict": measurement.get("no_verdict"),
            "windows_cut": windows_cut(measurement),
            "noise_floor": floors.get(
                (named["model"], measurement["corpus"], measurement["preset"])
            ),
            "tokens_scored": facts.get("tokens_scored"),
            "windows": facts.get("windows"),
        }


def kept_layers(artifact: Mapping[str, Any]) -> int:
    """How many linear layers stayed in 16 bits, because the format cannot hold their shape."""
    return len((artifact.get("details") or {}).get("kept_layers") or ())


def _common(record: Record) -> Row:
    options: Mapping[str, Any] = record.get("options") or {}
    artifact: Mapping[str, Any] = record.get("artifact") or {}
    seen: Mapping[str, Any] = record.get("calibration_tokens") or {}
    expected = expected_range(record) or (None, None)
    simple = (
        "status model method backend calibration quantize_s evaluate_s peak_memory_gb reason key "
        "name reference peak_host_memory_gb device dtype sweep log shared_s fidelity model_hash implied"
    )
    return {
        **{name: record.get(name) for name in simple.split()},
        **{name: options.get(name) for name in _OPTIONS},
        **{name: artifact.get(name) for name in ("bpw", "bpw_total", "size_gb", "format")},
        **{k: v for k, v in (record.get("speed") or {}).items() if k in MORE_COLUMNS},
        **_kept(record),
        "model_path": _model_path(record),
        "calibration_tokens": seen.get("asked"),
        "calibration_tokens_distinct": seen.get("distinct"),
        "runtimes": " ".join(artifact.get("runtimes") or ()),
        "artifact": artifact.get("path"),
        "kept_layers": kept_layers(artifact) or None,
        "no_verdict": f"{OWN_RUN}: {reason}" if (reason := only_own_run(record)) else None,
        "expected_low": expected[0],
        "expected_high": expected[1],
    }


def _model_path(record: Record) -> str | None:
    model = (record.get("config") or {}).get("model")
    return (model.get("path") or model.get("repo")) if isinstance(model, Mapping) else None


def _kept(record: Record) -> Row:
    worst = record.get("suffers_most") or {}
    return {
        "worst_capability": worst.get("capability"),
        "worst_retention": worst.get("retention"),
        **{
            f"retention_{name}": found.get("retention")
            for name, found in (record.get("capabilities") or {}).items()
        },
    }


def verdict_open(measurement: Mapping[str, Any]) -> bool | None:
    """Whether the ratio's interval straddles a verdict's bound; None where there is no ratio."""
    metrics = measurement["metrics"]
    if metrics.get("ppl_ratio") is None:
        return None
    return is_open(metrics.get("ppl_ratio_low"), metrics.get("ppl_ratio_high"))


def noise_floors(records: Iterable[Record]) -> dict[Place, float]:
    """By model, corpus and preset: the KLD that dtype or batch size alone cause.

    Below it a divergence says nothing. Measured on the reference, the larger of the two counts.
    """
    floors: dict[Place, float] = {}
    for record in models_apart(list(records)):
        for measurement in record.get("measurements") or []:
            metrics = measurement["metrics"]
            found = [metrics.get(f"kld_floor_{cause}") for cause in ("dtype", "batch")]
            if known := [value for value in found if value is not None]:
                place = (record["model"], measurement["corpus"], measurement["preset"])
                floors[place] = max(known)
    return floors


def _csv_cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    text = one_line(value)
    # A spreadsheet would run what begins like a formula.
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
