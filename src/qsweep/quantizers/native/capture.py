"""The calibration text on its way to the first decoder layer, and how the layers are called.

How each decoder layer is called is learned from the model itself rather than from a table of
architectures: it runs once with its layers replaced by stand-ins that only take down their arguments
(masks, rotary embeddings).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from qsweep.base.errors import IncompatibleTrial
from qsweep.quantizers.native.graph import ROUNDING, Decoder
from qsweep.quantizers.native.layers import Chunk
from qsweep.quantizers.native.memory import activation_bytes, budget

_PROBE_TOKENS = 64
_CACHES = {"past_key_values", "past_key_value", "layer_past", "cache_params"}


class _Stop(Exception):
    """The model runs otherwise than its layers one by one."""


def capture(
    model: nn.Module, decoder: Decoder, samples: Sequence[Sequence[int]], device: str
) -> tuple[list[Chunk], Chunk]:
    """Embed the calibration text.

    Args:
        model: A causal language model on the CPU.
        decoder: Its decoder layers.
        samples: Token ids.
        device: Where layers will run; hidden states are given on the host.

    Returns:
        The text in chunks, with the hidden states [samples, tokens, width] that enter the first
        layer; and a probe, the first tokens of the first sample.
    """
    body = getattr(model, "base_model", model)
    outside = list(_modules_outside(body, decoder.layers))
    for module in outside:
        module.to(device)
    try:
        lengths = sorted({len(sample) for sample in samples}, reverse=True)
        chunks = []
        for length in lengths:
            ids = torch.tensor([sample for sample in samples if len(sample) == length])
            for part in ids.split(_samples_at_once(decoder, length, device)):
                chunks.append(_capture(body, decoder, part.to(device)))
        start = torch.tensor([list(samples[0])[:_PROBE_TOKENS]])
        probe = _capture(body, decoder, start.to(device))
    finally:
        for module in outside:
            module.to("cpu")
    return chunks, probe


def resting_device(chunks: Sequence[Chunk], texts: int, device: str) -> torch.device:
    """Where hidden states rest between layers, if there are ``texts`` of them: where they fit."""
    size = texts * sum(chunk.hidden.nbytes for chunk in chunks)
    place = torch.device(device)
    return place if place.type == "cuda" and size <= budget(place) else torch.device("cpu")


def _capture(body: nn.Module, decoder: Decoder, ids: torch.Tensor) -> Chunk:
    # Whether a layer gives its hidden states alone or in a tuple shows only when they are used: a
    # model that expects a tuple takes the first sample for the hidden states.
    for as_tuple in (False, True):
        calls: list[tuple[Any, ...]] = []

        def stand_in(
            *arguments: Any,
            as_tuple: bool = as_tuple,
            calls: list[tuple[Any, ...]] = calls,
            **named: Any,
        ) -> Any:
            named.update(dict.fromkeys(named.keys() & _CACHES))
            states = arguments[0] if arguments else named.pop("hidden_states")
            # A stand-in gives what it was given: another tensor comes from something in between.
            if states.shape[:2] != ids.shape or (calls and states is not calls[-1][0]):
                raise _Stop
            calls.append((states, arguments[1:], named))
            return (states, None) if as_tuple else states

        for layer in decoder.layers:
            layer.forward = stand_in
        try:
            with torch.no_grad():
                output = body(input_ids=ids, use_cache=False)[0]
            if len(calls) == len(decoder.layers) and output.shape[:2] == ids.shape:
                return Chunk(calls[0][0].to("cpu"), [call[1:] for call in calls])
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise  # says nothing of the model, though it is a RuntimeError
        except (_Stop, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            continue
        finally:
            for layer in decoder.layers:
                del layer.forward
    raise IncompatibleTrial(
        f"{type(body).__name__}: its decoder layers do not hand hidden states on one by one, which "
        f"the native backend needs; {ROUNDING}"
    )


def _modules_outside(body: nn.Module, layers: nn.ModuleList) -> Iterator[nn.Module]:
    inside = set(layers.modules())
    for module in body.modules():
        if module not in inside and not any(child in inside for child in module.modules()):
            yield module


def _samples_at_once(decoder: Decoder, tokens: int, device: str) -> int:
    return max(1, budget(torch.device(device)) // activation_bytes(decoder.layers[0], tokens))
