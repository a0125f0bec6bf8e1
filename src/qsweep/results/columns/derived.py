"""What columns derive from a row. Pure."""

from collections.abc import Callable, Mapping
from typing import Any

from qsweep.base import numbers
from qsweep.base.contents import is_number
from qsweep.evaluate.intervals import half_width, is_sequential, student_t
from qsweep.evaluate.verdicts import is_open, verdict_by_kld
from qsweep.formats import hardware
from qsweep.formats.kv_cache.types import NONE
from qsweep.results.columns.column import figures
from qsweep.results.expert_coverage import expert_coverage
from qsweep.results.flips import all_flips, share
from qsweep.results.record import Measurement, Record, Row

# Instead of a verdict, where no dense model can be made of a file.
OWN_RUN = "llama.cpp's own run only"
# Containers of weights that are unpacked where they are multiplied, whoever made them.
_WEIGHTS_ALONE = ("gptq", "awq", "gguf", "bitsandbytes", "hqq", "exl3")


def fixed(digits: int) -> Any:
    """Prints so many decimals."""
    return lambda value: numbers.fixed(value, digits)


def significant(digits: int) -> Any:
    """Prints so many significant digits."""
    return lambda value: numbers.significant(value, digits)


def measured(name: str) -> Any:
    """A field of the row's measurement."""
    return lambda row: getattr(row.measurement, name, None)


def fact(name: str) -> Any:
    """One of the facts of the row's measurement."""
    return lambda row: None if row.measurement is None else row.measurement.facts.get(name)


def field_of(part: str, name: str) -> Any:
    """A field of a part of the record, such as its artifact, that may be absent."""
    return lambda row: getattr(getattr(row.record, part), name, None)


def kv_cache(row: Row) -> str | None:
    """What the trial's keys and values were stored as; None where they stayed as they were."""
    found = row.record.config.get("kv_cache")
    return None if found in (None, NONE) else str(found)


def expected(end: int) -> Any:
    """An end of the range of ratios that the field expects."""
    return lambda row: None if row.record.expected is None else row.record.expected[end]


def verdict_open(row: Row) -> bool | None:
    """Whether the ratio's interval straddles a verdict's bound; None where there is no ratio."""
    found = figures(row, "measurement")
    if found.get("ppl_ratio") is None:
        return None
    return is_open(found.get("ppl_ratio_low"), found.get("ppl_ratio_high"))


def status_word(record: Record, measurement: Measurement | None = None) -> str:
    """A finished trial's verdict, else its status; ``usually?`` where that verdict is open.

    The primary measurement's verdict unless another measurement is given.
    """
    if not record.finished:
        return record.status
    if record.reference:
        return "reference"
    if record.only_own_run:
        return OWN_RUN
    measurement = measurement or record.primary
    if measurement is not None and measurement.no_verdict:
        return "no verdict"
    if measurement is None or not measurement.verdict:
        return "finished"
    return measurement.verdict + "?" * bool(verdict_open(Row(record, measurement)))


def kld_verdict(row: Row) -> str | None:
    """The verdict by the divergence; None where there is none, or no verdict at all."""
    found = figures(row, "measurement")
    judged = row.measurement is not None and row.measurement.verdict and not row.record.reference
    return verdict_by_kld(found["kld"]) if judged and is_number(found.get("kld")) else None


def flipped(name: str) -> Callable[[Row], Any]:
    """A figure of the answers that went from right to wrong or back, over all tasks of a trial."""
    return lambda row: getattr(all_flips(row.record), name, None)


def flips(row: Row) -> str:
    """The share of answers that flipped, with its interval."""
    found = all_flips(row.record)
    return "" if found is None else share(found.flips, *found.ends)


def both_verdicts(row: Row) -> str:
    """The verdict by the divergence, ``?`` where it is open, and the ratio's if that is another."""
    word = kld_verdict(row)
    if word is None or row.measurement is None:
        return ""
    other = row.measurement.verdict
    return word + "?" * _open_by_kld(row.measurement) + (f" ≠ {other}" if other != word else "")


def _open_by_kld(measurement: Measurement) -> bool:
    """Whether the divergence's 95 % interval straddles a bound, or is not known."""
    known = kld_ends(measurement)
    return known is None or verdict_by_kld(known[0]) != verdict_by_kld(known[1])


def kld_ends(measurement: Measurement) -> tuple[float, float] | None:
    """The ends of the divergence's 95 % interval: those it was read for, else kld ± t·se over windows.

    None where its error is not known.
    """
    if (known := stopped_ends(measurement)) is not None:
        return known
    kld, error = (measurement.metrics.get(name) for name in ("kld", "kld_stderr"))
    windows: Any = measurement.facts.get("windows")
    if kld is None or error is None or not is_number(windows) or windows < 2:
        return None
    half = student_t(int(windows) - 1) * error
    return kld - half, kld + half


def stopped_ends(measurement: Measurement, run: str = "") -> tuple[float, float] | None:
    """The ends of a divergence whose windows were read until an interval was narrow enough.

    None where their number was settled before: then it is Student's t.

    Args:
        measurement: Whose.
        run: ``_activations`` or ``_kv`` of one with more as it is served.
    """
    parts = ("_low", "_high", "", "_stderr")
    found: list[Any] = [measurement.metrics.get(f"kld{run}{part}") for part in parts]
    low, high, kld, error = found
    if is_number(low) and is_number(high):
        return low, high
    windows: Any = measurement.facts.get("windows")
    if not is_sequential(measurement.facts) or not all(map(is_number, (kld, error, windows))):
        return None
    half = half_width(error, windows, sequential=True)
    return kld - half, kld + half


def no_verdict(row: Row) -> str | None:
    """Why a row has no verdict; None where it has one, or no figures."""
    if row.measurement is not None:
        return row.measurement.no_verdict
    reason = row.record.only_own_run
    return f"{OWN_RUN}: {reason}" if reason else None


def tokens_seen(row: Row) -> str:
    """Different tokens of the calibration text, of those asked for."""
    seen = row.record.calibration_tokens
    known = seen is not None and seen.asked and seen.distinct is not None
    return f"{seen.distinct} of {seen.asked}" if seen is not None and known else ""


def of_experts(name: str) -> Callable[[Row], Any]:
    """A figure of the tokens that experts were sent; None where there are no experts."""
    return lambda row: getattr(expert_coverage(row.record.details), name, None)


def served_by(row: Row) -> str:
    """The runtimes that load the artifact, and whether none of them is one that people deploy with."""
    words = ", ".join(row.record.runtimes)
    return words if row.record.can_serve or not words else f"{words} (no server)"


def native_on(row: Row) -> str:
    """The generations of GPUs that run the artifact as it is meant; nothing where that is not known."""
    made, record = row.record.artifact, row.record
    if made is None or record.reference:
        return ""
    if made.format in _WEIGHTS_ALONE:
        return hardware.ANY
    number = record.number_format
    return "" if number is None else hardware.native_on(number)


def needs_generation(row: Row) -> str:
    """The same; nothing where any will do."""
    return native_on(row).replace(hardware.ANY, "")


def interval(row: Row) -> str:
    """The ratio's interval; nothing for the reference."""
    found = figures(row, "measurement")
    span = numbers.interval(found.get("ppl_ratio_low"), found.get("ppl_ratio_high"))
    return "" if row.record.reference else span


def difference(name: str) -> Callable[[Row], str]:
    """Prints a figure of the measurement that may be negative, with its interval if it has one."""

    def write(row: Row) -> str:
        found = figures(row, "measurement")
        low, high = found.get(f"{name}_low"), found.get(f"{name}_high")
        text = numbers.divergence(found.get(name))
        span = f" ({numbers.divergence(low)} to {numbers.divergence(high)})"
        return text if low is None or high is None else text + span

    return write


def kld(row: Row) -> str:
    """The divergence with its error, or with the ends of the interval that it was read for."""
    found = figures(row, "measurement")
    value, low, high = (found.get(f"kld{end}") for end in ("", "_low", "_high"))
    if low is None or high is None:
        return numbers.with_error(value, found.get("kld_stderr"))
    return f"{numbers.divergence(value)} ({numbers.divergence(low)}-{numbers.divergence(high)})"


def windows_of(row: Row) -> int | None:
    """How many windows the text has, where not all of them had to be read."""
    whole = row.measurement.facts.get("whole") if row.measurement else None
    return whole["windows"] if isinstance(whole, Mapping) else None


def windows_read(row: Row) -> str:
    """How many of these were."""
    whole = windows_of(row)
    if whole is None or row.measurement is None:
        return ""
    return f"{row.measurement.facts['windows']} of {whole}"


def size(row: Row) -> str:
    """Size, bits per weight, and how many layers stayed in 16 bits."""
    made = row.record.artifact
    if made is None:
        return ""
    why = f" ({made.kept_by})" if made.kept_by else ""
    more = f", {made.kept_layers} layers in 16 bits{why}" if made.kept_layers else ""
    return f"{numbers.gigabytes(made.size_gb)} GB, {numbers.fixed(made.bpw, 2)} bpw{more}"


def setting(row: Row) -> str:
    """Calibration and backend; of an artifact that existed, what it says of its maker."""
    made = row.record.details.get("provenance")
    if isinstance(made, Mapping):
        by = made.get("quantized_by")
        told = (made.get("producer"), f"quantized by {by}" if by else "")
        return ", ".join(str(part) for part in told if part) or "somebody else"
    text = row.record.calibration
    parts = (f"calibrated on {text}" if text else "", row.record.backend)
    return ", ".join(part for part in parts if part)


def model_path(row: Row) -> str | None:
    """Where the model came from."""
    return row.record.model_config.get("path") or row.record.model_config.get("repo")


def flags(row: Row) -> str:
    """What is not as it should be in its tensors, in one text; nothing if all is."""
    return "; ".join(row.record.tensors.flags) if row.record.tensors else ""


def flag_count(row: Row) -> str:
    """How many such lines there are."""
    found = row.record.tensors.flags if row.record.tensors else ()
    return str(len(found)) if found else ""


def peer(name: str) -> Callable[[Row], Any]:
    """What is known of the one that is nearest in size."""
    return lambda row: None if row.peer is None else getattr(row.peer, name)


def standing(name: str) -> Callable[[Row], Any]:
    """A fact of where a row may stand; None where that was not looked for."""
    return lambda row: None if row.standing is None else getattr(row.standing, name)


def peer_ratio(row: Row) -> str:
    """The ratio to it with its interval, or that neither is better."""
    found = row.peer
    if found is None:
        return ""
    span = numbers.interval(found.ppl_ratio_low, found.ppl_ratio_high)
    tie = ", tie" if found.tie else ""
    return numbers.ratio(found.ppl_ratio) + (f" ({span}{tie})" if span else " (no interval)")
