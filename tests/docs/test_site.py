"""The site of `make docs`: what can be known of it without building it."""

import re

import yaml

import docs_pages
from helpers.markdown import ROOT

GENERATED = {*docs_pages.PAGES.values(), "LICENSE.txt"}


def test_links_of_the_pages_from_outside_docs_lead_to_pages_of_the_site():
    found = 0
    for name in docs_pages.PAGES:
        text = docs_pages.links_on_site((ROOT / name).read_text(encoding="utf-8"))
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
            assert target in GENERATED or (ROOT / "docs" / target).is_file(), f"{name}: {target}"
            found += 1
    assert found >= 15


def test_a_role_of_a_docstring_is_shown_by_its_name():
    html = "<p>see :class:<code>~qsweep.base.errors.ConfigError</code> and <code>x</code></p>"
    shown = "<p>see <code>ConfigError</code> and <code>x</code></p>"
    assert docs_pages.on_page_content(html) == shown


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]

    def pages(part):
        if isinstance(part, str):
            yield part
        else:
            for one in part.values() if isinstance(part, dict) else part:
                yield from pages(one)

    there = {page.name for page in (ROOT / "docs").glob("*.md")} | set(docs_pages.PAGES.values())
    assert set(pages(nav)) == there
