"""The unquantized conversion of a model, which all GGUF types of it are made from.

Starting the converter takes longer than converting a small model and quantizing it, so small
conversions are kept for the next type of the same model.
"""

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qsweep.base.contents import has_figures
from qsweep.base.errors import ArtifactCorrupt, UnknownLayout
from qsweep.base.files import read_json, write_json
from qsweep.base.keys import key_of
from qsweep.base.locks import FileLock
from qsweep.base.manifest import open_entry, seal
from qsweep.base.owners import temporary
from qsweep.base.publish import publish
from qsweep.formats.gguf.checkpoint import Checkpoint, open_checkpoint
from qsweep.formats.gguf.converter import convert, package_version
from qsweep.formats.gguf.layout import derive
from qsweep.formats.gguf.reader import read_gguf
from qsweep.formats.gguf.rules import Layout, from_json, to_json
from qsweep.models.facts import readable_directory
from qsweep.models.source import SourceModel
from qsweep.quantizers.conversion.agreement import VERSION as AGREEMENT_VERSION
from qsweep.quantizers.conversion.agreement import measure_agreement

# Conversions below this many bytes are kept, beside the output; three at most.
_KEPT_BYTES = 2e9
_KEPT = 3
_VERSION = 4
_LAYOUT = "layout.json"
# Nobody quantizes from a kept conversion for longer than this.
_IN_USE_S = 3600


@dataclass(frozen=True)
class UnquantizedFile:
    """An unquantized file and how the checkpoint lies in it.

    ``added`` is the metadata that the converter forgot, ``agreement`` what
    :func:`~qsweep.quantizers.conversion.agreement.measure_agreement` found of the file. Where ``layout`` does not
    explain the whole file, ``unexplained`` says what it leaves out.
    """

    path: Path
    layout: Layout
    checkpoint: Checkpoint
    added: dict[str, Any] = field(default_factory=dict)
    agreement: dict[str, Any] = field(default_factory=dict)
    unexplained: str | None = None


@contextmanager
def unquantized(model: SourceModel, out: Path) -> Iterator[UnquantizedFile]:
    """Convert ``model``, or find it converted; temporary files go into the directory ``out``.

    Small conversions stay in ``.conversions`` beside ``out``, so that the other types of a sweep
    find them. The type of the matrices is such that all values are kept exactly.

    Raises:
        BackendUnavailable: llama-cpp-python or its converter is not installed.
        IncompatibleTrial: the converter refuses the model.
    """
    checkpoint = open_checkpoint(model.path)
    kept = out.parent / ".conversions"
    kept.mkdir(exist_ok=True)
    identity = _identity(model)
    place = kept / key_of(identity)
    lock = FileLock(kept / f"{place.name}.lock", optional=True)
    if sum(info.bits for info in checkpoint.infos.values()) / 8 > _KEPT_BYTES:
        with tempfile.TemporaryDirectory(dir=out) as folder:
            base = _make(model, checkpoint, Path(folder))
            with lock:
                base = _compared(base, model, place, out)
            yield base
        return
    with lock:
        found = _open(checkpoint, place)
        if found is None:
            half = temporary(place)
            half.mkdir()
            try:
                _make(model, checkpoint, half)
                seal(half, identity, {})
                publish(half, place, lambda: _open(checkpoint, place) is not None)
            finally:
                # Half a file must not keep the room that the results need.
                shutil.rmtree(half, ignore_errors=True)
            _prune(kept)
            found = _open(checkpoint, place)
        assert found is not None
        base = _compared(found, model, place, out)
    yield base


def _compared(
    base: UnquantizedFile, model: SourceModel, place: Path, work: Path
) -> UnquantizedFile:
    """Once per model: what was measured outlives the conversion; a failure is tried again."""
    file = place.with_name(f"{place.name}.agreement-{AGREEMENT_VERSION}.json")
    with contextlib.suppress(OSError, ValueError):
        if has_figures(known := read_json(file)) and "agrees" in known:
            return replace(base, agreement=known)
    found = measure_agreement(base.path, base.checkpoint.base_type.upper(), model, work)
    if found.kld is not None:
        write_json(file, found.content())
    return replace(base, agreement=found.content())


def _make(model: SourceModel, checkpoint: Checkpoint, folder: Path) -> UnquantizedFile:
    from safetensors.torch import save_file

    path, links = folder / "base.gguf", folder / "source" / model.path.name
    # The converter looks for files by itself, by rules of its own.
    source = readable_directory(model.path, links)
    trusted = model.trust_remote_code
    try:
        notes = convert(source, path, checkpoint.base_type, trust_remote_code=trusted)
    finally:
        shutil.rmtree(links.parent, ignore_errors=True)
    linears = {checkpoint.place(name).tensor for name in model.facts.linears}
    unexplained = None
    try:
        layout = derive(checkpoint, read_gguf(path), notes.groups, notes.skipped, linears)
    except UnknownLayout as error:
        layout, unexplained = error.known, str(error)
    if layout.orders:
        save_file(dict(layout.orders), folder / "layout.safetensors")
    content = {
        "tensors": to_json(layout, checkpoint.infos),
        "added": notes.added,
        "unexplained": unexplained,
    }
    (folder / _LAYOUT).write_text(json.dumps(content))
    return UnquantizedFile(path, layout, checkpoint, notes.added, unexplained=unexplained)


def _open(checkpoint: Checkpoint, folder: Path) -> UnquantizedFile | None:
    from safetensors.torch import load_file

    try:
        open_entry(folder, full=True)
    except ArtifactCorrupt as error:
        if folder.exists():
            print(f"note: {error}; it counts as absent", file=sys.stderr)
        return None
    (folder / _LAYOUT).touch()
    orders_file = folder / "layout.safetensors"
    orders = load_file(orders_file) if orders_file.exists() else {}
    content = read_json(folder / _LAYOUT)
    layout = from_json(content["tensors"], checkpoint.infos, orders)
    unexplained = content.get("unexplained")
    return UnquantizedFile(
        folder / "base.gguf", layout, checkpoint, content["added"], unexplained=unexplained
    )


def _identity(model: SourceModel) -> dict[str, Any]:
    # Nobody can set back the time of a file's last change, as a copy sets that of its content.
    stats = {p.name: p.stat() for p in sorted(model.path.iterdir()) if p.is_file()}
    return {
        "version": _VERSION,
        "converter": package_version(),
        "model": str(model.path.resolve()),
        "files": {
            name: [s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in stats.items()
        },
        "trust_remote_code": model.trust_remote_code,
    }


def _prune(kept: Path) -> None:
    used = {p.parent: p.stat().st_mtime for p in kept.glob(f"*/{_LAYOUT}")}
    for folder in sorted(used, key=used.__getitem__, reverse=True)[_KEPT:]:
        if time.time() - used[folder] > _IN_USE_S:
            shutil.rmtree(folder, ignore_errors=True)
