"""The calibration text on its way to the first decoder layer, and how the layers are called.

How each decoder layer is called is learned from the model itself rather than from a table of
architectures: it runs once with its layers replaced by stand-ins that only take down their arguments
(masks, rotary embeddings).
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from qsweep.base.memory import available_bytes
from qsweep.base.scratch import on_disk
from qsweep.models.layer_list import CannotStream
from qsweep.models.room import stream_of
from qsweep.models.streaming import holding
from qsweep.quantizers.native.graph import Decoder, find_decoder, shares_weights, whole_model
from qsweep.quantizers.native.layers import Chunk, run_layer
from qsweep.quantizers.native.memory import activation_bytes, budget
from qsweep.quantizers.native.precision import multiplies_bfloat16

_PROBE_TOKENS = 64
_CACHES = {"past_key_values", "past_key_value", "layer_past", "cache_params"}


class _Stop(Exception):
    """The model runs otherwise than its layers one by one."""


def capture(
    model: Any,
    samples: Sequence[Sequence[int]],
    device: str,
    linears: Collection[str] = (),
    activations: int = 1,
) -> tuple[Decoder, list[Chunk], Chunk]:
    """Find the decoder layers, and embed the calibration text.

    Args:
        model: A causal language model on the CPU.
        samples: Token ids.
        device: Where layers will run; hidden states are given on the host.
        linears: Names of linear layers that should be among those of the decoder layers.
        activations: How many times the memory of a plain forward a layer's run takes.

    Returns:
        The layers; the text in chunks, with the hidden states [samples, tokens, width] that enter
        the first one; and a probe, the first tokens of the first sample. Where the layers by
        themselves are not what the model computes, all of it is one layer.

    Raises:
        IncompatibleTrial: see :func:`~qsweep.quantizers.native.graph.find_decoder` and
            :func:`~qsweep.quantizers.native.graph.whole_model`.
    """
    body = getattr(model, "base_model", model)
    decoder = find_decoder(model)
    start = torch.tensor([list(samples[0])[:_PROBE_TOKENS]], device=model.device)
    exact = multiplies_bfloat16(device) and not _multiplies_in_bfloat16(body, start)
    if not _is_all(decoder, linears) or not _runs_layer_by_layer(model, decoder, start):
        decoder = whole_model(model)
        if (stream := stream_of(model)) is not None:
            stream.rest()
            raise CannotStream(
                f"model.stream=true: layers of {type(model).__name__} are no chain, so that it is "
                "quantized as one layer, which has to be in memory; leave model.stream out"
            )
        chunks, probe = _as_they_are(model, samples, start, device, activations)
        return decoder, *_with(chunks, probe, exact=exact)
    outside = list(modules_outside(body, decoder.layers))
    first = decoder.layers[0]
    for module in outside:
        module.to(device)
    try:
        chunks = [
            _capture(body, decoder, part.to(device))
            for ids in by_length(samples)
            for part in ids.split(_samples_at_once(first, ids.shape[1], device, activations))
        ]
        probe = _capture(body, decoder, start.to(device))
    finally:
        for module in outside:
            module.to("cpu")
    return decoder, *_with(chunks, probe, exact=exact)


def _with(chunks: Sequence[Chunk], probe: Chunk, *, exact: bool) -> tuple[list[Chunk], Chunk]:
    return [replace(chunk, exact=exact) for chunk in chunks], replace(probe, exact=exact)


def _multiplies_in_bfloat16(body: nn.Module, ids: torch.Tensor) -> bool:
    """Whether a model runs with products in bfloat16; some put these into tensors of their own dtype."""
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            body(input_ids=ids, use_cache=False)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError:
        return False
    return True


def _as_they_are(
    model: nn.Module,
    samples: Sequence[Sequence[int]],
    start: torch.Tensor,
    device: str,
    activations: int,
) -> tuple[list[Chunk], Chunk]:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((), {"use_cache": False})]
    chunks = [
        Chunk(part, calls)
        for ids in by_length(samples)
        for part in ids.split(_samples_at_once(model, ids.shape[1], device, activations))
    ]
    return chunks, Chunk(start, calls)


def by_length(samples: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
    """Token ids [samples, tokens], of equal length together, in the order of the chunks' rows."""
    for length in sorted({len(sample) for sample in samples}, reverse=True):
        yield torch.tensor([sample for sample in samples if len(sample) == length])


def _is_all(decoder: Decoder, linears: Collection[str]) -> bool:
    found = {
        decoder.full_name(index, name) for index, own in enumerate(decoder.linears) for name in own
    }
    return found.issuperset(linears) and not shares_weights(decoder)


def _runs_layer_by_layer(model: Any, decoder: Decoder, ids: torch.Tensor) -> bool:
    """Whether decoder layers, called one by one, make of a few tokens what they make in the model.

    Some hand more on than hidden states: keys and values, what an earlier layer chose.
    """
    body = getattr(model, "base_model", model)
    expected: list[torch.Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        expected.append(output if isinstance(output, torch.Tensor) else output[0])

    handles = [layer.register_forward_hook(keep) for layer in decoder.layers]
    try:
        with torch.no_grad():
            body(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    chunk = captured(body, decoder, ids)
    if chunk is None or len(expected) != len(decoder.layers):
        return False
    for index, (layer, output) in enumerate(zip(decoder.layers, expected, strict=True)):
        try:
            with holding(model, index):
                hidden = run_layer(layer, chunk, index)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise  # as below
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return False
        tolerance = 1e-3 if hidden.dtype == torch.float32 else 5e-2
        if hidden.shape != output.shape or not _close(hidden, output, tolerance):
            return False
        chunk = replace(chunk, hidden=hidden)
    return True


def _close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    # What is not finite in both is told later, with the layer's name.
    first, second = (value.float().nan_to_num(0.0, 0.0, 0.0) for value in (one, other))
    return bool((first - second).norm() <= tolerance * second.norm())


def resting_device(chunks: Sequence[Chunk], texts: int, device: str) -> torch.device:
    """Where hidden states rest between layers, if there are ``texts`` of them: where they fit."""
    size = texts * sum(chunk.hidden.nbytes for chunk in chunks)
    place = torch.device(device)
    return place if place.type == "cuda" and size <= budget(place) else torch.device("cpu")


def rest_on_disk(chunks: Sequence[Chunk], texts: int, memory: int | None = None) -> list[Chunk]:
    """The chunks, of which those lie on disk that are beyond what the host has memory for.

    Args:
        chunks: The text.
        texts: How many such there are.
        memory: Bytes for all of them; by default a quarter of what is free.
    """
    room = available_bytes() // 4 if memory is None else memory
    found = []
    for chunk in chunks:
        room -= texts * chunk.hidden.nbytes
        if room < 0 and not chunk.hidden.is_cuda:
            chunk = replace(chunk, hidden=on_disk(chunk.hidden), on_disk=True)
        found.append(chunk)
    return found


def _capture(body: nn.Module, decoder: Decoder, ids: torch.Tensor) -> Chunk:
    chunk = captured(body, decoder, ids)
    assert chunk is not None, "what runs layer by layer does at any length"
    return chunk


def captured(body: nn.Module, decoder: Decoder, ids: torch.Tensor) -> Chunk | None:
    """Tokens, where the model lies, with the hidden states that enter the first layer; None if layers run otherwise."""
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
    return None


def modules_outside(body: nn.Module, layers: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """What a model consists of beside its layers."""
    inside = {module for layer in layers for module in layer.modules()}
    for module in body.modules():
        if module not in inside and not any(child in inside for child in module.modules()):
            yield module


def _samples_at_once(layer: nn.Module, tokens: int, device: str, activations: int) -> int:
    size = activations * activation_bytes(layer, tokens)
    return max(1, budget(torch.device(device)) // size)
