"""``docs/architectures.md``, from the results in ``bench/results``."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

PAGE = "docs/architectures.md"
_METHODS = ("none", "rtn", "gptq", "awq", "gguf")
_MARKS = {"right": "✓", "wrong": "✗", "failed": "✗"}


def page(document: Mapping[str, Any]) -> str:
    """The whole page, from what ``bench/architectures.py --json`` wrote."""
    cells = document["rows"]
    numbers = _numbers(cells)
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    return "\n".join(
        [
            _HEAD.format(versions=versions),
            *_counts(cells),
            "",
            "## By architecture",
            "",
            *_table(cells, numbers),
            "",
            "## Reasons",
            "",
            *_reasons(cells, numbers),
            "",
        ]
    )


_HEAD = """# Architectures

What works on which architecture, measured: a miniature with random weights of every class in transformers'
mapping of causal language models, and of the common ones that read images, by each method at 4 bits.
`python bench/architectures.py --json bench/results/architectures.json --page` measures what has changed and
writes this page. Measured with {versions}.

A cell has a ✓ if what came out is right:

- **none**: the dense engine's logits are those of transformers' own loop, within 1e-4 in float32;
- **rtn, gptq, awq**: every linear layer and every expert that 4 bits mean is quantized, the engine's dense
  weights are what numpy unpacks from the files, and the logits are near the reference's;
- **gguf**: llama.cpp's own run of the file agrees with the dense engine's reading of it.

A number is a [reason](#reasons) why it was skipped; ✗ and a number, what is wrong.
"""


# What one cell's reason has of its own.
_OWN = (
    (r"^(rtn|gptq|awq)\b", "METHOD"),
    (r"\b(?=[A-Z])\w+(ForCausalLM|LMHeadModel|ForConditionalGeneration|Model|Wrapper)\b", "CLASS"),
    (r"does not know \w+", "does not know CLASS"),
    (r"\b\w+(\.\w+)*\.\d+(\.\w+)*", "LAYER"),
    (r"'\w+'", "NAME"),
    (r"\b(\w+-)?\w+'s layers are", "NAME's layers are"),
    (r"\d[\d.]*(e-?\d+)?", "N"),
)


def kind(reason: str) -> str:
    """A reason without what is one architecture's own: figures, layers, classes."""
    for pattern, instead in _OWN:
        reason = re.sub(pattern, instead, reason)
    return reason


def _numbers(cells: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counts = Counter(kind(cell["reason"]) for cell in cells if cell["state"] != "right")
    order = sorted(counts, key=lambda reason: (-counts[reason], reason))
    return {reason: number for number, reason in enumerate(order, 1)}


def _by_row(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    for cell in cells:
        rows.setdefault(cell["architecture"], {})[cell["method"]] = cell
    return rows


def _counts(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [_line(["", *_METHODS]), _line(["---"] * (len(_METHODS) + 1))]
    for state in ("right", "skipped", "wrong", "failed"):
        of = Counter(cell["method"] for cell in cells if cell["state"] == state)
        lines.append(_line([state, *(str(of[method]) for method in _METHODS)]))
    return lines


def _table(cells: Sequence[Mapping[str, Any]], numbers: Mapping[str, int]) -> list[str]:
    lines = [_line(["architecture", *_METHODS]), _line(["---"] * (len(_METHODS) + 1))]
    for name, row in _by_row(cells).items():
        lines.append(_line([name, *(_mark(row.get(method), numbers) for method in _METHODS)]))
    return lines


def _mark(cell: Mapping[str, Any] | None, numbers: Mapping[str, int]) -> str:
    if cell is None:
        return ""
    mark = _MARKS.get(cell["state"], "")
    if cell["state"] == "right":
        return mark
    return f"{mark} {numbers[kind(cell['reason'])]}".strip()


def _reasons(cells: Sequence[Mapping[str, Any]], numbers: Mapping[str, int]) -> list[str]:
    """Each kind once, by the words of the first cell that has it, and how many have it."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for cell in cells:
        if cell["state"] != "right":
            first.setdefault(kind(cell["reason"]), cell["reason"])
            counts[kind(cell["reason"])] += 1
    return [
        f"{number}. {first[reason].replace('<', '&lt;')} ({counts[reason]}×)"
        for reason, number in numbers.items()
    ]


def _line(columns: Sequence[str]) -> str:
    return f"| {' | '.join(columns)} |"
