"""Your own benchmark: one YAML says how, one JSONL says what. docs/your-own-benchmark.md explains."""

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.base.files import read_regular
from qsweep.base.schema import build, nearest
from qsweep.tasks.items import KINDS, Format, Item, ItemTask
from qsweep.tasks.task import CAPABILITIES, TaskOptions
from qsweep.text.files import json_lines, lone_surrogates, open_text, without_surrogates

_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class UserTask:
    """The YAML file. Texts in braces are fields of a line of ``data``.

    Attributes:
        name: What results call it.
        type: ``multiple_choice``, ``exact_match``, ``regex`` or ``code``.
        data: The JSONL file, beside the YAML file unless its path is absolute.
        prompt: What the model reads.
        answer: What is right.
        capability: What it measures: one of qsweep's, or a word of your own.
        choices: For ``multiple_choice``: the field that lists them, or the texts themselves.
        pattern: For ``regex``: what to look for in the model's words; its first group, if it has
            one, must be the answer.
        test: For ``code``: Python that runs after prompt and continuation, and raises if they fail.
        fewshot: How many of the first lines are solved examples, and not asked.
        separator: Between prompt and answer.
        max_new_tokens: How much the model may say.
        stop: Texts that end it.
        ignore_case: For ``exact_match`` and ``regex``.
        normalise: For ``multiple_choice``: per byte, for choices of different length.
        chance: The score of blind guessing, if it is not one over the number of choices.
    """

    name: str
    type: str
    data: str
    prompt: str
    answer: str = "{answer}"
    capability: str = "own"
    choices: str | tuple[str, ...] = "choices"
    pattern: str = ""
    test: str = "{test}"
    fewshot: int = 0
    separator: str = " "
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ("\n",)
    ignore_case: bool = False
    normalise: bool = True
    chance: float | None = None

    def __post_init__(self) -> None:
        if self.type not in KINDS:
            raise ConfigError(f"type: no such type {self.type!r}{nearest(self.type, KINDS)}")
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ConfigError(f"name: {self.name!r}: letters, digits, '_', '-' and '.' only")
        if self.fewshot < 0 or self.max_new_tokens < 1:
            raise ConfigError("fewshot must be at least 0, max_new_tokens at least 1")
        if self.type == "regex":
            if not self.pattern:
                raise ConfigError("pattern: type regex needs one")
            if not _FIELD.search(self.pattern):
                _check_pattern(self.pattern, "pattern")
        known = (*CAPABILITIES, "own")
        near = nearest(self.capability, known)
        if self.capability not in known and near.startswith("; did you mean"):
            raise ConfigError(f"capability: {self.capability!r}{near}")


def user_task(path: Path, options: TaskOptions) -> ItemTask:
    """The task that a YAML file describes, its data checked line by line.

    Raises:
        ConfigError: Names the file, the line and the field.
    """
    task = _read_yaml(path)
    data = path.parent / Path(task.data).expanduser()
    try:
        content = read_regular(data)
    except OSError as error:
        raise ConfigError(f"{path}: data: {data}: {error.strerror or error}") from error
    items = _items(task, data, content)
    if len(items) <= task.fewshot:
        raise ConfigError(
            f"{data}: {len(items)} lines, of which {task.fewshot} are solved examples: none is left"
        )
    examples, asked = items[: task.fewshot], items[task.fewshot :]
    kind = next(k for k in KINDS if k == task.type)
    form = Format(
        separator=task.separator,
        normalise=task.normalise and kind == "multiple_choice",
        fewshot=task.fewshot,
        max_new_tokens=task.max_new_tokens,
        stop=task.stop if kind != "code" or task.stop != ("\n",) else (),
        ignore_case=task.ignore_case,
        chance=task.chance,
    )
    digest = hashlib.sha256(read_regular(path) + b"\0" + content).hexdigest()[:32]

    def load() -> tuple[Sequence[Item], Sequence[Item]]:
        return examples, asked

    return ItemTask(task.name, task.capability, kind, {"user": digest}, load, form, options)


def _read_yaml(path: Path) -> UserTask:
    import yaml

    try:
        values = yaml.safe_load(read_regular(path).decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not YAML ({getattr(error, 'problem', error)})") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: a task is a list of NAME: VALUE")
    for name in ("name", "type", "data", "prompt"):
        if name not in values:
            raise ConfigError(f"{path}: {name}: is missing")
    if isinstance(values.get("stop"), str):
        values = {**values, "stop": [values["stop"]]}
    try:
        return build(UserTask, {str(k): v for k, v in values.items()}, "")
    except ConfigError as error:
        place = _line_of(path, str(error))
        raise ConfigError(f"{path}{place}: {error}") from error


def _line_of(path: Path, message: str) -> str:
    # The line of the option that a message begins with.
    option = re.split(r"[:=.]", message)[0]
    for number, line in enumerate(read_regular(path).decode("utf-8-sig").splitlines(), 1):
        if line.startswith(f"{option}:"):
            return f":{number}"
    return ""


@lru_cache(maxsize=16)
def _items(task: UserTask, data: Path, content: bytes) -> tuple[Item, ...]:
    items, halves = [], 0
    with open_text(data, newline="\n", content=content) as lines:
        for number, row in json_lines(lines, data):
            where = f"{data}:{number}"
            if not isinstance(row, dict):
                raise ConfigError(f"{where}: not a JSON object")
            found = lone_surrogates(json.dumps(row, ensure_ascii=False))
            items.append(_item(task, _clean(row) if found else row, where))
            halves += found
    if halves:
        print(
            f"note: {data}: {halves} lone surrogates (half a character each) became U+FFFD",
            file=sys.stderr,
        )
    if not items:
        raise ConfigError(f"{data}: no lines")
    return tuple(items)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, list):
        return [_clean(part) for part in value]
    if isinstance(value, dict):
        return {_clean(name): _clean(part) for name, part in value.items()}
    return value


def _item(task: UserTask, row: dict[str, Any], where: str) -> Item:
    prompt = _fill(task.prompt, row, where, "prompt")
    if task.type == "code":
        # A solution is needed for a solved example only.
        solution = str(row.get("answer", ""))
        return Item(prompt, solution, test=_fill(task.test, row, where, "test"))
    if task.type == "multiple_choice":
        choices = _choices(task, row, where)
        answer = _choice(task, row, choices, where)
        return Item(prompt, answer, choices)
    pattern = ""
    if task.type == "regex":
        pattern = _fill(task.pattern, row, where, "pattern", escape=True)
        flags = "(?i)" if task.ignore_case else ""
        pattern = flags + _check_pattern(pattern, f"{where}: pattern")
        if task.answer == UserTask.answer and "answer" not in row:
            return Item(prompt, pattern=pattern)
    whole = _FIELD.fullmatch(task.answer)
    if whole and isinstance(row.get(whole.group(1)), list):
        answers = [str(value) for value in row[whole.group(1)]]
        if not answers:
            raise ConfigError(f"{where}: {whole.group(1)}: an empty list")
        return Item(prompt, answers[0], also=tuple(answers[1:]), pattern=pattern)
    return Item(prompt, _fill(task.answer, row, where, "answer"), pattern=pattern)


def _choices(task: UserTask, row: dict[str, Any], where: str) -> tuple[str, ...]:
    if isinstance(task.choices, tuple):
        found: Any = [_fill(choice, row, where, "choices") for choice in task.choices]
    else:
        name = task.choices.strip("{}")
        if name not in row:
            raise ConfigError(f"{where}: {name}: is missing{nearest(name, row)}")
        found = row[name]
    if not isinstance(found, list) or len(found) < 2:
        raise ConfigError(f"{where}: choices: a list of at least two is needed")
    texts = tuple(str(choice) for choice in found)
    if "" in texts:
        raise ConfigError(f"{where}: choices: one is empty, and an empty text has no likelihood")
    if len(set(texts)) != len(texts):
        raise ConfigError(f"{where}: choices: two are equal")
    return texts


def _choice(task: UserTask, row: dict[str, Any], choices: tuple[str, ...], where: str) -> str:
    # The answer itself, or its place in the list, counted from 0.
    whole = _FIELD.fullmatch(task.answer)
    value = row.get(whole.group(1)) if whole else None
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < len(choices):
            raise ConfigError(
                f"{where}: {whole.group(1) if whole else 'answer'}={value}: there are "
                f"{len(choices)} choices, counted from 0"
            )
        return choices[value]
    answer = _fill(task.answer, row, where, "answer")
    if answer not in choices:
        raise ConfigError(f"{where}: answer: {answer!r} is none of the choices")
    return answer


def _fill(template: str, row: dict[str, Any], where: str, option: str, escape: bool = False) -> str:
    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in row:
            raise ConfigError(
                f"{where}: {name}: is missing, and {option} needs it{nearest(name, row)}"
            )
        if row[name] is None or isinstance(row[name], (list, dict)):
            kind = {type(None): "null", list: "a list", dict: "an object"}[type(row[name])]
            raise ConfigError(f"{where}: {name}: is {kind}, and {option} needs text")
        return re.escape(str(row[name])) if escape else str(row[name])

    # A regular expression's own braces, as in a{2}, are no fields.
    pattern = re.compile(r"\{([A-Za-z_]\w*)\}") if escape else _FIELD
    return pattern.sub(value, template)


def _check_pattern(pattern: str, where: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{where}: not a regular expression ({error})") from error
    return pattern
