"""Which tasks lm-evaluation-harness has, without parsing its fourteen thousand YAML files.

Its own index takes half a minute to build. Names are all that is needed to check a configuration and
to take groups apart, and stand at the beginning of lines: a search for them takes a second or two,
and is kept.
"""

import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from qsweep.base import typed_json
from qsweep.base.errors import BackendUnavailable
from qsweep.base.files import write_json

PACKAGE = "lm_eval"
_LINE = re.compile(r"""^["']?(task|group|tag)["']?:[ \t]*(.*?)[ \t]*$""", re.MULTILINE)
_LISTED = re.compile(r"^[ \t]*-[ \t]*([^\s#:]+)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Leaf:
    """One task of the harness: its name, the folder of its YAML file, what its group changes."""

    name: str
    folder: str
    overrides: tuple[tuple[str, str], ...] = ()
    """Option and its value as JSON."""


@dataclass(frozen=True)
class Catalogue:
    """The harness's names. Files are relative to ``root``."""

    version: str
    root: Path
    tasks: Mapping[str, str]
    groups: Mapping[str, str]
    tags: Mapping[str, list[str]]

    def names(self) -> list[str]:
        """Everything that can be asked for."""
        return [*self.tasks, *self.groups, *self.tags]

    def leaves(self, name: str) -> list[Leaf]:
        """The single tasks that a name stands for; none if it is unknown."""
        return list(self._leaves(name, {}))

    def _leaves(self, name: str, overrides: Mapping[str, Any]) -> Iterator[Leaf]:
        if name in self.groups:
            yield from self._members(self._yaml(self.groups[name]), overrides)
        elif name in self.tasks:
            folder = str((self.root / self.tasks[name]).parent)
            kept = {k: json.dumps(v, sort_keys=True) for k, v in overrides.items()}
            yield Leaf(name, folder, tuple(sorted(kept.items())))
        else:
            for member in sorted(self.tags.get(name, ())):
                yield from self._leaves(member, overrides)

    def _members(self, group: Mapping[str, Any], overrides: Mapping[str, Any]) -> Iterator[Leaf]:
        members = group.get("task") or []
        for member in [members] if isinstance(members, str) else members:
            if isinstance(member, str):
                yield from self._leaves(member, overrides)
                continue
            own = {k: v for k, v in member.items() if k not in ("task", "group")}
            if isinstance(member.get("task"), list):  # a group within the group
                yield from self._members(member, overrides)
            else:
                named = member.get("task") or member.get("group")
                yield from self._leaves(str(named), {**overrides, **own})

    def _yaml(self, file: str) -> Mapping[str, Any]:
        import yaml

        class Loader(yaml.SafeLoader):
            """Takes functions for what they are not needed here: nothing."""

        Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
        text = (self.root / file).read_text(encoding="utf-8")
        return yaml.load(text, Loader)  # noqa: S506 - a safe loader's subclass


@dataclass(frozen=True)
class _Names:
    tasks: dict[str, str]
    groups: dict[str, str]
    tags: dict[str, list[str]]


@lru_cache(maxsize=4)
def open_catalogue(cache: Path) -> Catalogue:
    """The catalogue of the installed harness, kept in ``cache``.

    Raises:
        BackendUnavailable: It is not installed.
    """
    root, version = installed()
    file = cache / f"lm_eval-{version}.json"
    try:
        names = typed_json.read(_Names, file)
    except (OSError, ValueError):  # a cache that holds anything else is made again
        names = _Names(**search(root))
        write_json(file, asdict(names))
    return Catalogue(version, root, names.tasks, names.groups, names.tags)


def installed() -> tuple[Path, str]:
    """Folder of the harness's tasks, and its version. Raises BackendUnavailable."""
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (root := Path(place) / "tasks").is_dir():
            return root, importlib.metadata.version(PACKAGE)
    raise BackendUnavailable(
        "tasks of lm-evaluation-harness need it: pip install 'qsweep[tasks]' "
        "(eval=embedded needs nothing)"
    )


def search(root: Path) -> dict[str, Any]:
    """All names below a folder of YAML files: tasks and groups with their files, tags' members."""
    tasks: dict[str, str] = {}
    groups: dict[str, str] = {}
    tags: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        # A value that stands on lines of its own is a list.
        found = {key: value.split(" #")[0].strip("'\" ") for key, value in _LINE.findall(text)}
        name, file = found.get("task", ""), str(path.relative_to(root))
        if found.get("group"):
            groups.setdefault(found["group"], file)
        elif name:
            tasks.setdefault(name, file)
            for tag in _tags(text, found.get("tag")):
                tags.setdefault(tag, []).append(name)
    return {"tasks": tasks, "groups": groups, "tags": tags}


def _tags(text: str, value: str | None) -> list[str]:
    if value is None:
        return []
    if value:
        return [tag.strip("'\" ") for tag in value.strip("[]").split(",")]
    after = re.split(r"""^["']?tag["']?:[^\n]*\n""", text, maxsplit=1, flags=re.MULTILINE)[1]
    block = re.match(r"(?:[ \t]*-[^\n]*\n)*", after)
    return _LISTED.findall(block.group()) if block else []
