"""What autograd shows of a layer: what goes into it, and how the end of the graph feels its outputs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from qsweep.quantizers.native.graph import named_linears

Kind = Literal["linear", "head", "embedding"]
# Of a layer, inputs and gradients of each of its runs.
Parts = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Seen:
    """A layer, what goes into it, and how the log-probabilities of drawn tokens feel its outputs.

    Attributes:
        name: Its name in the model in memory.
        module: The layer.
        kind: A linear layer of the decoder, the output head, or the input embeddings.
        inputs: [positions, in], of embeddings token ids int64 [positions]. An expert has positions
            for those tokens alone that are sent to it; what runs several times has some for each.
        gradients: [positions, out], of the summed log-probabilities to its outputs.
        tokens: How many tokens of the text they are of, those included that were sent elsewhere.
    """

    name: str
    module: nn.Module
    kind: Kind
    inputs: torch.Tensor
    gradients: torch.Tensor
    tokens: int


def seen_in(
    name: str,
    module: nn.Module,
    kind: Kind,
    parts: Parts,
    tokens: int,
) -> Seen:
    """What a layer showed in all of its runs, ``tokens`` of the text long."""
    inputs, felt = (
        values[0] if len(values) == 1 else torch.cat(values) for values in zip(*parts, strict=True)
    )
    return Seen(name, module, kind, inputs, felt, tokens)


def bytes_of(parts: dict[str, Parts]) -> int:
    """What is held of layers."""
    # Layers beside one another see the same tensor.
    held = {t.data_ptr(): t.nbytes for some in parts.values() for pair in some for t in pair}
    return sum(held.values())


def with_gradients(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
    """A forward hook: lets autograd follow what comes of an output, as if it came of something."""
    return output if output.requires_grad else output.detach().requires_grad_() * 1


@contextmanager
def watching(
    watched: dict[str, nn.Module],
    parts: dict[str, Parts],
    inside: nn.Module | None = None,
) -> Iterator[None]:
    """Within it, ``parts`` are filled with what layers see whenever autograd comes by.

    With ``inside`` also by all modules in there that share a watched layer's weight.
    """
    modules = [(name, module) for name, module in watched.items()]
    if inside is not None:
        modules += [
            (own, module)
            for name, module, own in named_linears(inside)
            if name != own and own in watched
        ]
    with ExitStack() as stack:
        for name, module in modules:

            def hook(
                module: nn.Module, given: Any, named: Any, output: torch.Tensor, name: str = name
            ) -> torch.Tensor:
                values = (given[0] if given else named["input"]).detach()
                output = with_gradients(module, given, output)

                def keep(felt: torch.Tensor) -> None:
                    # Token ids have no channels.
                    positions = (
                        values.flatten(0, -2) if values.is_floating_point() else values.flatten()
                    )
                    parts[name].append((positions, felt.flatten(0, -2)))

                output.register_hook(keep)
                return output

            handle = module.register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield
