"""From a GGUF artifact back to the weights of the Hugging Face model it was made from."""

import math
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt, UnknownLayout
from qsweep.formats.artifact import Artifact, Size
from qsweep.formats.belonging.difference import Difference
from qsweep.formats.container import Container
from qsweep.formats.gguf.checkpoint import Checkpoint, open_checkpoint
from qsweep.formats.gguf.hyperparameters import config_differences, context_difference
from qsweep.formats.gguf.reader import MODEL_FILE, GGUFFile, find_file, read_gguf
from qsweep.formats.gguf.rules import Layout, from_json
from qsweep.formats.gguf.stored import stored_size, stored_tensors
from qsweep.formats.gguf.tokenizer import chat_template_difference, tokenizer_differences
from qsweep.formats.gguf.variants import EMBEDDING, HEAD, factor_of, fit
from qsweep.formats.stored import StoredTensor

if TYPE_CHECKING:
    import torch

__all__ = ["CONTAINER", "MODEL_FILE", "ORDERS_FILE", "dense_state_dict", "model_file", "weight_of"]

ORDERS_FILE = "layout.safetensors"


def dense_state_dict(artifact: Artifact, source: Path) -> dict[str, Any]:
    """The dense weights of an artifact under the names of the checkpoint ``source``.

    Values are :class:`~qsweep.formats.weights.LazyWeight`: ``value[...]`` dequantizes one tensor to
    float32, in the layout of the checkpoint. What the file does not hold, such as the vision part of a model
    whose text part it is, comes from the checkpoint itself.

    Raises:
        ArtifactCorrupt: the file is damaged, or does not hold what the artifact says of it.
        UnknownLayout: it cannot be led back to the checkpoint.
    """
    from qsweep.formats.weights import LazyWeight

    if artifact.unexplained:
        raise UnknownLayout(
            f"{artifact.path}: {artifact.unexplained}; only llama.cpp itself can run it"
        )
    file = read_gguf(model_file(artifact))
    if artifact.details.get("tensors") is None:
        return _alone(file)
    checkpoint = open_checkpoint(source)
    fitted = fit(read_layout(artifact, checkpoint), checkpoint, file)
    if fitted.missing is not None:
        raise ArtifactCorrupt(f"{file.path}: has no tensor {fitted.missing}")
    names = dict.fromkeys((*checkpoint.infos, *fitted.layout.rules))
    return {
        name: LazyWeight(
            partial(whole_weight, name, fitted.layout, fitted.file, checkpoint)
            if name in fitted.layout.rules
            else partial(checkpoint.tensor, name)
        )
        for name in names
    }


def _alone(file: GGUFFile) -> dict[str, Any]:
    """The weights of a file of which no checkpoint is here, by the names that transformers gives them.

    They lie in a temporary folder until nobody reads them any more: it is gone, its files are open.
    """
    from qsweep.base.scratch import ScratchFolder
    from qsweep.formats.gguf.as_checkpoint import checkpoint_from_gguf
    from qsweep.formats.weights import slices_of

    with ScratchFolder() as folder:
        place = Path(folder) / "checkpoint"
        checkpoint_from_gguf(file, place, "float32")
        return slices_of(place)


class GGUFContainer(Container):
    """One file, or its parts, and how the checkpoint lies in it in the artifact's details."""

    name = "gguf"
    timed_by = "llama.cpp"

    def dense_weights(self, artifact: Artifact, source: Path, device: str) -> dict[str, Any]:
        """See :func:`dense_state_dict`."""
        return dense_state_dict(artifact, source)

    def differences(self, path: Path, base: Path) -> list[Difference]:
        """See :meth:`Container.differences`; ``path`` is a file, or one of its parts.

        Its tensors are compared when the checkpoint is led to them, after this.
        """
        file = read_gguf(find_file(path))
        lines = [*config_differences(file, base), *tokenizer_differences(file, base)]
        said = context_difference(file, base), chat_template_difference(file, base)
        noted = [Difference(line, refuses=False) for line in said if line is not None]
        return [*(Difference(line) for line in lines), *noted]

    def stored(self, path: Path) -> list[StoredTensor]:
        """See :meth:`Container.stored`; ``path`` is a file, one of its parts, or their directory."""
        return stored_tensors(read_gguf(find_file(path)))

    def size(self, path: Path) -> Size:
        """See :meth:`Container.size`; all parts are counted."""
        file = read_gguf(find_file(path))
        return stored_size(file, stored_tensors(file))

    def stored_as(
        self, artifact: Artifact, source: Path, stored: Collection[str]
    ) -> dict[str, tuple[str, ...]]:
        """See :meth:`Container.stored_as`."""
        checkpoint = open_checkpoint(source)
        fitted = fit(read_layout(artifact, checkpoint), checkpoint, read_gguf(model_file(artifact)))
        return {n: rule.tensors for n, rule in fitted.layout.rules.items() if n not in stored}


CONTAINER = GGUFContainer()


def model_file(artifact: Artifact) -> Path:
    """The file of a GGUF artifact, or the first of its parts. Raises ConfigError: there is none."""
    found = find_file(artifact.files)
    return read_gguf(found).path if artifact.origin is not None else found


def read_layout(artifact: Artifact, checkpoint: Checkpoint) -> Layout:
    """Where each tensor of the checkpoint lies in the artifact's file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    orders_file = artifact.path / ORDERS_FILE
    try:
        orders = load_file(orders_file) if orders_file.exists() else {}
        return from_json(artifact.details["tensors"], checkpoint.infos, orders)
    except (KeyError, TypeError, ValueError, AttributeError, OSError, SafetensorError) as error:
        raise ArtifactCorrupt(
            f"{artifact.path}: its manifest and {ORDERS_FILE} do not say where what is"
        ) from error


def whole_weight(
    name: str, layout: Layout, file: GGUFFile, checkpoint: Checkpoint
) -> "torch.Tensor":
    """:func:`weight_of`, with the checkpoint's own rows where the file's vocabulary ends earlier.

    Those are rows that no token has: converters of former days left them out.
    """
    import torch

    info = checkpoint.infos.get(name)
    found = weight_of(name, layout, file, () if info is None else info.shape)
    if info is None or layout.rules[name].tensor not in (EMBEDDING, HEAD):
        return found
    if len(found) >= info.shape[0] or found.shape[1:] != info.shape[1:]:
        return found
    return torch.cat([found, checkpoint.tensor(name)[len(found) :].to(found.dtype)])


def weight_of(name: str, layout: Layout, file: GGUFFile, shape: tuple[int, ...]) -> "torch.Tensor":
    """One tensor of a checkpoint, dequantized and brought back into the checkpoint's layout.

    llama.cpp drops leading axes of one when it quantizes: a stack of one is no stack in the file.
    What has another number of weights keeps the shape that it has there.

    Args:
        name: The tensor's name in the checkpoint.
        layout: Where it lies in the file.
        file: The quantized file.
        shape: The tensor's shape in the checkpoint.

    Returns:
        float32 [*shape].
    """
    import torch

    from qsweep.formats.gguf.ggml import dequantize

    def read(tensor: str, index: int | None) -> torch.Tensor:
        stacked = len(file.tensors[tensor].shape) > len(shape)
        dense = dequantize(file, tensor, torch.float32, index if stacked else None)
        factor = factor_of(file, tensor, layout)
        if factor is None:
            return dense
        factors = dequantize(file, factor, torch.float32).flatten()
        if stacked and index is not None and len(factors) > 1:
            factors = factors[index : index + 1]
        return dense * factors.reshape(-1, *[1] * (dense.ndim - 1))

    found = layout.weight(name, read)
    return found.reshape(shape) if found.numel() == math.prod(shape) else found
