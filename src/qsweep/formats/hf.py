"""The frame of a quantized Hugging Face checkpoint: everything beside the packed layers.

Tokenizer, chat template and configuration are the source's own files, byte for byte: what a library
writes instead depends on its version and can name classes that no other loader knows.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.files import write_json
from qsweep.base.scratch import OnDisk
from qsweep.formats.active import chosen_share
from qsweep.formats.artifact import Artifact
from qsweep.formats.container import Container
from qsweep.formats.packed import PARTS
from qsweep.formats.stored import StoredTensor, size_of
from qsweep.formats.weights import slices_of
from qsweep.models.facts import (
    TensorHeader,
    corrected_config,
    distinct_weights,
    read_config,
    read_facts,
    read_tensors,
    text_config,
    weight_files,
)
from qsweep.models.files import saved_weight_files
from qsweep.models.source import ModelFacts

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 4_000_000_000
# Of a packed layer in compressed-tensors, as far as it is in a usual floating-point dtype.
_COMPRESSED = (
    *("weight_scale", "weight_global_scale"),
    *("input_scale", "input_global_scale"),
)
_COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "*.py",
    "LICENSE*",
    "NOTICE*",
)
_TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def write_frame(source: Path, out: Path, settings: Mapping[str, Any]) -> None:
    """Write configuration, tokenizer and all else that a loader needs beside the weights.

    Args:
        source: The unquantized model's directory.
        out: The artifact's directory.
        settings: The ``quantization_config``.
    """
    config = {**corrected_config(source), "quantization_config": dict(settings)}
    write_json(out / "config.json", _sorted(config), in_order=True)
    if settings["quant_method"] in ("gptq", "awq"):
        write_json(out / "quantize_config.json", _sorted(dict(settings)), in_order=True)
    copy_companions(source, out)


def _sorted(content: Any, key: str = "") -> Any:
    """Mappings by their keys, at every depth; but of rules for layers the first that matches counts."""
    if isinstance(content, Mapping):
        names = content if key == "dynamic" else sorted(content)
        return {name: _sorted(content[name], str(name)) for name in names}
    if isinstance(content, (list, tuple)):
        return [_sorted(item) for item in content]
    return content


def companions(source: Path) -> list[Path]:
    """Tokenizer, chat template, code and licence: what a checkpoint has beside weights and settings."""
    found = {file for pattern in _COMPANIONS for file in source.glob(pattern) if file.is_file()}
    return sorted(found)


def copy_companions(source: Path, out: Path) -> None:
    """Copy them, byte for byte."""
    for file in companions(source):
        shutil.copyfile(file, out / file.name)


def usual_dtype(tensors: Iterable[TensorHeader]) -> "torch.dtype":
    """The floating-point dtype that most of a checkpoint's weights have; float32 if none."""
    import torch

    counts: Counter[str] = Counter()
    for info in tensors:
        if info.dtype in _TORCH_NAMES:
            counts[_TORCH_NAMES[info.dtype]] += info.count
    return getattr(torch, counts.most_common(1)[0][0]) if counts else torch.float32


def restore_dtypes(source: Path, saved: Path, out: Path) -> None:
    """Copy saved weights, with what is not packed in the dtype that the source has it in.

    A library that quantizes in float32 also saves embeddings and norms in it, at twice their size.
    """
    from safetensors import safe_open

    original = read_tensors(source)
    usual = usual_dtype(original.values())
    writer = ShardWriter(out)
    for file in saved_weight_files(saved):
        with safe_open(file, framework="pt", device="cpu") as handle:
            for name in handle.keys():  # noqa: SIM118 - it is no mapping
                tensor = handle.get_tensor(name)
                # Of one byte: codes, which are no numbers of the source's.
                plain = tensor.is_floating_point() and tensor.element_size() > 1
                if plain and name.rpartition(".")[2] not in (*PARTS, *_COMPRESSED):
                    info = original.get(name)
                    tensor = tensor.to(usual_dtype([info]) if info else usual)
                writer.add(name, tensor)
    writer.close()


class ShardWriter:
    """Writes tensors to safetensors files of at most about 4 GB, as they come.

    Args:
        out: An existing directory.
        limit: Bytes of a file.
        rests_on_disk: Whether tensors wait on disk, not in memory, until their file is full.
    """

    def __init__(self, out: Path, limit: int = SHARD_BYTES, *, rests_on_disk: bool = False):
        self._out, self._limit = out, limit
        self._disk = OnDisk() if rests_on_disk else None
        self._pending: dict[str, torch.Tensor] = {}
        self._bytes = self._total = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: "torch.Tensor") -> None:
        """Take over one tensor."""
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._bytes + size > self._limit:
            self._flush()
        tensor = tensor.detach().cpu().contiguous()
        self._pending[name] = tensor if self._disk is None else self._disk.keep(tensor)
        self._bytes += size
        self._total += size

    def close(self) -> None:
        """Write what is left, name the files as transformers does, and write the index."""
        self._flush()
        count = len(self._shards)
        places: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            name = f"model-{number + 1:05}-of-{count:05}.safetensors"
            name = "model.safetensors" if count == 1 else name
            self._part(number).rename(self._out / name)
            places |= dict.fromkeys(names, name)
        if count > 1:
            _write_index(self._out, places, self._total)

    def _flush(self) -> None:
        from safetensors.torch import save_file

        if self._pending:
            save_file(self._pending, self._part(len(self._shards)), metadata={"format": "pt"})
            self._shards.append(list(self._pending))
            self._pending, self._bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self._out / f"part-{number}.safetensors"


def _write_index(out: Path, places: Mapping[str, str], total: int) -> None:
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    text = json.dumps(index, indent=1) + "\n"
    (out / "model.safetensors.index.json").write_text(text, encoding="utf-8")


UNQUANTIZED_RUNTIMES = ("transformers", "vllm")


class CheckpointContainer(Container):
    """An unquantized checkpoint, as transformers loads it."""

    name = "hf"
    quantized = False
    timed_by = "transformers"

    def dense_weights(self, artifact: Artifact, source: Path, device: str) -> dict[str, Any] | None:
        """Transformers reads the model's own by itself; of another maker nothing but weights is."""
        if artifact.origin is None:
            return None
        return slices_of(artifact.files)

    def stored(self, path: Path) -> list[StoredTensor]:
        """See :meth:`Container.stored`; ``bpw`` counts the linear layers inside the decoder."""
        return _stored(path, read_facts(path, path.name).linears)

    def served_by(self, options: Mapping[str, Any]) -> tuple[str, ...]:
        """See :meth:`Container.served_by`."""
        return UNQUANTIZED_RUNTIMES


CONTAINER = CheckpointContainer()


def reference_artifact(facts: ModelFacts) -> Artifact:
    """The unquantized model as an artifact, whose path is the model's own directory.

    Its ``bpw`` is that of the linear layers inside the decoder, like a quantized artifact's.

    Raises:
        ConfigError: The weight files are no longer there.
    """
    chosen = chosen_share(text_config(read_config(facts.path)))
    size = size_of(_stored(facts.path, facts.linears), _bytes(facts.path), chosen)
    return Artifact(facts.path, "hf", size, UNQUANTIZED_RUNTIMES)


def _stored(path: Path, linears: Iterable[str]) -> list[StoredTensor]:
    weights = {f"{name}.weight" for name in linears}
    tensors = distinct_weights(read_tensors(path), read_config(path))
    return [
        StoredTensor(name, info.dtype, info.count, info.bits, False, name in weights)
        for name, info in tensors.items()
    ]


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in weight_files(path))
