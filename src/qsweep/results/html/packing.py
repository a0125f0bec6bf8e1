"""Charts as the page carries them: many points share their hover, so each row is there once.

A list of points becomes columns, one list per field. What all charts say alike of a trial (its
setting and figures) stands in one common table, and points refer to it by number.
"""

from collections.abc import Sequence
from typing import Any

from qsweep.results.html.panel import Spec, shared_fields, tidy

# Shorter lists are left as they are: nothing would be gained.
_FEW = 50


def packed(specs: Sequence[Spec]) -> dict[str, Any]:
    """``rows``: the common table; ``specs``: the charts, their long lists of points in columns."""
    numbers: dict[str, int] = {}
    common: list[dict[str, Any]] = []
    made = []
    shared = shared_fields()
    for spec in specs:
        values = spec.get("data", {}).get("values", [])
        if len(values) > _FEW and all("id" in value for value in values):
            points = []
            for value in values:
                if value["id"] not in numbers:
                    numbers[value["id"]] = len(common)
                    common.append({name: value[name] for name in shared})
                own = {k: v for k, v in value.items() if k not in shared and k != "id"}
                points.append({"row": numbers[value["id"]], **own})
            spec = {**spec, "data": {"columns": columns(points)}}
        elif len(values) > _FEW and not any("id" in value for value in values):
            spec = {**spec, "data": {"columns": columns(values)}}
        made.append(tidy(spec))
    return {"rows": columns(tidy(common)), "specs": made}


def columns(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A list per field; a field of few different texts as ``words`` and numbers of them."""
    names = dict.fromkeys(name for point in points for name in point)
    return {name: _column([point.get(name) for point in points]) for name in names}


def _column(values: list[Any]) -> Any:
    if all(isinstance(value, str) for value in values):
        words = list(dict.fromkeys(values))
        if len(words) * 4 < len(values):
            numbers = {word: number for number, word in enumerate(words)}
            return {"words": words, "of": [numbers[value] for value in values]}
    if all(isinstance(value, bool) for value in values):
        return [int(value) for value in values]
    return values
