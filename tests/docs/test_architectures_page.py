"""``docs/architectures.md`` and the measured results that it is made from."""

import json

from architecture_parts.page import PAGE, page
from helpers.markdown import ROOT

RESULTS = json.loads((ROOT / "bench" / "results" / "architectures.json").read_text())


def test_the_page_of_architectures_is_what_was_measured():
    written = (ROOT / PAGE).read_text(encoding="utf-8")
    assert written == page(RESULTS), "python bench/architectures.py --page"


def test_every_cell_that_is_not_right_says_why():
    assert all(cell["reason"] for cell in RESULTS["rows"] if cell["state"] != "right")
