"""``docs/metrics.md`` from the table of columns; ``tools/metrics_page.py`` writes it."""

from qsweep.results.columns.column import TABLE, Column
from qsweep.results.markdown_table import table

_TITLES = {
    "trial": "Of a trial",
    "artifact": "Of its artifact",
    "measurement": "Of each corpus and preset",
    "speed": "Of the serving kernels",
    "task": "Of each task",
    "capability": "Of each capability",
    "row": "Of a row of a table",
}
_PREFIX = {"task": "task/NAME/", "capability": "capability/NAME/"}
_TABLES = {
    "terminal": "terminal",
    "markdown": "results.md",
    "html": "report",
    "card": "card",
    "search": "answer.md",
    "own_run": "llama.cpp's own run",
}
_HEAD = """# Figures and facts

All that results tell, from the one table in `src/qsweep/results/columns/table.py`, which this page
is made from (`python tools/metrics_page.py`). A name is that of a column in
`results.csv` (where the last column says so), of a metric in MLflow, and of what `search.objective` and
`search.constraints` aim at; for those, *better* says which way, and any other figure takes a direction
in words: `load_s down`. In MLflow, figures of a corpus are also called `CORPUS/ppl` (or
`CORPUS/PRESET/ppl` for all but the default preset), those of a task `task/NAME/score`, those of a
capability `capability/NAME/retention`, and a sweep's own run has the best trial's as `best_ppl`.

To add a metric, write the function that measures it, put its result among a measurement's `metrics`
(`qsweep.evaluate`) or a timing's figures, and give it a row in that table: everything else follows.
A figure without a row fails the trial that measured it, and the line names it."""


def metrics_markdown() -> str:
    """The page."""
    parts = [_HEAD]
    for of, title in _TITLES.items():
        columns = [column for column in TABLE if column.of == of]
        headings = ("name", "what it is", "unit", "better", "measured", "shown in")
        parts.append(f"## {title}\n\n{table(headings, map(_line, columns), figures=False)}")
    return "\n\n".join(parts) + "\n"


def _line(column: Column) -> list[str]:
    places = ["results.csv"] if column.csv else []
    places += [
        f"{place} ({shown.heading})"
        for name, place in _TABLES.items()
        if (shown := column.shown(name)) is not None  # type: ignore[arg-type]
    ]
    places += ["report's hover"] if column.hover else []
    places += ["MLflow"] if column.figure else []
    meaning = f"{column.meaning}; {column.needs}" if column.needs else column.meaning
    return [
        _PREFIX.get(column.of, "") + column.name,
        meaning,
        column.unit,
        {"up": "more", "down": "less"}.get(column.better or "", ""),
        "yes" if column.figure else "",
        ", ".join(places),
    ]
