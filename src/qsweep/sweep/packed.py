"""A reference pack in place of a model: what a trial refers to comes from it, and lies in the store.

Its entries are keyed by its signature, so that they are never taken for what was measured here.
"""

from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ConfigError, in_one_line
from qsweep.base.keys import key_of
from qsweep.base.names import absolute_path
from qsweep.base.store import Kind, Make, Store
from qsweep.evaluate.packs.header import (
    Pack,
    PackedMeasurement,
    open_pack,
    require_intact,
    signed_identity,
)
from qsweep.formats.artifact import Artifact, from_content
from qsweep.formats.container import container
from qsweep.models.source import ModelFacts
from qsweep.quantizers.artifact import ExistingArtifact
from qsweep.quantizers.none import Unquantized
from qsweep.sweep.config import TrialConfig
from qsweep.text.corpus import CorpusConfig
from qsweep.text.stored import stored_text
from qsweep.text.tokenizer_fingerprint import has_tokenizer, tokenizer_fingerprint

if TYPE_CHECKING:
    from qsweep.text.windows import Windows


_DEFAULTS = {field.name: field.default for field in fields(CorpusConfig) if field.name != "name"}


def pack_of(trial: TrialConfig, store: Store) -> Pack | None:
    """The pack that a trial names, once it is clear that it has what the trial asks for.

    Raises:
        ConfigError: One line: it is none, or a pack does not have that.
    """
    if trial.model.pack is None:
        return None
    pack = open_pack(absolute_path(trial.model.pack, "model.pack"))
    where = f"model.pack={trial.model.pack}"
    if not isinstance(trial.quant, (ExistingArtifact, Unquantized)):
        raise ConfigError(
            f"{where}: a reference pack has no weights to quantize; give the model itself "
            "(model.path=DIR), or measure an artifact that exists"
        )
    if trial.kv_cache and isinstance(trial.quant, Unquantized):
        raise ConfigError(
            f"{where}: kv_cache={trial.kv_cache} of the model itself needs the model, and a "
            "reference pack has no layers; give model.path=DIR, or measure an artifact with it"
        )
    for option, what in (("tasks", "tasks"), ("speed", "speed"), ("kld_native", "kld_native")):
        if getattr(trial.eval, option):
            raise ConfigError(
                f"{where}: eval.{what} needs the model itself, and a reference pack has only what "
                "perplexity and divergence need; leave it out, or give model.path=DIR"
            )
    _require_measured(trial, pack, where, store)
    return pack


def import_pack(pack: Pack, store: Store, *, full: bool = False) -> Path:
    """Bring what a pack holds into the store, unless it is there; returns the pack's own entry.

    That is a directory with the windows, and a checkpoint of the output head alone.

    Args:
        pack: Compared with its signature before anything is taken from it.
        store: Where to.
        full: Whether files that are there are hashed.

    Raises:
        ConfigError: The pack is not what was written.
    """
    wanted = list(_entries(pack, store))

    def held(kind: Kind, key: str) -> bool:
        # Of the caches of references it is enough to know of them, until something is measured.
        known = full or kind != "references"
        return (store.find(kind, key, full=full) if known else store.look(kind, key)) is not None

    if not all(held(kind, key_of(of)) for kind, of, _ in wanted):
        require_intact(pack)
        for kind, of, make in wanted:
            store.build(kind, of, make)
    return store.path("packs", key_of(pack.identity))


def packed_facts(pack: Pack, directory: Path) -> ModelFacts:
    """What is known of the model; its directory is what :func:`import_pack` has made."""
    model = pack.header.model
    return ModelFacts(
        name=model.name,
        path=directory,
        model_type=model.model_type,
        linears=dict(model.linears),
        parameters=model.parameters,
        max_length=model.max_length,
        vocab_size=model.vocab_size,
        experts=model.experts,
    )


def packed_artifact(pack: Pack, directory: Path) -> Artifact:
    """The unquantized model as an artifact, of which only the head is here."""
    return from_content(directory, dict(pack.header.model.artifact))


def packed_measurement(pack: Pack, corpus: str, preset: str) -> PackedMeasurement:
    """What a pack, in which that was looked up before, has of a corpus and preset."""
    found = pack.header.measurement(corpus, preset)
    assert found is not None
    return found


def packed_windows(pack: Pack, directory: Path, one: PackedMeasurement) -> "Windows":
    """The windows of a measurement, from the pack's own entry in the store."""
    from qsweep.evaluate.packs.file import unpacked_windows

    return unpacked_windows(directory, pack, pack.header.measurements.index(one))


def require_same_tokenizer(pack: Pack, artifact: Artifact) -> None:
    """Refuse an artifact whose tokenizer would cut texts otherwise than the reference's.

    One that brings none is taken to be of the reference's model. An unquantized one may have added
    tokens of its own, as a fine-tune does against the model itself: they cut no text otherwise.

    Raises:
        ConfigError: One line on what differs, or on why its tokenizer cannot be read.
    """
    from transformers import AutoTokenizer

    place = artifact.files
    if not has_tokenizer(place):
        return
    wanted = pack.header.model.tokenizer
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        first = None if container(artifact.format).quantized else wanted.pieces
        found = tokenizer_fingerprint(tokenizer, first)
    except Exception as error:  # of the tokenizers library, whose errors have no kind
        raise ConfigError(
            f"{place}: its tokenizer cannot be read ({in_one_line(error)})"
        ) from error
    if (what := wanted.difference(found)) is not None:
        raise ConfigError(
            f"{place}: its tokenizer is not that of {pack.header.model.name} in "
            f"{pack.path}: {what}; it is measured against a reference of its own model only"
        )


def _require_measured(trial: TrialConfig, pack: Pack, where: str, store: Store) -> None:
    header = pack.header
    cut = [corpus for corpus in trial.corpora if not corpus.answers]
    for option, asked, there in (
        ("corpus", [c.name for c in trial.corpora], header.corpora),
        ("eval.presets", list(trial.eval.presets) if cut else [], header.presets),
    ):
        if lacking := [name for name in asked if name not in there]:
            raise ConfigError(
                f"{where}: has no {option}={lacking[0]}; there are {', '.join(there)}"
            )
    for corpus in trial.corpora:
        presets = trial.eval.presets_for(corpus)
        if header.measurement(corpus.name, presets[0]) is None:
            raise ConfigError(
                f"{where}: {corpus.name} was measured otherwise "
                f"(corpus.{corpus.name}.assistant_only={str(not corpus.answers).lower()}); leave "
                "corpus= out to measure it so, too"
            )
        one = packed_measurement(pack, corpus.name, presets[0])
        own = {name: value for name, value in vars(corpus).items() if name != "name"}
        # A pack that was made before there was an option has its default.
        known = corpus.source == "pack" or own == {**_DEFAULTS, **one.source}
        # Another place may hold the same text.
        if not known and stored_text(corpus, store).fingerprint != one.reference["text"]:
            raise ConfigError(
                f"{where}: its corpus {corpus.name} is another text than this one; leave "
                "corpus= out to measure on the pack's own"
            )
        for preset in presets:
            _require_same_cut(trial, packed_measurement(pack, corpus.name, preset), where)


def _require_same_cut(trial: TrialConfig, one: PackedMeasurement, where: str) -> None:
    for option in ("context", "stride", "max_windows"):
        asked, cut = getattr(trial.eval, option), getattr(one.cut, option)
        if option == "stride" and cut is None:
            continue  # of a preset whose windows do not overlap
        if asked not in (None, cut, one.reference["overrides"].get(option)):
            there = "all windows" if cut is None else f"eval.{option}={cut}"
            raise ConfigError(
                f"{where}: {one.corpus} ({one.preset}) was measured with {there}, which "
                f"eval.{option}={asked} cannot change; leave it out"
            )


def _entries(pack: Pack, store: Store) -> Iterator[tuple[Kind, dict[str, Any], Make]]:
    from qsweep.evaluate.packs.file import unpack_frame, unpack_reference

    yield "packs", dict(pack.identity), partial(unpack_frame, pack)
    for number, one in enumerate(pack.header.measurements):
        reference = signed_identity(one.reference, pack)
        yield "references", reference, partial(unpack_reference, pack, number)
        measurement = signed_identity(one.measurement, pack)
        yield "measurements", measurement, partial(_unpack_measurement, pack, store, number)


def _unpack_measurement(pack: Pack, store: Store, number: int, out: Path) -> dict[str, Any]:
    from qsweep.evaluate import reference_measurement, save_measurement
    from qsweep.evaluate.packs.file import unpacked_windows

    one = pack.header.measurements[number]
    windows = unpacked_windows(store.path("packs", key_of(pack.identity)), pack, number)
    entry = store.require("references", key_of(signed_identity(one.reference, pack)))
    found = reference_measurement(entry.path, windows)
    found.metrics, found.facts = dict(one.content["metrics"]), dict(one.content["facts"])
    save_measurement(found, out)
    return dict(one.content)
