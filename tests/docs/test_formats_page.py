"""``docs/formats.md`` and the classes that its tables are made from."""

from helpers.markdown import ROOT
from qsweep.formats.hardware import CARDS
from qsweep.formats.numbers import FORMATS
from qsweep.results.formats_page import with_tables

PAGE = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")


def test_the_page_of_formats_is_what_the_classes_say():
    assert with_tables(PAGE) == PAGE, "python tools/formats_page.py"


def test_every_format_and_card_has_a_place_in_it():
    for name in FORMATS:
        assert f"\n| {name} " in PAGE
    for card in CARDS.values():
        assert card.name == "cpu" or f"{card.name} ({card.memory_gb} GB)" in PAGE
