"""A map of bits as text: layers that are alike in one line, a column for each kind. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from qsweep.base import numbers
from qsweep.formats.tensor_table import TensorRow
from qsweep.results.assignment import Assignment, assignment_of, bits_text
from qsweep.results.markdown_table import table

_NONE = "–"


def text_map(assigned: Assignment | Iterable[TensorRow]) -> str:
    """Bits per weight by layers and kinds as a Markdown table, with what types they are below it.

    Layers whose kinds are all stored alike share a line, wherever they are (``0-3, 6, 9``), so that
    a model of many layers fits a page.
    """
    found = assigned if isinstance(assigned, Assignment) else assignment_of(assigned)
    alike: dict[tuple[str, ...], list[int]] = {}
    for layer in found.layers:
        stored = [found.places.get((kind, layer)) for kind in found.kinds]
        cells = tuple(_NONE if one is None else bits_text(one.bpw) for one in stored)
        alike.setdefault(cells, []).append(layer)
    lines = [(spans(layers), *cells) for cells, layers in alike.items()]
    names = [found.short_kinds[kind] for kind in found.kinds]
    parts = [table(("layers", *names), lines)] if lines else []
    return "\n\n".join([*parts, *_types(found)])


def _types(found: Assignment) -> list[str]:
    by_type: dict[str, list[float]] = defaultdict(list)
    for one in (*found.places.values(), *found.beside.values()):
        by_type[one.type].append(one.bpw)
    ranked = sorted(by_type.items(), key=lambda item: (min(item[1]), item[0]))
    said = [f"{type_} {_span(bits)}" for type_, bits in ranked]
    beside = [
        f"{name.rpartition('.')[2]} {bits_text(one.bpw)}" for name, one in found.beside.items()
    ]
    more = f"; in no layer: {', '.join(beside)}" if beside else ""
    return [numbers.markdown(f"Bits per weight: {', '.join(said)}{more}.")] if said else []


def _span(bits: Sequence[float]) -> str:
    ends = dict.fromkeys(map(bits_text, (min(bits), max(bits))))
    return "-".join(ends)


def spans(ascending: Sequence[int]) -> str:
    """Ascending numbers with runs in short: ``0-3, 6, 9-10``."""
    runs: list[list[int]] = []
    for number in ascending:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
