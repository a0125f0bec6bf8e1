"""What a sweep file and a command line vary together, checked before anything runs.

A sweep file says it under ``hydra.sweeper``: ``params``, a mapping of names to override strings,
every combination of which is a trial; ``when``, further params for some of these only; ``trials``,
a list of explicit rows instead of, or beside, a product.
"""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.base.schema import nearest
from qsweep.search.space import Parameter, Space, When, overrides_of
from qsweep.sweep.found import expand_pattern
from qsweep.sweep.overrides import acceptable

_WHERE = "hydra.sweeper"


def read_space(params: Any, when: Any, arguments: Sequence[str]) -> Space:
    """The space of a sweep file's ``params`` and ``when`` and of the command line's overrides.

    An override on the command line replaces the parameter of its name, wherever that stands.

    Raises:
        ConfigError: one line that says what is no override string.
    """
    # An option that no file names comes here as ++NAME, and replaces what the sweep file says of it.
    typed = {name.removeprefix("++"): name for name, _ in map(_parse, arguments)}
    given = {name.removeprefix("++"): values for name, values in map(_parse, arguments)}
    parameters = [
        Parameter(name, given.get(name) or _values(name, value, f"{_WHERE}.params"))
        for name, value in _mapping(params, f"{_WHERE}.params").items()
    ]
    for condition, block in _mapping(when, f"{_WHERE}.when").items():
        where = f"{_WHERE}.when.{condition}"
        rule = _when(condition, where)
        parameters += [
            Parameter(name, given.get(name) or _values(name, value, where), rule)
            for name, value in _mapping(block, where).items()
        ]
    placed = {parameter.name for parameter in parameters}
    # Before those that have conditions, which may well look at them.
    new = [Parameter(typed[name], given[name]) for name in given if name not in placed]
    free = [p for p in parameters if p.when is None]
    everything = (*free, *new, *(p for p in parameters if p.when is not None))
    return Space(tuple(replace(p, values=expand_pattern(p.name, p.values)) for p in everything))


def read_trials(params: Any, when: Any, trials: Any, arguments: Sequence[str]) -> list[list[str]]:
    """The overrides of every trial of a sweep file and a command line. Raises ConfigError."""
    space = read_space(params, when, arguments)
    rows = read_rows(trials, space)
    combinations = [overrides_of(params) for params in space.combinations()]
    return [row + combination for row in rows for combination in combinations]


def read_rows(trials: Any, space: Space) -> list[list[str]]:
    """The explicit rows of a sweep file, each a list of overrides; one empty row if there are none.

    Raises:
        ConfigError: a row is no string, or sets what is varied or set outside of the rows.
    """
    rows = []
    for number, row in enumerate(trials or (), 1):
        where = f"{_WHERE}.trials: row {number}"
        if not isinstance(row, str):
            raise ConfigError(f"{where} is not a string of overrides; write - quant=gptq bits=4")
        try:
            overrides = [acceptable(word) for word in shlex.split(row)]
        except ValueError as error:
            raise ConfigError(f"{where}: {row}: {str(error).lower()}") from error
        for override in overrides:
            name, values = _parse(override)
            if len(values) > 1:
                raise ConfigError(f"{where}: {override} has several values; write a row for each")
            if any(parameter.name == name for parameter in space.parameters):
                raise ConfigError(
                    f"{name}: the rows of this sweep file set it, so it cannot be varied or set "
                    "beside them; without --config-name it can"
                )
        rows.append(overrides)
    return rows or [[]]


def check_options(config: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse an option at the top of a sweep file that nothing reads. Raises ConfigError."""
    names = sorted(known)
    for name in config:
        if name not in names:
            raise ConfigError(f"no option {name!r}{nearest(str(name), names)}")


def _when(condition: str, where: str) -> When:
    rule = None
    for part in reversed(re.split(r"\s+and(?:\s+|$)", condition.strip())):
        name, _, value = part.partition("=")
        if not value:
            raise ConfigError(
                f"{where}: a condition is NAME=VALUE or NAME=VALUE,VALUE, or some of these with and between"
            )
        rule = When(name, _parse(part)[1], rule)
    assert rule is not None
    return rule


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: must be a mapping of names to override strings")
    return {str(name): item for name, item in value.items()}


def _values(name: str, value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, bool):
        return (str(value).lower(),)
    if isinstance(value, (int, float)):
        return (str(value),)
    if isinstance(value, str) and value:
        return _parse(f"{name}={value}")[1]
    if isinstance(value, (list, tuple)):
        text = ",".join(
            str(item).lower() if isinstance(item, bool) else str(item) for item in value
        )
        raise ConfigError(f"{where}.{name} is a YAML list, one trial; write {name}: {text}")
    raise ConfigError(f"{where}.{name}: must be an override string, such as {name}: a,b")


def _parse(override: str) -> tuple[str, tuple[str, ...]]:
    """An override's name (with its + or ~) and the values that it goes through."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides([acceptable(override)])[0]
    name = str(parsed.get_key_element())
    if not parsed.is_sweep_override():
        return name, (str(parsed.get_value_element_as_str()),)
    if not parsed.is_discrete_sweep():
        raise ConfigError(f"{override}: give the values one by one; a trial is one of them")
    values = (str(value) for value in parsed.sweep_string_iterator())
    return name, tuple({"True": "true", "False": "false"}.get(value, value) for value in values)
