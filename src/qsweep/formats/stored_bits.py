"""How many bits each layer of an artifact takes, from the headers of its files alone."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from qsweep.formats.artifact import Artifact
from qsweep.formats.container import container
from qsweep.formats.stored import StoredTensor
from qsweep.models.roles import EXPERT
from qsweep.models.source import ModelFacts

# What a stack of all experts calls what an expert's own layers are called.
_IN_A_STACK = ("gate_up_proj",)


class Stored(NamedTuple):
    """What a layer is stored as: its type, in the format's own words, and bits per weight."""

    type: str
    bpw: float


def stored_layers(artifact: Artifact, facts: ModelFacts, names: Iterable[str]) -> dict[str, Stored]:
    """What layers of a model are stored as in an artifact; those that it does not have are left out.

    Args:
        artifact: Whose.
        facts: The model that it was made from.
        names: Layers as the checkpoint calls them, without ``.weight``.

    Raises:
        ArtifactCorrupt: A file is unreadable.
    """
    kind = container(artifact.format)
    tensors = {tensor.name: tensor for tensor in kind.stored(artifact.files)}
    parts = kind.stored_as(artifact, facts.path, tensors)
    found = {}
    for name in names:
        for tensor in _possible(name):
            own = [tensors[part] for part in parts.get(tensor, (tensor,)) if part in tensors]
            if own:
                found[name] = _stored(own)
                break
    return found


def _stored(own: list[StoredTensor]) -> Stored:
    types = "+".join(dict.fromkeys(tensor.type for tensor in own))
    weights = sum(tensor.weights for tensor in own)
    return Stored(types, sum(tensor.bits for tensor in own) / max(weights, 1))


def _possible(name: str) -> list[str]:
    # An expert's layer is a tensor of its own, or lies in a stack of all experts'.
    found = [f"{name}.weight", name]
    if EXPERT.search(name):
        head, _, last = name.rpartition(".")
        experts = head.rpartition(".")[0]
        found += [
            f"{experts}.{one}{end}" for one in (last, *_IN_A_STACK) for end in ("", ".weight")
        ]
    return found


def bits_of(stored: Mapping[str, Stored], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Stored bits by layer, of those whose shape is known."""
    found = {}
    for name, one in stored.items():
        if name in shapes:
            weights = 1
            for size in shapes[name]:
                weights *= size
            found[name] = round(one.bpw * weights)
    return found
