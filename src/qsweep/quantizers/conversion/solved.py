"""A GGUF file with linear layers that qsweep's own quantizers made.

llama.cpp writes the file: metadata, norms, embeddings and the output head are what its own mixture of
that name has. The bytes of the linear layers are then replaced, their rows in the file's order.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.scratch import OnDisk
from qsweep.formats.artifact import Artifact
from qsweep.formats.gguf.types import file_type, tensor_type
from qsweep.models.source import SourceModel
from qsweep.quantizers.conversion.artifact import gguf_artifact, require_runnable
from qsweep.quantizers.kept import kept_details

if TYPE_CHECKING:
    import torch

    from qsweep.formats.numbers.superblocks import BlockMatrix
    from qsweep.quantizers.conversion.base import UnquantizedFile


class SolvedFile:
    """Collects the layers, and writes the file.

    Args:
        out: An existing, empty directory.
        model: The unquantized model; where it is streamed, layers wait on disk.
        mixture: The file type whose other tensors are taken.
    """

    def __init__(self, out: Path, model: SourceModel, mixture: str):
        self._out, self._model, self._type = out, model, file_type(mixture)
        self._disk = OnDisk() if model.stream is True else None
        # By the layers' names; blocks are all that is kept of them.
        self._layers: dict[str, tuple[str, torch.Tensor]] = {}
        self._kept: dict[str, str] = {}

    def add(self, name: str, matrix: "BlockMatrix") -> None:
        """Add a linear layer's weight; ``name`` is the layer's, without ``.weight``."""
        from qsweep.formats.gguf.packing import block_bytes

        blocks = block_bytes(matrix)
        kept = blocks if self._disk is None else self._disk.keep(blocks)
        self._layers[name] = matrix.type.name, kept

    def keep(self, names: Mapping[str, str]) -> None:
        """Leave linear layers in 16 bits; by name, the reason. Of all others llama.cpp decides."""
        self._kept |= names

    def finish(self, details: Mapping[str, Any]) -> Artifact:
        """Write the file.

        Raises:
            UnknownLayout: the converter does not leave a layer's rows whole, or what it writes cannot
                be led back to the checkpoint.
        """
        from qsweep.formats.gguf.dense import MODEL_FILE
        from qsweep.formats.gguf.native import quantize_file
        from qsweep.formats.gguf.reader import read_gguf
        from qsweep.quantizers.conversion.base import unquantized

        model, path = self._model, self._out / MODEL_FILE
        with unquantized(model, self._out) as base:
            require_runnable(model.facts.name, base.unexplained, base.agreement, model.own_run)
            solved = {name: self._layers[layer][0] for layer, (name, _, _) in self._placed(base)}
            kept = {
                name: tensor.type.name
                for name, tensor in read_gguf(base.path).tensors.items()
                if name in self._tensors_kept(base) and name not in solved
            }
            types = {f"^{re.escape(n)}$": tensor_type(t) for n, t in (solved | kept).items()}
            quantize_file(base.path, path, self._type, None, types)
            file = read_gguf(path)
            for _, (name, into, rows) in self._placed(base):
                stored = file.bytes_of(name, writable=True).view(-1, rows.shape[1])
                stored[slice(None) if into is None else into] = rows
        linears = {n: s for n, s in model.facts.linears.items() if n not in self._kept}
        model = replace(model, facts=replace(model.facts, linears=linears))
        told = {**details, **kept_details(self._kept)}
        return gguf_artifact(model, base, self._type, self._out, told)

    def _placed(
        self, base: "UnquantizedFile"
    ) -> "Iterator[tuple[str, tuple[str, torch.Tensor | None, torch.Tensor]]]":
        # One layer at a time: where the file has rows in another order they are copies.
        from qsweep.formats.gguf.placement import rows_in_file

        for layer, (_, blocks) in self._layers.items():
            for place in rows_in_file(layer, blocks, base.layout, base.checkpoint):
                yield layer, place

    def _tensors_kept(self, base: "UnquantizedFile") -> set[str]:
        places = {base.checkpoint.place(name).tensor for name in self._kept}
        return {tensor for place in places for tensor in base.layout.rules[place].tensors}
