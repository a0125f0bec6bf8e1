"""Tokens drawn from what a model predicts, and both ends of a walk backwards: head and embeddings.

Both run the model's own forward with stand-ins for its decoder layers, so that norms, scaling and
soft-capping are the model's own.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from qsweep.quantizers.native.graph import Decoder

# Tensors as large as the logits, in float32, that are held while they are differentiated.
_COPIES = 5


class _Stop(Exception):
    """The model has run far enough."""


class Draws:
    """For each position of a text a number between 0 and 1, which decides on the token drawn there.

    Args:
        ids: The text's token ids [samples, tokens], by chunk.
        seed: Of the numbers.
    """

    def __init__(self, ids: Sequence[torch.Tensor], seed: int):
        generator = torch.Generator().manual_seed(seed)
        # All at once: what is drawn piece by piece depends on where the pieces end.
        every = torch.rand(sum(part.numel() for part in ids), generator=generator)
        pieces = every.split([part.numel() for part in ids])
        self._numbers = [piece.view(part.shape) for piece, part in zip(pieces, ids, strict=True)]

    def score(self, chunk: int, rows: slice, logits: torch.Tensor) -> torch.Tensor:
        """The sum of the drawn tokens' log-probabilities.

        Args:
            chunk: Which part of the text.
            rows: Which of its samples.
            logits: What the model predicts there [samples, tokens, vocabulary].
        """
        logs = torch.log_softmax(logits.float(), -1)
        with torch.no_grad():
            below = logs.exp().cumsum(-1)
            # Rounding may leave the last sum short of 1.
            wanted = self._numbers[chunk][rows].to(below)[..., None] * below[..., -1:]
            drawn = torch.searchsorted(below, wanted).clamp(max=logs.shape[-1] - 1)
        return logs.gather(-1, drawn).sum()

    def pieces(self, ids: torch.Tensor, room: int, vocabulary: int) -> Iterator[slice]:
        """Samples of a chunk whose logits fit into ``room`` bytes together; one if not even that fits."""
        size = _COPIES * 4 * ids.shape[1] * vocabulary
        step = max(1, room // size)
        for start in range(0, len(ids), step):
            yield slice(start, start + step)


def own_logits(
    network: nn.Module, decoder: Decoder, ids: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor | None:
    """What the model predicts if its last decoder layer gives these hidden states.

    Args:
        network: The model.
        decoder: Its decoder layers.
        ids: Token ids [samples, tokens].
        hidden: [samples, tokens, width].

    Returns:
        Logits [samples, tokens, vocabulary]; None where the model takes something else of its layers.
    """
    model: Any = network
    last = decoder.layers[-1]
    # Whether a layer gives its hidden states alone or in a tuple shows only when they are used.
    for as_tuple in (False, True):

        def give(layer: nn.Module, states: Any, *, as_tuple: bool = as_tuple) -> Any:
            states = hidden if layer is last else states
            return (states, None) if as_tuple else states

        with _stand_ins(decoder, give):
            try:
                logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
            except (torch.OutOfMemoryError, torch.AcceleratorError):
                raise  # says nothing of the model, though it is a RuntimeError
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
                continue
        if logits.shape[:2] == ids.shape:
            return logits
    return None


def head_gradients(
    network: nn.Module,
    decoder: Decoder,
    draws: Draws,
    chunk: int,
    rows: slice,
    ids: torch.Tensor,
    hidden: torch.Tensor,
) -> torch.Tensor:
    """Gradients [samples, tokens, width] of drawn tokens' log-probabilities to the last hidden states.

    Args:
        network: The model.
        decoder: Its decoder layers.
        draws: Of the text.
        chunk: Which part of it.
        rows: Which of its samples.
        ids: Token ids of the part.
        hidden: What the last decoder layer makes of these samples.
    """
    leaf = hidden.detach().requires_grad_()
    with torch.enable_grad():
        logits = own_logits(network, decoder, ids[rows].to(hidden.device), leaf.clone())
        assert logits is not None, "it was tried before"
        draws.score(chunk, rows, logits).backward()
    assert leaf.grad is not None
    return leaf.grad.to("cpu")


def backward_from(
    network: nn.Module, decoder: Decoder, ids: torch.Tensor, felt: torch.Tensor
) -> None:
    """Go back from the hidden states that enter the first decoder layer to what they are made of.

    Args:
        network: The model, in which somebody watches.
        decoder: Its decoder layers.
        ids: Token ids [samples, tokens].
        felt: The gradients of these hidden states [samples, tokens, width].
    """
    entering: list[torch.Tensor] = []

    def take(_: nn.Module, states: Any) -> Any:
        entering.append(states)
        raise _Stop

    model: Any = network
    with _stand_ins(decoder, take), contextlib.suppress(_Stop):
        model(input_ids=ids, use_cache=False)
    (states,) = entering
    if states.requires_grad:
        states.backward(felt.to(states))


@contextlib.contextmanager
def _stand_ins(decoder: Decoder, give: Callable[[nn.Module, Any], Any]) -> Iterator[None]:
    def stand_in(layer: nn.Module) -> Callable[..., Any]:
        def forward(*arguments: Any, **named: Any) -> Any:
            return give(layer, arguments[0] if arguments else named["hidden_states"])

        return forward

    for layer in decoder.layers:
        layer.forward = stand_in(layer)
    try:
        yield
    finally:
        for layer in decoder.layers:
            del layer.forward
