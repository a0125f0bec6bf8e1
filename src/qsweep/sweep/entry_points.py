"""What a choice stands for that another package offers as an entry point."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from qsweep.base.config_files import ENTRY_POINT_GROUPS
from qsweep.base.errors import ConfigError
from qsweep.base.plugins import load_plugin, offered

# Options of a sweep that every quantizer which has them takes from it.
_OF_THE_SWEEP = ("bits", "group_size", "desc_act", "sym", "seed", "device", "container")
# Fields that a configuration group of its own fills.
_GROUPS = (("quant", "format"),)


def configuration(group: str, name: str) -> dict[str, Any]:
    """The mapping that a YAML file of the group would hold.

    Raises:
        ConfigError: it cannot be imported, or is of no kind that the group takes.
    """
    points = ENTRY_POINT_GROUPS[group]
    found = load_plugin(points, name)
    if group in ("corpus", "calibration"):
        return _text(group, name, found, offered(points)[name].value)
    if not (inspect.isclass(found) and dataclasses.is_dataclass(found)):
        raise ConfigError(f"{group}={name}: {offered(points)[name].value!r} is no dataclass")
    target = f"{found.__module__}.{found.__qualname__}"
    return {"_target_": target} | {
        field.name: _default(group, field)
        for field in dataclasses.fields(found)
        if field.init and (group, field.name) not in _GROUPS
    }


def _default(group: str, field: "dataclasses.Field[Any]") -> Any:
    if group in ("quant", "format") and field.name in _OF_THE_SWEEP:
        return f"${{{field.name}}}"
    if field.default is not dataclasses.MISSING:
        return list(field.default) if isinstance(field.default, tuple) else field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return "???"


def _text(group: str, name: str, found: Any, target: str) -> dict[str, Any]:
    if callable(found):
        spec: dict[str, Any] = {"source": target}
    elif isinstance(found, Mapping):
        spec = {str(key): value for key, value in found.items()}
    else:
        raise ConfigError(
            f"{group}={name}: {target!r} is neither a function that gives documents nor a mapping "
            "of a corpus's options"
        )
    if group == "corpus":
        return {name: spec}
    sampling = {"num_samples": 32, "max_seq_len": 512, "seed": "${seed}"}
    return {"name": name, **spec, **sampling}
