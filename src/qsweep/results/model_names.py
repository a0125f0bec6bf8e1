"""Which records are of one model, and what models of one name are called so that each is its own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from qsweep.results.record import Record


def model_place(record: Record) -> str:
    """Where a record's model came from: its directory, else repository and revision, else its name."""
    model = record.model_config
    if model.get("path"):
        return str(model["path"])
    repo = model.get("repo")
    return f"{repo}@{model.get('revision') or 'main'}" if repo else record.model


def dequantized_references(records: Sequence[Record]) -> list[str]:
    """A line for each model that was given quantized alone: what its reference was made from."""
    found = {r.model: r.dequantized_from for r in records if r.dequantized_from}
    several = len({record.model for record in records}) > 1
    return [
        f"reference{f' of {model}' if several else ''}: dequantized from {what}"
        for model, what in sorted(found.items())
    ]


def with_distinct_models(records: Sequence[Record]) -> list[Record]:
    """Records in whose ``model``, and ``name``, no two models are called alike.

    A model is its content (``model_hash``); records of before there was one are told by the place
    that the model came from. Models of one name get the shortest end of their paths that tells them
    apart: ``a/final`` and ``b/final``.
    """
    models = _identities(records)
    places: dict[str, dict[str, str]] = {}
    for record, model in zip(records, models, strict=True):
        places.setdefault(record.model, {}).setdefault(model, model_place(record))
    labels = {name: _labels(found) for name, found in places.items() if len(found) > 1}
    if not labels:
        return list(records)
    return [
        _renamed(record, labels[record.model][model]) if record.model in labels else record
        for record, model in zip(records, models, strict=True)
    ]


def _identities(records: Sequence[Record]) -> list[str]:
    known: dict[str, set[str]] = {}
    for record in records:
        if record.model_hash:
            known.setdefault(model_place(record), set()).add(record.model_hash)
    found = []
    for record in records:
        place = model_place(record)
        hashes = known.get(place, set())
        own = record.model_hash or (next(iter(hashes)) if len(hashes) == 1 else place)
        found.append(str(own))
    return found


def distinct_ends(paths: Sequence[str]) -> dict[str, str]:
    """The shortest end of each path that no other one has; all of it where there is none.

    >>> distinct_ends(["/runs/a/final", "/runs/b/final"])
    {'/runs/a/final': 'a/final', '/runs/b/final': 'b/final'}
    """
    parts = {path: path.rstrip("/").split("/") for path in paths}
    found = {}
    for path, own in parts.items():
        others = [other for key, other in parts.items() if key != path]
        lengths = range(1, len(own) + 1)
        distinct_lengths = (n for n in lengths if all(own[-n:] != other[-n:] for other in others))
        found[path] = "/".join(own[-next(distinct_lengths, len(own)) :])
    return found


def _labels(places: Mapping[str, str]) -> dict[str, str]:
    # By identity. A directory whose content changed is two models of one path.
    ends = distinct_ends(sorted(set(places.values())))
    several = {place for place in places.values() if list(places.values()).count(place) > 1}
    return {
        model: f"{ends[place]} ({model[:6]})" if place in several else ends[place]
        for model, place in places.items()
    }


def _renamed(record: Record, model: str) -> Record:
    return replace(record, model=model, name=f"{model}{record.name.removeprefix(record.model)}")
