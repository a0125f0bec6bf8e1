"""An artifact that is there already, whoever made it: nothing is quantized, it is only measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from qsweep.base.errors import ConfigError
from qsweep.base.files import read_json
from qsweep.base.keys import key_of
from qsweep.base.manifest import MANIFEST, open_entry
from qsweep.base.progress import Progress, silent
from qsweep.formats.artifact import Artifact, from_content
from qsweep.formats.recognize import recognize
from qsweep.models.facts import read_config
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.text.calibration import CalibrationTokens

_SHOWN = ("bits", "group_size", "desc_act", "sym", "type")


@dataclass(frozen=True)
class Existing:
    """Takes a directory as it is: one of the store's artifacts, or a Hugging Face checkpoint.

    Attributes:
        path: The directory.
    """

    path: str

    method: ClassVar[str] = "existing"
    backend: ClassVar[str] = "qsweep"
    uses_calibration: ClassVar[bool] = False

    def options(self) -> dict[str, Any]:
        """What it says of itself, and a key of its files: of their names, sizes and times."""
        place = Path(self.path)
        stats = [(file, file.stat()) for file in _files(place)]
        state = [[str(f.relative_to(place)), s.st_size, s.st_mtime_ns] for f, s in stats]
        return {**_stated(place), "files": key_of(state)}

    def version(self) -> str:
        """The revision of this module."""
        return "1"

    def check(self, model: ModelFacts) -> None:
        """Whether it fits the model is seen when it is loaded."""

    def quantize(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        out: Path,
        progress: Progress = silent,
    ) -> Artifact:
        """Link its files into ``out``."""
        found = read_existing(Path(self.path))
        for file in _files(found.path):
            link = out / file.relative_to(found.path)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
        return Artifact(out, found.format, found.size, found.runtimes, found.details)


def read_existing(path: Path) -> Artifact:
    """The artifact that a directory is.

    Raises:
        ConfigError: it is none that can be measured; the line says why.
        ArtifactCorrupt: it is one of the store's, and damaged.
    """
    if _of_the_store(path):
        entry = open_entry(path)
        return from_content(path, entry.content)
    found = recognize(path)
    if found.name == "gguf":
        raise ConfigError(
            f"{path}: a GGUF file of another maker; it is not known yet which tensor of the "
            "checkpoint each of its tensors is. quant=gguf makes one"
        )
    return Artifact(path, found.name, found.size(path))


def _of_the_store(path: Path) -> bool:
    return path.parent.name == "artifacts" and (path / MANIFEST).is_file()


def _stated(path: Path) -> dict[str, Any]:
    """The options that rows are told apart by, as far as the artifact states them."""
    if _of_the_store(path):
        stated = read_json(path / MANIFEST).get("identity", {}).get("options") or {}
    else:
        stated = read_config(path).get("quantization_config") or {}
    return {
        name: stated[name]
        for name in _SHOWN
        if name in stated and isinstance(stated[name], (bool, int, str))
    }


def _files(path: Path) -> list[Path]:
    return sorted(f for f in path.rglob("*") if f.is_file() and f.name != MANIFEST)
