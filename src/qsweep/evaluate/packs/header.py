"""What a reference pack says of itself, and reading that from a file which may be anything.

A pack is one safetensors file. Its header's metadata has ``format``, ``version``, ``protocol``,
``signature`` (SHA-256 of the file with zeros in its own place) and ``reference``, JSON of
:class:`PackHeader`. For each measurement n it holds the tensors ``n.ids`` int32 [windows, context],
``n.first_scored`` and ``n.lengths`` int64 [windows], of conversations ``n.mask`` uint8 [windows,
context], ``n.nll`` float32, ``n.first`` int32 and
``n.confidence`` float32 [tokens], ``n.probe`` float32 [few, vocabulary] and ``n.features`` [tokens,
width]; of the output head each parameter as ``head.NAME``, and its scales where it is narrower; the
tokenizer's files as ``file.NAME``, uint8.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ConfigError
from qsweep.base.files import state_of
from qsweep.base.names import check_label
from qsweep.base.typed_json import JsonMismatch, parse
from qsweep.evaluate.measurement import PROTOCOL_VERSION
from qsweep.evaluate.packs.heads import EXACT, HEADS
from qsweep.models.safetensors_header import TensorHeader, read_annotated
from qsweep.models.safetensors_writer import seal_of
from qsweep.text.conversations import NOTED
from qsweep.text.tokenizer_fingerprint import TokenizerFingerprint
from qsweep.text.windows import CONVERSATIONS, PRESETS, Preset

if TYPE_CHECKING:
    from qsweep.text.windows import Windows

FORMAT = "qsweep reference pack"
VERSION = 1
SIGNATURE = "signature"
# Names of a mixture's layers may be many; nothing else is long.
_LONGEST_HEADER = 64_000_000
_PER_TOKEN = {"nll": "F32", "first": "I32", "confidence": "F32"}
_WINDOWS = {"ids": "I32", "first_scored": "I64", "lengths": "I64"}
_MASK = "mask"


@dataclass(frozen=True)
class PackedMeasurement:
    """The reference on one corpus by one preset.

    Attributes:
        corpus: The corpus' name.
        source: Where its text came from: for comparison only, nothing is ever loaded from there.
        preset: As in ``eval.presets``; ``cut`` is what the windows were cut by.
        bos: As in :class:`~qsweep.text.windows.Windows`.
        reference: Identity of the cached reference, ``measurement`` of its measurement.
        content: What the store says of the measurement: figures, noise floors, facts.
        cache: How the reference was run.
    """

    corpus: str
    source: dict[str, Any]
    preset: str
    cut: Preset
    bos: str
    reference: dict[str, Any]
    measurement: dict[str, Any]
    content: dict[str, Any]
    cache: dict[str, Any]

    @property
    def notes(self) -> dict[str, Any]:
        """What is told of its windows beside what they are."""
        told = self.content["facts"]
        return {name: told[name] for name in NOTED if name in told}

    @property
    def noise_floor(self) -> float | None:
        """The larger of the reference's noise floors; None where none was measured."""
        metrics = self.content["metrics"]
        names = ("kld_floor_dtype", "kld_floor_batch")
        return max((metrics[n] for n in names if metrics.get(n) is not None), default=None)


@dataclass(frozen=True)
class PackedModel:
    """What is known of the reference without its weights.

    Attributes:
        name: What it is called.
        content_hash: Of its files, as in keys.
        config: The text of its ``config.json``.
        artifact: Size and container of the whole model.
        tensors: Dtype and shape of each of its tensors.
        chat_template: SHA-256 of it, None where there is none.
    """

    name: str
    content_hash: str
    config: str
    model_type: str
    linears: dict[str, tuple[int, int]]
    parameters: int
    max_length: int
    vocab_size: int
    experts: bool | None
    artifact: dict[str, Any]
    tensors: dict[str, tuple[str, list[int]]]
    tokenizer: TokenizerFingerprint
    chat_template: str | None


@dataclass(frozen=True)
class PackHeader:
    """All that a pack holds beside tensors.

    Attributes:
        head: ``exact``, or what its weights were narrowed to.
        added: By that, the most that it adds to a divergence; see ``added_divergence``.
        dtype: What the reference was run in, on a device of ``device_type``.
    """

    model: PackedModel
    measurements: tuple[PackedMeasurement, ...]
    head: str
    dtype: str
    device_type: str
    qsweep: str
    added: float = 0.0

    def measurement(self, corpus: str, preset: str) -> PackedMeasurement | None:
        """What there is of a corpus and preset."""
        chosen = (m for m in self.measurements if (m.corpus, m.preset) == (corpus, preset))
        return next(chosen, None)

    @property
    def corpora(self) -> list[str]:
        """Names of the corpora, in order."""
        return list(dict.fromkeys(m.corpus for m in self.measurements))

    @property
    def presets(self) -> list[str]:
        """Names of the presets that ``eval.presets`` chose, in order."""
        return list(dict.fromkeys(m.preset for m in self.measurements if m.preset in PRESETS))

    @property
    def conversations(self) -> list[str]:
        """Names of the corpora of which only answers are scored."""
        return [m.corpus for m in self.measurements if m.preset == CONVERSATIONS.name]


@dataclass(frozen=True)
class Pack:
    """An opened pack: its header, its signature as stated, and where its tensors lie."""

    path: Path
    header: PackHeader
    signature: str
    tensors: Mapping[str, TensorHeader]

    @property
    def words(self) -> str:
        """What a record says of the reference that a trial was measured against."""
        head = "" if self.header.head == EXACT else f", head in {self.header.head}"
        made = f"{self.header.dtype} on {self.header.device_type}"
        return f"pack {self.signature[:16]} ({made}{head})"

    @property
    def identity(self) -> dict[str, str]:
        """What the store knows it by."""
        return {"pack": self.signature}

    def windows_tensors(self, number: int) -> list[str]:
        """Of a measurement's tensors the names of those that are its windows."""
        return [name for name in (*_WINDOWS, _MASK) if f"{number}.{name}" in self.tensors]


def notes_of(header: PackHeader) -> dict[str, str]:
    """A header as the metadata of a safetensors file, all but the signature."""
    return {
        "format": FORMAT,
        "version": str(VERSION),
        "protocol": str(PROTOCOL_VERSION),
        "reference": json.dumps(asdict(header), separators=(",", ":"), sort_keys=True),
    }


def open_pack(path: Path) -> Pack:
    """Read what a pack says of itself; its tensors are for :func:`require_intact`.

    Raises:
        ConfigError: One line: it is none, cut short, or of another version.
    """
    return _open(path, state_of(path.parent, [path.name]))


def require_intact(pack: Pack) -> None:
    """Compare a pack with its signature, reading all of it; once for a file that nobody touches.

    Raises:
        ConfigError: It is not what was written.
    """
    key = (pack.path, state_of(pack.path.parent, [pack.path.name]))
    if key in _INTACT:
        return
    try:
        found = seal_of(pack.path, SIGNATURE, pack.signature)
    except OSError as error:
        raise ConfigError(f"{pack.path}: cannot be read ({error.strerror or error})") from error
    if found != pack.signature:
        raise ConfigError(
            f"{pack.path}: damaged, its content is not what was signed; fetch it again"
        )
    _INTACT.add(key)


_INTACT: set[tuple[Any, ...]] = set()
_OPENED: dict[tuple[Any, ...], Pack] = {}


def _open(path: Path, state: tuple[Any, ...]) -> Pack:
    key = (path, state)
    if not state or key not in _OPENED:
        _OPENED[key] = _read(path)
    return _OPENED[key]


def _read(path: Path) -> Pack:
    tensors, notes = read_annotated(path, _LONGEST_HEADER)
    if notes.get("format") != FORMAT or SIGNATURE not in notes or "reference" not in notes:
        raise ConfigError(f"{path}: no reference pack; qsweep pack MODEL -o FILE makes one")
    for what, own in (("version", VERSION), ("protocol", PROTOCOL_VERSION)):
        if notes.get(what) != str(own):
            raise ConfigError(
                f"{path}: a reference pack of {what} {notes.get(what, '?')[:20]}, and this qsweep "
                f"has {what} {own}; make it again with qsweep pack"
            )
    try:
        header = parse(PackHeader, notes["reference"])
        _check(header)
        _check_tensors(header, tensors)
    except (JsonMismatch, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: a damaged reference pack ({error})") from error
    return Pack(path, header, notes[SIGNATURE], tensors)


def _check(header: PackHeader) -> None:
    check_label(header.model.name, "its model's name")
    if header.head not in HEADS:
        raise ValueError(f"an unknown head {header.head!r}")
    if not header.measurements:
        raise ValueError("it holds no measurement")
    for one in header.measurements:
        check_label(one.corpus, "name of a text")
        if one.preset not in (*PRESETS, CONVERSATIONS.name):
            raise ValueError(f"an unknown preset {one.preset!r}")
        text, metrics = one.reference["text"], one.content["metrics"]
        if not isinstance(text, str) or not isinstance(metrics, dict):
            raise ValueError(f"{one.corpus}: its figures are none")


def _check_tensors(header: PackHeader, tensors: Mapping[str, TensorHeader]) -> None:
    for number, one in enumerate(header.measurements):
        count, windows = one.content["facts"]["tokens_scored"], one.content["facts"]["windows"]
        for names, rows in ((_PER_TOKEN, count), (_WINDOWS, windows)):
            for name, dtype in names.items():
                found = tensors[f"{number}.{name}"]
                if found.dtype != dtype or found.shape[:1] != (rows,):
                    raise ValueError(f"{number}.{name} is not what the header says")
        answers = one.preset == CONVERSATIONS.name
        if answers and tensors[f"{number}.{_MASK}"].shape != tensors[f"{number}.ids"].shape:
            raise ValueError(f"{number}.{_MASK} is not of the shape of its windows")
        features = tensors[f"{number}.features"].shape
        if features[:1] != (count,) or f"{number}.probe" not in tensors:
            raise ValueError(f"{number}.features is not what the header says")


def measured_windows(one: PackedMeasurement, tensors: "Mapping[str, Any]") -> "Windows":
    """The windows of a measurement from its tensors by their names, ``ids`` and so on."""
    from qsweep.text.windows import Windows

    ids, first_scored, lengths = (tensors[name].long() for name in _WINDOWS)
    mask = tensors[_MASK].bool() if _MASK in tensors else None
    return Windows(ids, first_scored, lengths, one.cut, one.bos, mask, one.notes)


def signed_identity(identity: Mapping[str, Any], pack: Pack) -> dict[str, Any]:
    """The identity of an entry that came from a pack: never that of one that was measured here."""
    return {**identity, **pack.identity}
