"""A table in Markdown."""

from collections.abc import Iterable, Sequence

from qsweep.base import numbers


def table(headings: Sequence[str], lines: Iterable[Sequence[str]], *, figures: bool = True) -> str:
    """A Markdown table, its columns padded so that the raw text reads as well.

    Columns of ``figures`` stand at the right, all but the first.
    """
    content = [[numbers.markdown(cell) for cell in line] for line in (headings, *lines)]
    widths = [max(3, *(len(line[i]) for line in content)) for i in range(len(headings))]
    right = "-:" if figures else "--"
    rule = ["-" * widths[0], *("-" * (width - 2) + right for width in widths[1:])]
    padded = [
        [
            cell.rjust(width) if i and figures else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in content
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])
