"""The fenced blocks of README, CONTRIBUTING and docs, and what stands before each."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = ("python", "bash", "yaml", "json", "toml", "text")

_MARK = re.compile(r"<!--\s*not run:\s*(.*?)\s*-->")


@dataclass(frozen=True)
class Block:
    """One block: ``place`` is page:line; ``reason`` says why it is not run, None where it is."""

    page: Path
    place: str
    language: str
    text: str
    reason: str | None

    @property
    def file(self) -> str | None:
        """The file that the block is to be written to: a first line that is a path in a comment."""
        found = re.match(r"# ([~\w./-]+\.(?:py|ya?ml))\n", self.text)
        return found.group(1) if found else None


def blocks_of(page: Path) -> list[Block]:
    """All blocks of a page, in order. A mark is an HTML comment on the line before the fence."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        mark = _MARK.fullmatch(lines[start - 1].strip()) if start else None
        place = f"{page.relative_to(ROOT)}:{start + 1}"
        text = "\n".join(lines[start + 1 : number]) + "\n"
        found.append(Block(page, place, lines[start][3:], text, mark.group(1) if mark else None))
        start = None
    assert start is None, f"{page.name}:{start}: the block is not closed"
    return found


def all_blocks() -> list[Block]:
    """Those of all pages."""
    return [block for page in PAGES if page.exists() for block in blocks_of(page)]


def commands_of(text: str) -> list[list[str]]:
    """The commands of a shell block as words, comments left out, continued lines joined."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
            cut = words.index("&&")
            found.append(words[:cut])
            words = words[cut + 1 :]
        found.append(words)
    return [words for words in found if words]
