"""From the names in ``eval.tasks`` to tasks."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.plugins import load_plugin, locate_object, offered
from qsweep.base.schema import nearest
from qsweep.tasks import embedded
from qsweep.tasks.harness_catalogue import Catalogue, open_catalogue
from qsweep.tasks.long import embedded as long
from qsweep.tasks.task import Task, TaskOptions
from qsweep.tasks.text_model import no_chat_template
from qsweep.tasks.user import user_task
from qsweep.text.tokenizer_files import own_chat_template

# Short names, and what they stand for.
ALIASES: dict[str, tuple[str, ...]] = {
    "embedded": embedded.NAMES,
    "long": long.NAMES,
    "ceval": ("ceval-valid",),
    "arc": ("arc_easy", "arc_challenge"),
}
# Asks for a task of lm-evaluation-harness by its own name, where qsweep has one of that name too.
HARNESS_PREFIX = "harness:"
# A user's own task.
_FILES = (".yaml", ".yml")
_KNOWN = tuple(
    "mmlu ceval cmmlu gsm8k ifeval arc arc_challenge hellaswag winogrande bbh wikitext".split()
)


def find_tasks(names: Sequence[str], options: TaskOptions, cache: Path) -> tuple[Task, ...]:
    """The tasks that names stand for, each once, in their order.

    Args:
        names: Of qsweep's own tasks and suites, of anything that lm-evaluation-harness knows, or
            paths of users' YAML files.
        options: What holds for all of them.
        cache: Where the harness's list of tasks is kept.

    Raises:
        ConfigError: A name is unknown (the line names near ones), or a user's file is malformed.
        BackendUnavailable: A task of the harness is asked for, which is not installed.
    """
    found: dict[str, Task] = {}
    for name in names:
        for task in _tasks_of(name, options, cache):
            found.setdefault(task.name, task)
    return tuple(found.values())


def is_long(name: str) -> bool:
    """Whether a name in ``eval.tasks`` asks for long answers: qsweep's own, or the harness's at length."""
    if name.endswith(_FILES):
        return False
    asked = name.removeprefix(HARNESS_PREFIX)
    return asked == "long" or (asked.startswith("long_") and ":" not in asked)


def _tasks_of(name: str, options: TaskOptions, cache: Path) -> Iterator[Task]:
    if name.endswith(_FILES):
        yield user_task(Path(name).expanduser().absolute(), options)
    elif name in embedded.NAMES:
        yield embedded.embedded_task(name, options)
    elif name in long.NAMES:
        yield long.EmbeddedLong(name, options)
    elif name in ALIASES:
        for member in ALIASES[name]:
            yield from _tasks_of(member, options, cache)
    elif name in offered("qsweep.tasks"):
        yield _offered_task(name, load_plugin("qsweep.tasks", name), options)
    elif ":" in name and not name.startswith(HARNESS_PREFIX):
        yield _offered_task(name, locate_object(name, "eval.tasks"), options)
    else:
        from qsweep.tasks.harness import HarnessTask, capability_of
        from qsweep.tasks.long.harness import PREFIX, HarnessLong

        asked = name.removeprefix(HARNESS_PREFIX)
        catalogue = open_catalogue(cache)
        leaves = catalogue.leaves(asked)
        at_length = not leaves and asked.startswith(PREFIX)
        if at_length:
            asked = asked.removeprefix(PREFIX)
            leaves = catalogue.leaves(asked)
        if not leaves:
            raise ConfigError(_unknown(name, catalogue))
        group = next((short for short, full in ALIASES.items() if full == (asked,)), asked)
        for leaf in leaves:
            task = HarnessTask(leaf, group, capability_of(asked), options, catalogue.version)
            yield HarnessLong(task) if at_length else task


def _offered_task(name: str, made_by: Any, options: TaskOptions) -> Task:
    task = made_by(options)
    if not isinstance(task, Task):
        raise ConfigError(f"eval.tasks: {name} gives a {type(task).__name__}, which is no Task")
    return task


def _unknown(name: str, catalogue: Catalogue) -> str:
    own = tuple(dict.fromkeys((*embedded.NAMES, *long.NAMES, *ALIASES, *_KNOWN)))
    near = nearest(name, (*own, *catalogue.names()))
    if not near.startswith("; did you mean"):
        near = f"; for example {', '.join(own)}, or the path of a YAML file of your own"
    return f"eval.tasks: no task {name!r}{near}"


def require_chat_template(model: Path, name: str) -> None:
    """Raise QsweepError if a model's folder holds no chat template."""
    if own_chat_template(model) is None:
        raise QsweepError(no_chat_template(name))
