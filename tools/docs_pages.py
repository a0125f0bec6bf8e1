"""What mkdocs is given beside docs/: README, CONTRIBUTING and CHANGELOG are pages of the site, too.

A hook of mkdocs (``hooks`` in mkdocs.yml). Links between these files and docs/ are written for a
reader of the repository; here they are turned to where the pages lie on the site.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Files at the top of the repository, and the pages that they become.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
# A cross-reference of a docstring, as it comes out of Markdown.
_ROLE = re.compile(r":(?:class|meth|func|mod|attr|data):<code>~?([\w.]+)</code>")
_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages, and the licence that they link to."""
    from mkdocs.structure.files import File

    for name, page in PAGES.items():
        text = links_on_site((ROOT / name).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    files.append(File.generated(config, "LICENSE.txt", content=licence))
    return files


def links_on_site(text: str) -> str:
    """The text of a file at the top of the repository with its links as the site has them."""

    def moved(found: re.Match[str]) -> str:
        target, anchor = found.group(1), found.group(2) or ""
        if target.startswith(("http:", "https:")):
            return found.group(0)
        target = {**PAGES, "LICENSE": "LICENSE.txt"}.get(target, target.removeprefix("docs/"))
        return f"]({target}{anchor})"

    return _LINK.sub(moved, text)


def on_page_content(html: str, **_: Any) -> str:
    """Show what docstrings refer to by its name alone."""
    return _ROLE.sub(lambda found: f"<code>{found.group(1).rpartition('.')[2]}</code>", html)
