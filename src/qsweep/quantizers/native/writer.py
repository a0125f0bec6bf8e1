"""Writing quantized checkpoints while a model is quantized, one decoder layer at a time."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qsweep.formats.artifact import Artifact
from qsweep.formats.container import container
from qsweep.formats.encoder import LayerEncoders, Parts, require_finite
from qsweep.formats.hf import ShardWriter, usual_dtype, write_frame
from qsweep.formats.numbers.superblocks import BlockMatrix
from qsweep.formats.packing import QuantizedMatrix
from qsweep.formats.weights import open_weights
from qsweep.models.facts import is_buffer, other_parts, parts_beside, read_tensors
from qsweep.models.source import SourceModel
from qsweep.models.spelling import Spelling
from qsweep.quantizers.conversion.solved import SolvedFile
from qsweep.quantizers.kept import kept_details
from qsweep.quantizers.native.graph import find_decoder, linears_of
from qsweep.quantizers.native.leftovers import left_of
from qsweep.quantizers.native.limits import SHARD_BYTES


class Writer(ABC):
    """Takes in the layers of a model while it is quantized, and writes an artifact of them."""

    @abstractmethod
    def add_linear(
        self, name: str, matrix: QuantizedMatrix, inputs: torch.Tensor | None = None
    ) -> None:
        """Add a linear layer's weight.

        Args:
            name: The layer's, without ``.weight``.
            matrix: Its codes.
            inputs: The largest magnitude of its inputs [], for formats with static activations.
        """

    @abstractmethod
    def finish(self, model: torch.nn.Module, details: dict[str, Any]) -> Artifact:
        """Add what was not added of the model, and write everything."""


class GGUFWriter(Writer):
    """Writes a GGUF file.

    Args:
        out: An existing, empty directory.
        source: The unquantized model.
        mixture: The file type whose tensors other than linear layers are taken.
        spelling: What the checkpoint calls what is in memory.
        kept: Why linear layers are to stay in 16 bits, by their names in the checkpoint.
    """

    def __init__(
        self,
        out: Path,
        source: SourceModel,
        mixture: str,
        spelling: Spelling,
        kept: Mapping[str, str],
    ):
        self._spelling = spelling
        self._file = SolvedFile(out, source, mixture)
        self._file.keep(kept)

    def add_linear(
        self, name: str, matrix: QuantizedMatrix, inputs: torch.Tensor | None = None
    ) -> None:
        """See :meth:`Writer.add_linear`."""
        assert isinstance(matrix, BlockMatrix)
        self._file.add(self._spelling.layer(name), matrix)

    def finish(self, model: torch.nn.Module, details: dict[str, Any]) -> Artifact:
        """See :meth:`Writer.finish`; of layers that have no such rows llama.cpp decides."""
        return self._file.finish(details)


class CheckpointWriter(Writer):
    """Writes a quantized checkpoint, layer by layer.

    Tensors come by their names in memory, and are written by the unquantized checkpoint's.

    Args:
        out: An existing, empty directory.
        source: The unquantized model's directory.
        encoders: How codes are written.
        spelling: What the checkpoint calls what is in memory.
        kept: Why linear layers stay in 16 bits, by their names in the checkpoint.
        rests_on_disk: Whether what is finished waits on disk for its file to be full.
    """

    def __init__(
        self,
        out: Path,
        source: Path,
        encoders: LayerEncoders,
        spelling: Spelling,
        kept: Mapping[str, str],
        *,
        rests_on_disk: bool = False,
    ):
        self._out, self._source, self._encoders = out, source, encoders
        self._spelling, self._kept = spelling, kept
        self._infos = read_tensors(source)
        self._usual = usual_dtype(self._infos.values())
        self._shards = ShardWriter(out, SHARD_BYTES, rests_on_disk=rests_on_disk)
        self._done: set[str] = set()
        self._packed: set[str] = set()

    def keep_too(self, kept: Mapping[str, str]) -> None:
        """Tell why further linear layers stay in 16 bits, by their names in the checkpoint."""
        self._kept = {**self._kept, **kept}

    def stored_dtype(self, name: str) -> torch.dtype:
        """The dtype that the unquantized checkpoint keeps a tensor in."""
        info = self._infos.get(self._spelling.tensor(name))
        return usual_dtype([info]) if info else self._usual

    def add_linear(
        self, name: str, matrix: QuantizedMatrix, inputs: torch.Tensor | None = None
    ) -> None:
        """See :meth:`Writer.add_linear`."""
        encoder = self._encoders.of(self._spelling.layer(name))
        self._add_parts(name, encoder.pack(matrix, inputs))

    def round_linear(
        self, name: str, weight: torch.Tensor, extreme: torch.Tensor, inputs: torch.Tensor | None
    ) -> None:
        """Add a linear layer's weight [out, in], rounded to nearest; see :meth:`Encoder.round`."""
        dtype = self.stored_dtype(f"{name}.weight")
        # The extreme, too: the global scale is computed in the dtype that it comes in.
        encoder = self._encoders.of(self._spelling.layer(name))
        rounded = encoder.round(weight.to(dtype), extreme.to(dtype), inputs)
        self._add_parts(name, rounded)

    def _add_parts(self, name: str, parts: Parts) -> None:
        for part, tensor in parts.items():
            self._shards.add(f"{self._spelling.layer(name)}.{part}", tensor)
        self._done.add(f"{name}.weight")
        self._packed.add(name)

    def add_plain(self, name: str, tensor: torch.Tensor) -> None:
        """Add a tensor [...] as it is, in the unquantized checkpoint's dtype, unless it was added."""
        if name in self._done:
            return
        self._done.add(name)
        if tensor.is_floating_point():
            called = self._spelling.tensor(name)
            if not is_buffer(called):
                require_finite(called.removesuffix(".weight"), tensor)
            tensor = tensor.to(self.stored_dtype(name))
        self._shards.add(self._spelling.tensor(name), tensor.clone())

    def finish(self, model: torch.nn.Module, details: dict[str, Any]) -> Artifact:
        """Add what was not added of the model, tied weights once, and close the files.

        Linear layers that were not packed are named in the settings; those of the decoder also in
        the details, as the checkpoint calls them (:func:`kept_details`).
        """
        for name, tensor in left_of(model, self._done, self._spelling.merged):
            self.add_plain(name, tensor)
        self._carry_unused()
        self._shards.close()
        in_memory, others, heads = self._unpacked(model)
        spelt = {self._spelling.layer(name): "shape" for name in in_memory}
        kept = {**spelt, **self._kept}
        # Loaders know them by either name.
        names = sorted({*kept, *in_memory})
        write_frame(self._source, self._out, self._encoders.settings([*names, *others], heads))
        holder = self._encoders.usual.container
        size = container(holder).size(self._out)
        details = details | kept_details(kept)
        return Artifact(self._out, holder, size, self._encoders.runtimes, details)

    def _carry_unused(self) -> None:
        # What transformers leaves out others may run: layers that predict further tokens.
        wanted = [name for name in self._spelling.unused if not is_buffer(name)]
        handles = open_weights(self._source) if wanted else {}
        for name in wanted:
            self._shards.add(name, handles[name].get_tensor(name))

    def _unpacked(self, model: torch.nn.Module) -> tuple[list[str], list[str], list[str]]:
        # The linear layers of the decoder that were not packed, the parts of the model beside the
        # decoder and the output head that hold others, and that head.
        decoder = find_decoder(model).paths[0].rpartition(".")[0] + "."
        get_head: Any = getattr(model, "get_output_embeddings", None)
        head = get_head() if get_head else None
        linears = linears_of(model)
        heads = [name for name, module in linears.items() if module is head]
        names = [name for name in linears if name not in heads]
        inside = [name for name in names if name.startswith(decoder)]
        others = [n for n in names if not n.startswith(decoder) and n not in self._packed]
        parts = {*parts_beside(inside, others), *other_parts(self._infos)}
        return sorted(set(inside) - self._packed), sorted(parts), heads
