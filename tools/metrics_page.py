"""Write ``docs/metrics.md`` from the table of columns: python tools/metrics_page.py."""

from pathlib import Path

import qsweep.results.columns.table  # noqa: F401 - fills the table
from qsweep.results.columns.page import metrics_markdown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"

if __name__ == "__main__":
    PAGE.write_text(metrics_markdown(), encoding="utf-8")
