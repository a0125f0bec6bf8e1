"""Records as a pandas table: the rows and columns of ``results.csv``, numbers as numbers."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from qsweep.results.beside import beside_others
from qsweep.results.columns.views import csv_columns
from qsweep.results.draws import pooled
from qsweep.results.record import Record
from qsweep.results.rows import rows

if TYPE_CHECKING:
    import pandas


def frame(records: Iterable[Record]) -> "pandas.DataFrame":
    """One row per trial, or setting that has several draws, corpus and preset, best quality per GB first.

    Whole numbers and truth values that are missing in some rows are ``<NA>`` there, figures ``nan``.
    """
    import pandas

    found = beside_others(rows(pooled(records)))
    return pandas.DataFrame({c.name: _column([c.get(row) for row in found]) for c in csv_columns()})


def _column(values: list[Any]) -> Any:
    import pandas

    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pandas.array(values, dtype="boolean")
    if kinds == {int}:
        return pandas.array(values, dtype="Int64")
    if kinds and kinds <= {int, float}:
        return pandas.array(values, dtype="float64")
    return pandas.Series(values, dtype="object")
