"""Names by which trials can be told apart where their own are alike."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qsweep.results import Record


def named_apart(records: Sequence[Record]) -> list[Record]:
    """Records whose names differ.

    A trial's name tells method, bits and group size. Trials of one name get what else they differ
    in: the calibration text, or options such as ``sym=False``.
    """
    labels = told_apart({r["key"]: r["name"] for r in records}, {r["key"]: r for r in records})
    return [{**record, "name": labels[record["key"]]} for record in records]


def told_apart(
    labels: Mapping[str, str],
    records: Mapping[str, Record],
    traits: Callable[[Record], dict[str, Any]] | None = None,
) -> dict[str, str]:
    """Labels by key, those of several trials with the traits in which these differ.

    Args:
        labels: by key.
        records: by key.
        traits: what a record may differ in, by name; by default its calibration, backend and
            options.
    """
    traits = traits or _traits
    alike: dict[str, list[str]] = {}
    for key, label in labels.items():
        alike.setdefault(label, []).append(key)
    found = dict(labels)
    for keys in alike.values():
        own = {key: traits(records[key]) for key in keys} if len(keys) > 1 else {}
        for name in dict.fromkeys(name for values in own.values() for name in values):
            if len({repr(values.get(name)) for values in own.values()}) > 1:
                for key, values in own.items():
                    if (value := values.get(name)) is not None:
                        found[key] += f" {name}={value}" if name else f" {value}"
    return found


def _traits(record: Record) -> dict[str, Any]:
    return {
        "": record.get("calibration"),
        "backend": record.get("backend"),
        **(record.get("options") or {}),
    }
