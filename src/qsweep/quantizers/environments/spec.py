"""What an environment consists of: one YAML each in ``conf/quant/env``."""

import hashlib
import json
import re
import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qsweep.base.errors import ConfigError
from qsweep.base.files import read_regular
from qsweep.base.names import folder_name
from qsweep.base.schema import build, nearest

_CLAUSE = re.compile(r"(>=|<=|==|!=|<|>)\s*(\d+)\.(\d+)")


@dataclass(frozen=True)
class EnvSpec:
    """An environment's Python, its exact pins, and the flags that its builds need.

    Attributes:
        name: What its folder and commands call it.
        library: The distribution whose version counts: it is part of every artifact's key.
        install: Arguments of the installer, one string per call, in order.
        python: Which versions of Python will do, such as ``>=3.10,<3.13``; empty: any.
        imports: The module whose import proves that it works.
        disk_gb: Free space that its creation takes.
        cuda: Whether its library does nothing without CUDA.
        file: The YAML file that describes it, where it is the user's own.
    """

    name: str
    library: str
    install: tuple[str, ...]
    python: str = ""
    imports: str = ""
    disk_gb: float = 2.0
    cuda: bool = False
    file: str = ""

    def __post_init__(self) -> None:
        folder_name(self.name, "environment")
        if not self.install:
            raise ConfigError(f"environment {self.name}: install names no package")
        for clause in filter(None, self.python.split(",")):
            if not _CLAUSE.fullmatch(clause.strip()):
                raise ConfigError(
                    f"environment {self.name}: python={self.python}: write it as >=3.10,<3.13"
                )

    @property
    def called(self) -> str:
        """What commands call it."""
        return self.file or self.name

    def accepts(self, version: tuple[int, int]) -> bool:
        """Whether a Python of that major and minor version will do."""
        for operator, major, minor in _CLAUSE.findall(self.python):
            bound = (int(major), int(minor))
            if not {
                ">=": version >= bound,
                "<=": version <= bound,
                "==": version == bound,
                "!=": version != bound,
                "<": version < bound,
                ">": version > bound,
            }[operator]:
                return False
        return True

    def pins(self) -> dict[str, str]:
        """The versions that are asked for exactly, by distribution."""
        words = [word for line in self.install for word in shlex.split(line)]
        return dict(word.split("==", 1) for word in words if "==" in word)

    def fingerprint(self) -> str:
        """A hash of all that determines the environment's content."""
        content = {k: v for k, v in asdict(self).items() if k in ("install", "python", "library")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def load_spec(name: str) -> EnvSpec:
    """The environment of that name, or the one in a YAML file of your own.

    Raises:
        ConfigError: There is none, or the file is no such thing.
    """
    if name.endswith((".yaml", ".yml")):
        file = Path(name).expanduser()
        if not file.exists():
            raise ConfigError(f"environment {name}: no such file")
        return replace(_read(file), file=name)
    names = spec_names()
    if name not in names:
        raise ConfigError(f"no environment {name!r}{nearest(name, names)}; or give a YAML file")
    return _read(spec_folder() / f"{name}.yaml")


def spec_names() -> list[str]:
    """The environments that come with qsweep."""
    return sorted(file.stem for file in spec_folder().glob("*.yaml"))


def spec_folder() -> Path:
    """Where their files are."""
    from qsweep.base.config_files import config_folder

    return config_folder("conf") / "quant" / "env"


def _read(file: Path) -> EnvSpec:
    import yaml

    try:
        values: Any = yaml.safe_load(read_regular(file).decode("utf-8"))
    except (OSError, UnicodeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read as YAML ({_line(error)})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: holds no mapping; it needs library and install")
    return build(EnvSpec, {"name": file.stem, **values}, str(file))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
