"""Write the tables of ``docs/formats.md`` from the classes: python tools/formats_page.py."""

from pathlib import Path

from qsweep.results.formats_page import with_tables

PAGE = Path(__file__).resolve().parents[1] / "docs" / "formats.md"

if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
