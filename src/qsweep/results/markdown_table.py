"""A table in Markdown."""

from collections.abc import Iterable, Sequence

from qsweep.base import numbers


def table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table, its columns padded so that the raw text reads as well."""
    content = [[numbers.markdown(cell) for cell in line] for line in (headings, *lines)]
    widths = [max(3, *(len(line[i]) for line in content)) for i in range(len(headings))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [
        [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in content
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])
