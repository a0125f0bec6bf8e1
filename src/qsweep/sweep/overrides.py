"""Overrides as people type them, made into what Hydra takes.

Hydra's grammar has no unquoted ``=``, ``(``, ``#``, ``~`` or letter outside of ASCII, and reads
``2024`` as a number; its configurations know only what stands in a YAML file. A value that it
rejects is quoted here if that is all it lacks, and an option that a dataclass has is added.
"""

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qsweep.base.config_files import choice_values
from qsweep.base.errors import ConfigError
from qsweep.base.remote_settings import RemoteSettings
from qsweep.sweep.blends import with_blends_named

# What opens a value that is more than a text.
_OPENING = ("[", "{", "'", '"')
_TEXTS = ("sweep", "outputs_dir")
# What quant=artifact takes, whatever other quantizers are chosen beside it.
_ARTIFACTS = ("quant.path", "quant.repo", "quant.file", "quant.revision")
# What the grammar reads as something else.
_NO_TEXTS = ("true", "false", "null", "inf", "nan")


def acceptable(override: str, groups: Mapping[str, Sequence[str]] | None = None) -> str:
    """The override, its value quoted if Hydra's grammar takes it only so.

    Args:
        override: ``NAME=VALUE``, as typed; of several values, each is quoted where it has to be, and
            a list of texts to calibrate on is named as one choice.
        groups: the choices of each configuration group, to tell choices from values.

    Raises:
        ConfigError: a group is given something else than a name, or a blend is none.
    """
    override = with_blends_named(override)
    key, separator, value = override.partition("=")
    name = key.lstrip("+")
    if separator and not name:
        raise ConfigError(f"{override!r} is not an override; write NAME=VALUE")
    if not separator:
        return override
    if name in (groups or ()) and re.fullmatch(r"(?i)null|\{.*\}", value.strip(), re.DOTALL):
        there = ", ".join((groups or {})[name])
        raise ConfigError(
            f"{override}: a choice is a name" + (f"; there are {there}" if there else "")
        )
    text = name in _TEXTS or name in (groups or ()) or _accepts_text(name)
    if _parses(override) and not (text and any(map(_is_number, value.split(",")))):
        return override
    if value.startswith("[") and value.endswith("]") and not text:
        inner = ",".join(_item(part, text=False) for part in value[1:-1].split(","))
        candidates = [f"[{inner}]"]
    elif value.startswith(_OPENING):
        candidates = [quote(value)] if text and value[0] in "[{" else []
    else:
        candidates = [",".join(_item(part, text=text) for part in value.split(",")), quote(value)]
    for candidate in candidates:
        if _parses(f"{key}={candidate}"):
            return f"{key}={candidate}"
    return override


def quote(text: str) -> str:
    """A text as Hydra's grammar has it in quotes."""
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"


def unquoted(value: str) -> str:
    """A value of Hydra's grammar as a text, without quotes and escapes.

    >>> unquoted("'a b.gguf'"), unquoted("a.gguf")
    ('a b.gguf', 'a.gguf')
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return str(OverridesParser.create().parse_override(f"x={value}").value())


def spelled(value: Any, name: str) -> str:
    """A value of Python as Hydra's grammar has it; a tuple is a list.

    >>> spelled((True, None, 0.5, "a b", {"x": 1}), "name")
    "[true,null,0.5,'a b',{x: 1}]"

    Raises:
        ConfigError: no option has values of that kind.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z_/][\w./-]*", value) and value.lower() not in _NO_TEXTS
        return value if plain else quote(value)
    if isinstance(value, (tuple, list)):
        return f"[{','.join(spelled(one, name) for one in value)}]"
    if isinstance(value, Mapping):
        inner = (f"{key}: {spelled(one, name)}" for key, one in value.items())
        return f"{{{', '.join(inner)}}}"
    raise ConfigError(f"{name}: {type(value).__name__} is no value of an option; lists are swept")


def is_option(key: str, quantizers: Iterable[type] = ()) -> bool:
    """Whether a dataclass has the option of this dotted name, though no YAML file may name it.

    ``quantizers`` are the classes that ``quant`` may be; all of them must have it.
    """
    group, _, rest = key.partition(".")
    if group == "quant":
        classes = list(quantizers)
        return bool(rest and classes) and all(_has(cls, rest) for cls in classes)
    inner = _of_one_text(key)
    if group == "corpus" or inner:
        return _has(_typed("corpus")[0], inner)
    return bool(rest) and any(_has(cls, rest) for cls in _typed(group))


def options_of(group: str) -> list[str]:
    """Names of the options that the dataclasses of a configuration group have."""
    return [f.name for cls in _typed(group) for f in dataclasses.fields(cls)]


def quantizer_class(values: Mapping[str, Any]) -> type | None:
    """The class behind a ``quant`` mapping; None where it names none that can be had."""
    from qsweep.base.schema import locate

    backends = values.get("backends")
    target = values.get("_target_")
    if isinstance(backends, Mapping):
        target = backends.get(str(values.get("backend")), target)
    try:
        return locate(str(target), "quant._target_") if target else None
    except ConfigError:
        return None


def _item(part: str, *, text: bool) -> str:
    trimmed = part.strip()
    if trimmed.startswith(("'", '"')) or (_parses(f"x={part}") and not (text and _is_number(part))):
        return part
    return quote(trimmed)


def _parses(override: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        OverridesParser.create().parse_override(override)
        return True
    except HydraException:
        return False


def _is_number(value: str) -> bool:
    """Whether Hydra reads an unquoted value as a number or a truth value."""
    number = r"[+-]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(e[+-]?\d[\d_]*)?|[+-]?(inf|nan)|true|false"
    return re.fullmatch(number, value.strip(), re.IGNORECASE) is not None


def _of_one_text(key: str) -> str:
    """The option's own name, where a dotted one is of one text of several."""
    found = re.fullmatch(r"(?:corpus|calibration\.blend)\.[^.]+\.(.+)", key)
    return found[1] if found else ""


@functools.cache
def _typed(group: str) -> tuple[type, ...]:
    """The dataclasses that hold the options of a group."""
    from qsweep.models.settings import ModelConfig
    from qsweep.sweep.calibration import CalibrationConfig
    from qsweep.sweep.config import EvalConfig
    from qsweep.text.corpus import CorpusConfig

    if group in ("launch", "tracking"):
        targets = (quantizer_class(values) for _, values in choice_values(group))
        return tuple(cls for cls in targets if cls is not None)
    known: dict[str, tuple[type, ...]] = {
        "model": (ModelConfig,),
        "eval": (EvalConfig,),
        "corpus": (CorpusConfig,),
        "calibration": (CorpusConfig, CalibrationConfig),
        "store": (RemoteSettings,),
    }
    return known.get(group, ())


def _has(cls: type, path: str) -> bool:
    return _annotation(cls, path) is not None


def _annotation(cls: Any, path: str) -> Any:
    """The type of a field, of a nested dataclass too; None if there is none."""
    for word in path.split("."):
        if not dataclasses.is_dataclass(cls):
            return None
        names = [f.name for f in dataclasses.fields(cls) if f.init and f.name != "blend"]
        if word not in names:
            return None
        cls = typing.get_type_hints(cls)[word]
    return cls


def _accepts_text(key: str) -> bool:
    group, _, rest = key.partition(".")
    if group == "corpus" or key.startswith("calibration.blend."):
        group, rest = "corpus", rest.rpartition(".")[2]
    elif key.startswith("quant.env."):
        from qsweep.quantizers.environments.choice import EnvChoice

        return _is_text(_annotation(EnvChoice, key.removeprefix("quant.env.")))
    elif key in _ARTIFACTS:
        return True
    elif group == "search":
        return rest in ("storage", "study")
    found = [_annotation(cls, rest) for cls in _typed(group)]
    return any(_is_text(one) for one in found if one is not None)


def _is_text(annotation: Any) -> bool:
    members = set(_members(annotation))
    return bool(members & {str, Path}) and members <= {str, Path, types.NoneType}


def _members(annotation: Any) -> Iterator[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _members(member)
    else:
        yield annotation
