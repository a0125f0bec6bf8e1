"""From a GGUF artifact back to the weights of the Hugging Face model it was made from."""

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import ArtifactCorrupt, UnknownLayout
from qsweep.formats.artifact import Artifact
from qsweep.formats.container import Container
from qsweep.formats.gguf.checkpoint import Checkpoint, open_checkpoint
from qsweep.formats.gguf.reader import GGUFFile, read_gguf
from qsweep.formats.gguf.rules import Layout, from_json

if TYPE_CHECKING:
    import torch

MODEL_FILE = "model.gguf"
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
    checkpoint = open_checkpoint(source)
    file = read_gguf(model_file(artifact))
    layout = read_layout(artifact, checkpoint)
    for rule in layout.rules.values():
        for tensor in rule.tensors:
            if tensor not in file.tensors:
                raise ArtifactCorrupt(f"{file.path}: has no tensor {tensor}")
    return {
        name: LazyWeight(
            partial(weight_of, name, layout, file, info.shape)
            if name in layout.rules
            else partial(checkpoint.tensor, name)
        )
        for name, info in checkpoint.infos.items()
    }


class GGUFContainer(Container):
    """One file, ``model.gguf``, and how the checkpoint lies in it in the artifact's details."""

    name = "gguf"
    timed_by = "llama.cpp"
    counts_files = False

    def dense_weights(self, artifact: Artifact, source: Path, device: str) -> dict[str, Any]:
        """See :func:`dense_state_dict`."""
        return dense_state_dict(artifact, source)


CONTAINER = GGUFContainer()


def model_file(artifact: Artifact) -> Path:
    """The file of a GGUF artifact, or the first of its parts."""
    return artifact.files if artifact.files.is_file() else artifact.files / MODEL_FILE


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
        return dequantize(file, tensor, torch.float32, index if stacked else None)

    found = layout.weight(name, read)
    return found.reshape(shape) if found.numel() == math.prod(shape) else found
