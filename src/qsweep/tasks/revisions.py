"""What keys of results say beside :data:`TASKS_VERSION` and the model's hash.

Where an older way of scoring was wrong: a result of before stays valid wherever the figures are the
same; where they are not, its key is another one. And what is no part of the model's hash: where its
makers say that texts end, beside its configuration, and a chat template that is a file of its own, if
it is used. The hash covers a template in ``tokenizer_config.json``, and neither of these files.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from qsweep.models.facts import read_config, text_config
from qsweep.models.source import ModelFacts
from qsweep.tasks.attention import rope_boundaries, windows
from qsweep.tasks.items import ItemTask
from qsweep.tasks.task import Task


def key_revisions(
    task: Task,
    facts: ModelFacts,
    *,
    generation: Mapping[str, Any] | None = None,
    template: str | None = None,
) -> dict[str, Any]:
    """What a task's key says beside its identity, on one model.

    Args:
        task: Any task.
        facts: Of the model that it is asked of.
        generation: What its makers say of generating beside its configuration.
        template: The hash of a chat template that is a file of its own, if it is used.
    """
    chosen = not isinstance(task, ItemTask) or task.kind == "multiple_choice"
    found: dict[str, Any] = {}
    if chosen and (span := _span(facts)) < facts.max_length:
        found["full_attention_span"] = span
    if isinstance(task, ItemTask) and chosen and _fuses(task, facts.path):
        found["cut"] = "before what fuses"
    if not chosen and 2 * task.format.max_new_tokens > facts.max_length:  # type: ignore[attr-defined]
        found["room"] = "at least half of the context for the prompt"
    generates = not isinstance(task, ItemTask) or not chosen
    if generates and generation:
        found["generation"] = generation
    if template:
        found["chat_template"] = template
    return found


def _span(facts: ModelFacts) -> int:
    config = SimpleNamespace(**text_config(read_config(facts.path)))
    if getattr(config, "use_sliding_window", None) is False:
        config.sliding_window = None
    return min([facts.max_length, *windows(config), *rope_boundaries(config)])


def _fuses(task: ItemTask, model: Path) -> bool:
    # Whether a token holds the end of a prompt and the begin of a choice.
    if task.options.chat_template:
        return False  # a template ends with tokens of its own
    tokenizer = _tokenizer(model / "tokenizer.json")
    for item in task.load()[1][: task.options.limit]:
        kept = item.prompt.rstrip()
        blanks = item.prompt[len(kept) :] + task.format.separator
        if tokenizer is None:
            return not blanks
        own = tokenizer.encode(kept, add_special_tokens=False).ids
        for choice in item.choices:
            whole = tokenizer.encode(kept + blanks + choice, add_special_tokens=False).ids
            if whole[: len(own)] != own or len(whole) == len(own):
                return True
    return False


@lru_cache(maxsize=4)
def _tokenizer(file: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception:  # the library's only kind: no such file, or one of another version
        return None
