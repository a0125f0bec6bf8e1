"""An artifact that is there already, whoever made it: nothing is quantized, it is only measured."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from qsweep.base.errors import (
    AnotherModel,
    ArtifactCorrupt,
    ConfigError,
    IncompatibleTrial,
    QsweepError,
    TrialFailed,
)
from qsweep.base.file_hashes import file_hash
from qsweep.base.keys import key_of
from qsweep.base.manifest import open_entry
from qsweep.base.progress import Progress, silent
from qsweep.base.store import Store
from qsweep.formats.artifact import Artifact, from_content
from qsweep.formats.artifact_files import counting_files, find_place, is_stored, whole_name
from qsweep.formats.belonging.difference import Difference, notes, refusal
from qsweep.formats.container import Container, container
from qsweep.formats.packed import PackedContainer
from qsweep.formats.provenance import Provenance, read_provenance
from qsweep.formats.recognize import recognize
from qsweep.models.roles import EXPERT
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.quantizers.serving import closed_to
from qsweep.text.calibration import CalibrationTokens

_LONGEST_NAME = 56


@dataclass(frozen=True)
class ExistingArtifact:
    """Measures what is there: a GGUF file, a checkpoint's directory, or an entry of a store.

    Attributes:
        path: The file or directory; of an artifact from a hub, where it was downloaded to.
        repo: The hub's repository that it comes from.
        file: Which file of the repository, where it is not a whole checkpoint.
        revision: Of the repository.
        content: Hash of the files that determine what it computes, which planning finds; a trial
            measures nothing else.
    """

    path: str | None = None
    repo: str | None = None
    file: str | None = None
    revision: str = "main"
    content: str | None = None

    method: ClassVar[str] = "existing"
    backend: ClassVar[str] = "qsweep"
    uses_calibration: ClassVar[bool] = False

    def __post_init__(self):
        if self.path is None and self.repo is None:
            raise ConfigError("quant=artifact: give quant.path=FILE|DIR, or quant.repo=ORG/NAME")

    @cached_property
    def place(self) -> Path:
        """Where it lies, absolute. Raises ConfigError where nothing does."""
        return find_place(str(self.path))

    @cached_property
    def provenance(self) -> Provenance:
        """What it says of itself; nothing where that cannot be read."""
        try:
            return read_provenance(self.place)
        except (QsweepError, AttributeError, KeyError, OSError, TypeError, ValueError):
            return Provenance()

    @cached_property
    def quantizes_activations(self) -> bool:
        """Whether it says that it is served with quantized activations; not where none can be read."""
        try:
            return container_of(self.place).quantizes_activations(self.place)
        except (QsweepError, OSError):
            return False  # :meth:`check` says why

    @property
    def label(self) -> str:
        """What a row is called: what it states of itself, then the file's or repository's name."""
        stated = self.provenance.options or {}
        words = [self.provenance.method or "unquantized"]
        if stated.get("type"):
            words.append(str(stated["type"]))
        elif stated.get("bits"):
            words.append(f"{stated['bits']}-bit")
        if (group := stated.get("group_size")) is not None and not stated.get("type"):
            words.append("channel" if group == -1 else f"g{group}")
        return " ".join([*words, "·", self._name()])

    def options(self) -> dict[str, Any]:
        """What it states of itself, for tables, and the hash of what it is."""
        return {**(self.provenance.options or {}), "content": self.content}

    def version(self) -> str:
        """The revision of what is kept beside an artifact."""
        return "2"

    def identified(self, store: Store) -> "ExistingArtifact":
        """The same with its content hashed; as it is where it cannot be read, for :meth:`check`."""
        try:
            return replace(self, content=self._hash(store))
        except (QsweepError, OSError):
            return self

    def require_unchanged(self, store: Store) -> None:
        """Refuse to go on with other files than those that were planned with.

        Raises:
            TrialFailed: They are no longer what they were, or gone.
        """
        try:
            now = self._hash(store)
        except (QsweepError, OSError) as error:
            raise TrialFailed(
                f"{self.path}: changed since the sweep was planned: {error}"
            ) from error
        if now != self.content:
            raise TrialFailed(
                f"{self.path}: changed since the sweep was planned, so nothing of it is recorded; "
                "run it again when nobody writes it"
            )

    def check(self, model: ModelFacts) -> None:
        """Refuse what cannot be read, or is not of this model; see ``formats.belonging``.

        Raises:
            AnotherModel: It is not one of this model.
            IncompatibleTrial: It is in no container that can be read.
            ArtifactCorrupt: It is damaged.
        """
        if (line := refusal(self._differences(model.path))) is not None:
            made_of = self.provenance.base_models
            hint = f" (it says that it was made of {made_of[0]})" if made_of else ""
            raise AnotherModel(f"{self.place}: is not one of {model.name}: {line}{hint}")

    def quantize(
        self,
        model: SourceModel,
        calibration: CalibrationTokens | None,
        out: Path,
        progress: Progress = silent,
    ) -> Artifact:
        """Write into ``out`` what reading it takes, and count what it stores; it stays where it is."""
        found = adopt(self.place, model, out)
        differences = self._differences(model.path)
        belonging = dict(found.details.get("belonging") or {})
        of_the_container = (belonging.get("notes"), found.details.get("unlike_ours"))
        said = [str(line) for lines in of_the_container for line in lines or ()]
        belonging["notes"] = notes(differences) + said
        for line in belonging["notes"]:
            print(f"{self.label}: {line}", flush=True)
        stated = self.provenance.details()
        details = {**found.details, "belonging": belonging, "provenance": stated}
        return replace(found, runtimes=found.runtimes or self._served(model), details=details)

    def _served(self, model: SourceModel) -> tuple[str, ...]:
        """What can serve it, as far as its settings tell."""
        holder = container_of(self.place)
        served = holder.served_by(self.provenance.options or {})
        if not isinstance(holder, PackedContainer):
            return served
        stored = [
            tensor.name.removesuffix(".weight")
            for tensor in holder.stored(self.place)
            if tensor.quantized and EXPERT.search(tensor.name)
        ]
        unreadable = set(served) - set(holder.loading_experts)
        closed = closed_to(model.facts, stored, holder.name, unreadable)
        if (self.provenance.producer or "").startswith("gptqmodel"):
            closed.discard("gptqmodel")  # who made it loads it
        return tuple(name for name in served if name not in closed)

    def _differences(self, base: Path) -> list[Difference]:
        try:
            if is_stored(self.place):
                return []
            found = container_of(self.place)
            counting_files(self.place)  # raises why there are no weights
            return found.differences(self.place, base)
        except ConfigError as error:
            raise IncompatibleTrial(str(error)) from error
        except OSError as error:
            raise ArtifactCorrupt(f"{self.place}: {error.strerror or error}") from error

    def _hash(self, store: Store) -> str:
        place = find_place(str(self.path))
        return key_of({name: file_hash(store, f) for name, f in counting_files(place).items()})

    def _name(self) -> str:
        if self.repo is None:
            name = whole_name(Path(str(self.path)))
            if is_stored(Path(str(self.path))):
                name = name[:8]
        elif self.file is None:
            name = self.repo
        else:
            name = whole_name(Path(self.file))
        if self.revision != "main":
            name += f"@{self.revision}"
        name = "".join(c if c.isprintable() else "?" for c in name)
        half = _LONGEST_NAME // 2
        return name if len(name) <= _LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"


def adopt(place: Path, model: SourceModel, out: Path) -> Artifact:
    """The artifact at a place, with what reading it takes kept in ``out``.

    Args:
        place: A GGUF file, a checkpoint's directory or an entry of a store.
        model: The unquantized model.
        out: An empty directory.

    Raises:
        ConfigError: It is none that can be measured; the line says why.
        ArtifactCorrupt: It is damaged.
    """
    if is_stored(place):
        made = from_content(place, open_entry(place, full=True).content)
        for file in sorted(place.iterdir()):
            if file.name in _KEPT_BESIDE:
                (out / file.name).write_bytes(file.read_bytes())
        return replace(made, path=out, origin=place)
    found = recognize(place)
    if found.name != "gguf":
        return found.adopt(place, model.path, out)
    from qsweep.quantizers.gguf.foreign import foreign_artifact

    return replace(foreign_artifact(model, place, out), origin=place)


def container_of(place: Path) -> Container:
    """What reads the artifact at a place. Raises ConfigError or ArtifactCorrupt."""
    if is_stored(place):
        return container(str(open_entry(place).content["format"]))
    return recognize(place)


# What of an entry of a store is no weights, and small: how a checkpoint lies in a GGUF file.
_KEPT_BESIDE = ("layout.safetensors",)
