"""Names by which the rows of a table can be told apart where their own are alike."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qsweep.base import numbers
from qsweep.results.columns.table import SYM
from qsweep.results.model_names import distinct_ends, with_distinct_models
from qsweep.results.record import Record, Row
from qsweep.results.traits import OF_ARTIFACTS, implied_by, traits

# A label's part, such as a list of tasks, is cut where it is longer.
_LONGEST = 48


def with_distinct_names(records: Sequence[Record]) -> list[Record]:
    """Records whose names differ, ready to be shown.

    A trial's name tells model, method, bits and group size. Models of one name are called by their
    paths; trials of one name get whatever else of their configuration they differ in.
    """
    records = with_distinct_models(records)
    labels = numbered(labelled({r.key: r.name for r in records}, {r.key: r for r in records}))
    return [replace(record, name=labels[record.key]) for record in records]


def labelled(labels: Mapping[str, str], records: Mapping[str, Record]) -> dict[str, str]:
    """Labels by key, with all that rows of one table differ in and that their names do not tell.

    What quantizers differ in, their names tell; only trials of one name get more of it. What else
    differs (a calibration, how a trial was measured) is told of every row, for rows of several
    methods are compared, too.
    """
    labels = noted(labels, records)
    found = {key: traits(record) for key, record in records.items()}
    alike: dict[str, dict[str, dict[str, Any]]] = {}
    for key, own in found.items():
        # What ran for another purpose was measured otherwise, and says so in a word.
        kept = _of_quantizer(own, wanted=False)
        alike.setdefault(_purpose(records[key]), {})[key] = kept
    more = {key: text for own in alike.values() for key, text in _differences(own).items()}
    labels = {key: label + more[key] for key, label in labels.items()}
    return distinguish(labels, found, lambda own: _of_quantizer(own, wanted=True))


def _of_quantizer(own: Mapping[str, Any], *, wanted: bool) -> dict[str, Any]:
    return {k: v for k, v in own.items() if k.startswith("quant.") is wanted}


def noted(labels: Mapping[str, str], records: Mapping[str, Record]) -> dict[str, str]:
    """Labels that say of each grid whether it is ``sym`` or ``asym``, if there are both.

    Rows of several methods are compared at equal bits and group size, where each method has a
    default of its own for this. What ran for a comparison, or in place of a whole trial, says so.
    """
    # What somebody else made is called by its file, which says more than its grid.
    own = {key: record for key, record in records.items() if not record.existed}
    # A number format by name has but one.
    open_ = {key for key, record in own.items() if "format" not in record.options}
    grids = {key: SYM.get(Row(own[key])) if key in open_ else None for key in records}
    both = {True, False} <= {value for value in grids.values() if isinstance(value, bool)}
    words = {True: " sym", False: " asym"} if both else {}
    found = {}
    for key, label in labels.items():
        grid = grids[key]
        word = words.get(grid, "") if isinstance(grid, bool) else ""
        found[key] = f"{label}{word}{_purpose(records[key])}{_origin(records[key])}"
    return found


def _purpose(record: Record) -> str:
    """What a trial ran for, unless that is its own figures."""
    if record.implied and not record.reference and record.fidelity == "full":
        return " (check)"
    return {"few": " (first windows)", "proxy": " (proxy)"}.get(record.fidelity, "")


def _origin(record: Record) -> str:
    """What a reference was before it was one."""
    found = record.dequantized_from if record.reference else None
    return f" (dequantized from {found})" if found else ""


def distinguish(
    labels: Mapping[str, str],
    records: Mapping[str, Any],
    traits_of: Callable[[Any], dict[str, Any]],
) -> dict[str, str]:
    """Labels by key, those of several trials with all traits in which these differ.

    Args:
        labels: by key.
        records: by key.
        traits_of: what a record may differ in, by dotted name.
    """
    alike: dict[str, list[str]] = {}
    for key, label in labels.items():
        alike.setdefault(label, []).append(key)
    found = dict(labels)
    for keys in alike.values():
        if len(keys) > 1:
            for key, more in _differences({key: traits_of(records[key]) for key in keys}).items():
                found[key] += more
    return found


def numbered(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels by key, with the key's first digits where nothing else tells trials apart."""
    counts: dict[str, int] = {}
    for label in labels.values():
        counts[label] = counts.get(label, 0) + 1
    return {k: f"{label} #{k[:6]}" if counts[label] > 1 else label for k, label in labels.items()}


def _differences(own: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """By key, what to add to some labels: the traits that differ, where they are traits at all."""
    differing = []
    for name in dict.fromkeys(name for values in own.values() for name in values):
        if name == "model":
            continue  # a name begins with it
        values = {key: found.get(name) for key, found in own.items() if _concerns(name, found)}
        if len({repr(v) for v in values.values()}) > 1 and not _is_implied(name, own):
            differing.append((name, values))
    if any(name == "quant.sym" for name, _ in differing):
        # Where both occur, all labels say it already.
        differing = [(name, values) for name, values in differing if name != "quant.sym"]
    ends = [name.rpartition(".")[2] for name, _ in differing]
    added = dict.fromkeys(own, "")
    for name, values in differing:
        end = name.rpartition(".")[2]
        short = "" if name == "calibration" else end if ends.count(end) == 1 else name
        texts = _texts(values)
        for key, value in values.items():
            if value is not None and value != []:
                added[key] += f" {short}={texts[key]}" if short else f" {texts[key]}"
    return added


def _concerns(name: str, values: Mapping[str, Any]) -> bool:
    if name == OF_ARTIFACTS:
        return name in values
    # A quantizer that sees no text has no calibration: that is no difference in it.
    return not name.startswith("calibration") or values.get("calibration") is not None


def _is_implied(name: str, own: Mapping[str, dict[str, Any]]) -> bool:
    # The text's source and path are told by its name, unless texts of one name differ in them.
    by = implied_by(name)
    if by is None:
        return False
    concerned = [values for values in own.values() if _concerns(name, values)]
    pairs = {(repr(values.get(by)), repr(values.get(name))) for values in concerned}
    return len(pairs) == len({first for first, _ in pairs})


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    texts = {key: _text(value) for key, value in values.items()}
    if any("/" in text for text in texts.values()):
        ends = distinct_ends(sorted(set(texts.values())))
        texts = {key: ends[text] for key, text in texts.items()}
    return {
        key: text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
        for key, text in texts.items()
    }


def _text(value: Any) -> str:
    if isinstance(value, str) and "://" in value:
        # An address may hold a password, a token or a signature: its path is what it names.
        value = value.partition("://")[2].partition("?")[0].rpartition("@")[2]
    if isinstance(value, (list, tuple)):
        return ",".join(_text(item) for item in value)
    if value is None or isinstance(value, (bool, dict)):
        return json.dumps(value, default=str)
    return numbers.one_line(value)
