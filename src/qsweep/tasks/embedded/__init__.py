"""The embedded suite: every capability measured offline, on any model, in about a minute.

Items are generated from a seed or written for this project, so that no training set holds them in
this form; chance is known for each. Small as they are, they tell what quantization takes from a
model, not how good the model is: for that there are the public benchmarks.
"""

import platform
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from qsweep.tasks.embedded.chinese import chinese_basics
from qsweep.tasks.embedded.cloze import cloze
from qsweep.tasks.embedded.exercises import arithmetic, sequences, syllogism, transitive
from qsweep.tasks.embedded.facts import world_facts
from qsweep.tasks.embedded.instructions import instructions
from qsweep.tasks.humaneval import humaneval
from qsweep.tasks.items import Format, Item, ItemTask, Kind
from qsweep.tasks.task import TaskOptions, TaskUnavailable

SEED = 20
# Raised whenever an item may have changed.
_VERSION = 1
_EXAMPLES = 8
# Room for every function that a small model completes; the public protocol's 512 doubles the time.
_HUMANEVAL_TOKENS = 256

Make = Callable[[int, int], list[Item]]


def _names() -> dict[str, tuple[str, Kind, Make, int, Format]]:
    choice: Kind = "multiple_choice"
    lines = Format(joint="\n", fewshot=4)
    together = Format(separator="", joint="\n", fewshot=4)
    cut = Format(separator="", normalise=True)
    one_line = Format(fewshot=5, max_new_tokens=24)
    return {
        "world_facts": ("knowledge", choice, world_facts, 200, lines),
        "chinese_basics": ("chinese", choice, chinese_basics, 120, together),
        "code_cloze": ("code", choice, partial(cloze, "code"), 200, cut),
        "arithmetic": ("math", choice, arithmetic, 200, lines),
        "transitive": ("reasoning", choice, transitive, 150, lines),
        "syllogism": ("reasoning", choice, syllogism, 150, lines),
        "sequences": ("reasoning", choice, sequences, 200, lines),
        "instructions": ("instruction", "regex", instructions, 140, one_line),
        "prose_cloze": ("completion", choice, partial(cloze, "docs"), 200, cut),
    }


NAMES = (*_names(), "humaneval")


def embedded_task(name: str, options: TaskOptions) -> ItemTask:
    """One task of the suite, by its name."""
    if name == "humaneval":
        return humaneval(options, _HUMANEVAL_TOKENS)
    capability, kind, make, count, form = _names()[name]

    @lru_cache(maxsize=1)
    def load() -> tuple[Sequence[Item], Sequence[Item]]:
        items = make(count + _EXAMPLES, SEED)
        if len(items) <= _EXAMPLES:
            raise TaskUnavailable(f"{name}: this Python installation carries no text for it")
        return items[:_EXAMPLES], items[_EXAMPLES:]

    source = {"suite": _VERSION, "seed": SEED, "count": count}
    if name.endswith("_cloze"):
        source["python"] = platform.python_version()  # type: ignore[assignment]
    return ItemTask(name, capability, kind, source, load, form, options)
