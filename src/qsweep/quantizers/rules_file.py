"""Rules in a file: what ``quant.rules=FILE`` reads, and what is written for it.

A file is read where a configuration is, so that keys and records have what stands in it, and not its
name. Nothing heavy is imported.
"""

import json
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

from qsweep.base.errors import ConfigError

_KINDS = (".yaml", ".yml", ".json")
_WANTED = (
    "a mapping of patterns, as in {'*.down_proj': 8}, or a list of them, as in ['*.down_proj=8']"
)


def read_file(given: str) -> Any:
    """The mapping or the list that a file holds, by itself or under ``rules``.

    Args:
        given: Its path, relative to where the command runs: YAML, or JSON where it ends in ``.json``.

    Raises:
        ConfigError: One line that names the file: it is not there, cannot be read, is no YAML or
            JSON, holds nothing or something else, or one pattern twice.
    """
    path, place = Path(given.strip()).expanduser(), f"quant.rules={given}"
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        is_file = False
    if not is_file:
        if path.suffix.lower() in _KINDS:
            what = "is a folder" if path.is_dir() else f"there is no such file in {Path.cwd()}"
            raise ConfigError(
                f"{place}: {what}" if not path.is_absolute() else f"{place}: no such file"
            )
        raise ConfigError(
            f"{place}: must be a mapping of patterns, as in {{*.down_proj: 8}}, or a file of them "
            "(.yaml or .json)"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{place}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place}: is no text; it must hold {_WANTED}") from error
    content = _json(text, place) if path.suffix.lower() == ".json" else _yaml(text, place)
    if isinstance(content, dict) and content.keys() == {"rules"}:
        content = content["rules"]
    if content is None or content in ({}, []):
        raise ConfigError(f"{place}: holds no rules; it must hold {_WANTED}")
    if not isinstance(content, (dict, list)):
        raise ConfigError(f"{place}: holds {type(content).__name__}, not {_WANTED}")
    if isinstance(content, list) and not all(isinstance(one, str) for one in content):
        odd = next(one for one in content if not isinstance(one, str))
        raise ConfigError(f"{place}: {json.dumps(odd, default=str)[:80]} is no PATTERN=VALUE")
    return content


def as_file(rules: Iterable[str]) -> str:
    """What such a file holds, of rules as ``PATTERN=VALUE``."""
    # Of YAML, too, a text in JSON is one.
    return "".join(f"- {json.dumps(rule, ensure_ascii=False)}\n" for rule in rules)


def _json(text: str, place: str) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _mapping(pairs, place))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: is no JSON ({error})") from error


def _yaml(text: str, place: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """One that does not pass over a key that stands there twice."""

    def mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        loader.flatten_mapping(node)
        pairs = [
            (loader.construct_object(k, deep=True), loader.construct_object(v, deep=True))
            for k, v in node.value
        ]
        return _mapping(pairs, place)

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        why = str(getattr(error, "problem", None) or error).splitlines()[0]
        # What begins with * is an alias there.
        hint = '; patterns stand in quotes, as in "*.down_proj": 8' if "*" in text else ""
        raise ConfigError(f"{place}: is no YAML{where} ({why}){hint}") from error


def _mapping(pairs: Iterable[tuple[Any, Any]], place: str) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for name, value in pairs:
        if not isinstance(name, Hashable):
            raise ConfigError(f"{place}: {name} is no pattern")
        if name in found and found[name] != value:
            raise ConfigError(
                f"{place}: {name} is said to be {found[name]} and {value}; leave one of them out"
            )
        found[name] = value
    return found
