"""Writing a reference pack, and laying its parts where a store has them; all of it streamed."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.files import read_regular, write_bytes, write_json, write_text
from qsweep.evaluate.packs.header import (
    SIGNATURE,
    Pack,
    PackHeader,
    measured_windows,
    notes_of,
)
from qsweep.evaluate.packs.heads import SCALE, HeadWeight, decoded, encoded
from qsweep.evaluate.reference import FACTS, SHARD, TOKENS, read_cache
from qsweep.models.facts import OUTLINE
from qsweep.models.safetensors_header import tensor_bytes
from qsweep.models.safetensors_writer import StreamedTensor, by_rows, whole, write_safetensors
from qsweep.text.tokenizer_fingerprint import TOKENIZER_FILES

if TYPE_CHECKING:
    from torch import Tensor

    from qsweep.text.windows import Windows

_HEAD, _FILE = "head.", "file."
_WINDOWS_FILE = "windows.tensors"


def write_pack(
    path: Path,
    header: PackHeader,
    measured: "Sequence[tuple[Windows, Path]]",
    head: Mapping[str, HeadWeight],
    probes: "Sequence[Tensor]",
    tokenizer: Path,
) -> str:
    """Write a pack, whole or not at all; returns its signature.

    Args:
        path: The file.
        header: What it says of itself.
        measured: Windows and directory of the cached reference, for each measurement.
        head: The output head's parameters, not yet narrowed.
        probes: The logits of the first scored tokens of each measurement by the head that is
            packed, float32 [few, vocabulary].
        tokenizer: The directory with the tokenizer's files.

    Raises:
        ArtifactCorrupt: A cached reference cannot be read.
        OSError: names the file.
    """
    tensors: dict[str, StreamedTensor] = {}
    for number, (windows, directory) in enumerate(measured):
        parts = _measurement_tensors(windows, directory, probes[number])
        tensors |= {f"{number}.{name}": tensor for name, tensor in parts}
    for name, weight in head.items():
        for ending, part in encoded(weight, header.head).items():
            tensors[f"{_HEAD}{name}{ending}"] = part.streamed()
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            tensors[f"{_FILE}{name}"] = _of_file(tokenizer / name)
    return write_safetensors(path, tensors, notes_of(header), seal=SIGNATURE)


def write_frame(directory: Path, config: str, head: Mapping[str, HeadWeight]) -> None:
    """Write a checkpoint of an output head alone: its configuration and what weights it has."""
    write_text(directory / "config.json", config)
    tensors = {name: weight.streamed() for name, weight in head.items()}
    if tensors:
        write_safetensors(directory / "model.safetensors", tensors, {"format": "pt"})


def narrowed(head: Mapping[str, HeadWeight], kind: str, dtype: Any) -> dict[str, HeadWeight]:
    """An output head's parameters as they come out of a pack with such a head."""
    return {name: decoded(encoded(weight, kind), dtype) for name, weight in head.items()}


def unpack_frame(pack: Pack, out: Path) -> dict[str, Any]:
    """Lay the head and the windows of a pack into an empty directory.

    It is a checkpoint of the head alone, of which ``load_output_head`` makes the head, with the
    model's tokenizer and the outline of its other tensors (``read_outline``).
    """
    import torch

    dtype = getattr(torch, pack.header.dtype)
    write_frame(out, pack.header.model.config, _packed_head(pack, dtype))
    ids = {
        f"{number}.{name}": StreamedTensor(info.dtype, info.shape, partial(tensor_bytes, info))
        for number in range(len(pack.header.measurements))
        for name in pack.windows_tensors(number)
        for info in [pack.tensors[f"{number}.{name}"]]
    }
    # Not a checkpoint's weights by its name: a directory of a model is looked through for those.
    write_safetensors(out / _WINDOWS_FILE, ids)
    for name in TOKENIZER_FILES:
        if (info := pack.tensors.get(f"{_FILE}{name}")) is not None:
            write_bytes(out / name, b"".join(tensor_bytes(info)))
    write_json(out / OUTLINE, pack.header.model.tensors)
    return {"model": pack.header.model.name}


def unpack_reference(pack: Pack, number: int, out: Path) -> dict[str, Any]:
    """Lay a measurement's cached reference into an empty directory, as ``build_reference`` does."""
    from safetensors.torch import save_file

    names = ("nll", "first", "confidence", "probe")
    tokens = _read_tensors(pack.path, {name: f"{number}.{name}" for name in names})
    tokens["first"] = tokens["first"].long()
    save_file(tokens, out / TOKENS)
    info = pack.tensors[f"{number}.features"]
    features = StreamedTensor(info.dtype, info.shape, partial(tensor_bytes, info))
    write_safetensors(out / SHARD.format(0), {"features": features})
    write_json(out / FACTS, {**pack.header.measurements[number].cache, "ends": [info.shape[0]]})
    return {}


def unpacked_windows(directory: Path, pack: Pack, number: int) -> "Windows":
    """The windows of a measurement from what :func:`unpack_frame` wrote."""
    names = {name: f"{number}.{name}" for name in pack.windows_tensors(number)}
    tensors = _read_tensors(directory / _WINDOWS_FILE, names)
    return measured_windows(pack.header.measurements[number], tensors)


def _measurement_tensors(
    windows: "Windows", directory: Path, probe: "Tensor"
) -> Iterator[tuple[str, StreamedTensor]]:
    import torch

    _, tokens, shards = read_cache(directory)
    yield "ids", whole(windows.ids.to(torch.int32))
    yield "first_scored", whole(windows.first_scored)
    yield "lengths", whole(windows.lengths)
    if windows.mask is not None:
        yield "mask", whole(windows.mask.to(torch.uint8))
    yield "nll", whole(tokens["nll"])
    yield "first", whole(tokens["first"].to(torch.int32))
    yield "confidence", whole(tokens["confidence"])
    yield "probe", whole(probe)
    first = shards.read(slice(0, 1))
    shape = (len(tokens["nll"]), first.shape[1])
    yield "features", by_rows(shape, first.dtype, lambda a, b: shards.read(slice(a, b)))


def _of_file(file: Path) -> StreamedTensor:
    content = read_regular(file)
    return StreamedTensor("U8", (len(content),), lambda: [content])


def _packed_head(pack: Pack, dtype: Any) -> dict[str, HeadWeight]:
    from safetensors import safe_open

    file = safe_open(pack.path, framework="pt", device="cpu")

    def weight(name: str) -> HeadWeight:
        found = file.get_slice(name)
        kind = found[:1].dtype
        return HeadWeight(tuple(found.get_shape()), kind, lambda a, b: found[a:b])

    names = [n for n in pack.tensors if n.startswith(_HEAD) and not n.endswith(SCALE)]
    head = {}
    for name in names:
        parts = {"": weight(name)}
        if name + SCALE in pack.tensors:
            parts[SCALE] = weight(name + SCALE)
        head[name.removeprefix(_HEAD)] = decoded(parts, dtype)
    return head


def _read_tensors(path: Path, names: Mapping[str, str]) -> "dict[str, Tensor]":
    from safetensors import safe_open

    with safe_open(path, framework="pt", device="cpu") as file:
        return {name: file.get_tensor(stored) for name, stored in names.items()}
