"""Which measurements may be compared: those of the same tokens, scored in the same way."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from qsweep.results.record import Measurement, Row

# The fingerprint is that of the token ids, so it tells tokenizers and texts apart.
IDENTITY = (
    "protocol", "preset", "fingerprint", "windows", "context", "stride", "bos", "dtype",
    "device_type",
)  # fmt: skip
# What says best how two measurements differ, in this order.
_LAST = ("fingerprint", "protocol")
_TELLING = ("corpus", *(name for name in IDENTITY if name not in _LAST))


def measured_by(measurement: Measurement) -> tuple[Any, ...]:
    """Equal for measurements whose figures may stand on one axis: values of :data:`IDENTITY`."""
    facts = facts_of(measurement)
    return tuple(_plain(facts.get(name)) for name in IDENTITY)


def families(rows: Iterable[Row]) -> Collection[list[Row]]:
    """Rows of one model, corpus and preset that were measured alike; those without a measurement are none's."""
    found: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row.measurement is not None:
            record = row.record
            place = (record.model, record.model_hash, *row.measurement.place)
            found[*place, measured_by(row.measurement)].append(row)
    return found.values()


def differences(measurements: Iterable[Measurement]) -> list[str]:
    """For each of several measurements, in a few words, what sets it apart from the others."""
    found = [facts_of(measurement) for measurement in measurements]
    names = [n for n in (*_TELLING, *_LAST) if len({repr(facts.get(n)) for facts in found}) > 1]
    words = [_words(facts, [n for n in names if n not in _LAST]) for facts in found]
    return words if len(set(words)) == len(words) else [_words(facts, names) for facts in found]


def facts_of(measurement: Measurement) -> dict[str, Any]:
    """Its facts, those of windows being of the whole text: it may have read some of them alone."""
    facts = measurement.facts
    whole = facts.get("whole")
    of_text = whole if isinstance(whole, Mapping) else {}
    return {"corpus": measurement.corpus, "preset": measurement.preset, **facts, **of_text}


def _words(facts: Mapping[str, Any], names: Iterable[str]) -> str:
    known = [name for name in names if facts.get(name) is not None]
    return ", ".join(f"{name.replace('_', ' ')} {str(facts[name])[:24]}" for name in known)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool)) or value is None else repr(value)
