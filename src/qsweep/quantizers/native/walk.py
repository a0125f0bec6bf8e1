"""Walk a model layer by layer with the whole calibration text, for any decoder-only architecture.

Two things are learned from the model itself rather than from a table of architectures. How each
decoder layer is called: the model runs once with its layers replaced by stand-ins that only take
down their arguments (masks, rotary embeddings). And which linear layers share an input, and in
which order they run: by the identity of the tensors they are given while the layer runs.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from qsweep.base.errors import IncompatibleTrial
from qsweep.models.experts import ExpertLinear, attached, run_experts
from qsweep.quantizers.native.graph import ROUNDING, Decoder, linears_of, raw_weight, weight_of
from qsweep.quantizers.native.limits import LAYER_BYTES
from qsweep.quantizers.native.precision import multiplies_bfloat16
from qsweep.quantizers.native.stats import InputStats

_PROBE_TOKENS = 64
_CACHES = {"past_key_values", "past_key_value", "layer_past", "cache_params"}


@dataclass(frozen=True)
class Chunk:
    """Samples of equal length that run together, and how the decoder layers are called for them.

    ``calls`` holds positional and keyword arguments of each layer, without the hidden states.
    """

    hidden: torch.Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True)
class Stage:
    """Linear layers of one decoder layer that are given the very same tensor, in running order.

    Attributes:
        linears: Their names inside the decoder layer.
        channels: How wide the tensor is.
        block: Stages of the same number run side by side: experts, each on tokens of its own.
        experts: The module of experts that they belong to; empty for other layers.
    """

    linears: tuple[str, ...]
    channels: int
    block: int
    experts: str = ""


@dataclass(frozen=True)
class Inputs:
    """What goes into linear layers.

    Attributes:
        values: [..., channels].
        tokens: Of an expert, the numbers in the text of those that are sent to it, int64 [tokens];
            None where all are.
        weights: What an expert's outputs are multiplied by for each of them [tokens]; None: by 1.
        expert: The expert's name; empty for other layers.
        routed: How many tokens are sent to the expert, also where it is shown all; None of others.
    """

    values: torch.Tensor
    tokens: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    expert: str = ""
    routed: int | None = None

    def to(self, device: torch.device) -> "Inputs":
        """The same with its values on another device, of which no gradients are kept."""
        return replace(self, values=self.values.detach().to(device))

    def beside(self, other: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
        """For each of these inputs what it is in ``other``, inputs of the same layer.

        An expert may be sent other ``tokens`` there: one that is missing counts as unchanged.
        """
        if self.tokens is None or tokens is None:
            return other
        own, others = self.tokens.to(other.device), tokens.to(other.device)
        found = self.values.detach().to(other, copy=True)
        place = torch.searchsorted(others, own).clamp(max=max(len(others) - 1, 0))
        if len(others):
            shared = others[place] == own
            found[shared] = other[place[shared]]
        return found


@dataclass(frozen=True)
class Layer:
    """The decoder layer at hand.

    Attributes:
        module: The layer.
        stages: Its stages, in running order.
        full_name: Gives the name in the model of one of its parts.
        weights: By linear layer, what its weight is before the module's dtype rounds it, float32
            [out, in]; only where that differs.
    """

    module: nn.Module
    stages: Sequence[Stage]
    full_name: Callable[[str], str]
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def weight_of(self, name: str) -> torch.Tensor:
        """The weight of one of its linear layers, float32 [out, in]: a copy."""
        if name in self.weights:
            return self.weights[name].clone()
        linear = self.module.get_submodule(name)
        return weight_of(linear)


# Is told of stages that run side by side, and what goes into each.
OnStages = Callable[[Sequence[Stage], Sequence[InputStats]], None]
# By a stage's first linear layer, what goes into it of each chunk.
StageInputs = dict[str, list[Inputs]]
_Note = Callable[[str, Inputs], None]


class _Stop(Exception):
    """The layer has run far enough."""


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
    return place if place.type == "cuda" and size <= _budget(place) else torch.device("cpu")


def find_stages(layer: nn.Module, probe: Chunk, index: int) -> list[Stage]:
    """Find which linear layers of a decoder layer share an input, by running it on the probe.

    A linear layer that does not run, because the model multiplies by its weight itself (Mamba's
    ``dt_proj``) or only for other inputs than text, is in no stage. Experts run on all tokens here.

    Raises:
        IncompatibleTrial: one of several that are built alike did not run, as in a mixture of
            experts that are modules, or one runs more than once.
    """
    stages: list[list[str]] = []
    found: list[tuple[int, str]] = []
    known: dict[tuple[int, str], tuple[Any, int]] = {}

    def note(name: str, inputs: Inputs) -> None:
        key = id(inputs.values), inputs.expert
        reference, stage = known.get(key, (None, -1))
        # An id may be used again once its tensor is gone: the reference tells.
        if reference is None or reference() is not inputs.values:
            stage = len(stages)
            known[key] = (weakref.ref(inputs.values), stage)
            stages.append([])
            found.append((inputs.values.shape[-1], inputs.expert))
        if any(name in names for names in stages):
            raise IncompatibleTrial(
                f"decoder layer {index}: {name} runs more than once, and the native backend "
                f"quantizes each linear layer for one input; {ROUNDING}"
            )
        stages[stage].append(name)

    with _watching(layer, note, all_tokens=True):
        run_layer(layer, probe, index)
    idle = linears_of(layer).keys() - {name for names in stages for name in names}
    for name in sorted(idle):
        if any(part.isdecimal() for part in name.split(".")):
            raise IncompatibleTrial(
                f"decoder layer {index}: {name} takes no part for every token, as experts do; those "
                "are quantized whose class has transformers' use_experts_implementation"
            )
    return list(_numbered(stages, found))


def _numbered(names: Sequence[Sequence[str]], found: Sequence[tuple[int, str]]) -> Iterator[Stage]:
    # Experts one behind the other on the same layers of theirs, as many as their Gram matrices fit.
    number, room = -1, 0
    before: tuple[str, tuple[str, ...]] = ("", ())
    for linears, (channels, expert) in zip(names, found, strict=True):
        experts, _, _ = expert.rpartition(".")
        layers = tuple(name.rpartition(".")[2] for name in linears)
        room -= 4 * channels**2
        if not experts or before != (experts, layers) or room < 0:
            number, room = number + 1, LAYER_BYTES - 4 * channels**2
        before = experts, layers
        yield Stage(tuple(linears), channels, number, experts)


def blocks_of(stages: Sequence[Stage]) -> list[list[Stage]]:
    """Stages that run side by side, in running order."""
    found: dict[int, list[Stage]] = {}
    for stage in stages:
        found.setdefault(stage.block, []).append(stage)
    return list(found.values())


def run_layer(layer: nn.Module, chunk: Chunk, index: int) -> torch.Tensor:
    """The hidden states [samples, tokens, width] that a decoder layer makes of a chunk's."""
    parameter = next(layer.parameters())
    arguments, named = chunk.calls[index]
    hidden = chunk.hidden.to(parameter.device, non_blocking=True)
    with torch.no_grad():
        result = layer(hidden, *arguments, **named)
    output: torch.Tensor = result[0] if isinstance(result, tuple | list) else result
    return output


def rounds_needed(layer: nn.Module, chunks: Sequence[Chunk], walking: int, sharing: int) -> int:
    """In how many rounds there is memory for GPTQ configurations inside a decoder layer.

    Each has weights and the factor of a Gram matrix. One that walks through layers of its own also
    has that Gram matrix, and the activations of a forward that waits.

    Args:
        layer: The decoder layer.
        chunks: The calibration text.
        walking: How many configurations walk through layers of their own.
        sharing: How many share the unquantized model's statistics.
    """
    weights = [raw_weight(linear) for linear in linears_of(layer).values()]
    if not weights:
        return 1
    square = 4 * max(max(weight.shape) for weight in weights) ** 2
    each = sum(weight.numel() * weight.element_size() for weight in weights) + square
    more = square
    if len(chunks) == 1:
        more += _activation_bytes(layer, chunks[0].hidden[..., 0].numel())
    total = (walking + sharing) * each + walking * more
    return max(1, min(-(-total // _budget(weights[0].device)), walking + sharing))


def advance(
    layer: nn.Module,
    index: int,
    stages: Sequence[Stage],
    chunks: Sequence[Chunk],
    full_name: Callable[[str], str],
    on_stages: OnStages,
    *,
    changes_weights: bool,
    gather: Callable[[str], InputStats] = InputStats,
    keep: StageInputs | None = None,
    plain: StageInputs | None = None,
    all_tokens: bool = False,
) -> list[Chunk]:
    """Run a decoder layer over the calibration text and hand over each stage's statistics.

    Args:
        layer: The decoder layer, on its device.
        index: Its number.
        stages: What :func:`find_stages` found.
        chunks: The text, with the layer's input.
        full_name: Gives the name in the model of a linear layer.
        on_stages: Called before the first linear layer of stages that run side by side computes
            anything of what it is told of.
        changes_weights: Whether ``on_stages`` replaces weights of these stages, so that the stages
            that follow must see what comes of it. With all text in one chunk the same forward
            goes on with the new weights; else the layer is run anew up to each block of stages.
        gather: Makes the statistics of a linear layer of this name.
        keep: Filled with what goes into the stages.
        plain: What a run without quantized layers kept, for the statistics across both.
        all_tokens: Let the statistics of each expert be of all tokens.

    Returns:
        The text with the layer's output.
    """
    first = {stage.linears[0]: stage for stage in stages}
    blocks = {block[0].block: block for block in blocks_of(stages)}
    stats = {name: gather(full_name(name)) for name in first}

    def finished(block: Sequence[Stage]) -> list[InputStats]:
        return [stats.pop(stage.linears[0]).finish() for stage in block]

    def take(name: str, inputs: Inputs, number: int) -> None:
        beside = plain[name][number] if plain else None
        across = None if beside is None else inputs.beside(beside.values, beside.tokens)
        stats[name].add(inputs.values, across, inputs.weights, inputs.routed)

    if len(chunks) > 1 and changes_weights:
        for block in blocks.values():
            _run_up_to(layer, index, block, chunks, take, all_tokens=all_tokens)
            on_stages(block, finished(block))
        return [_run(layer, chunk, index) for chunk in chunks]

    def note(name: str, inputs: Inputs) -> None:
        if name not in stats:
            return
        if keep is not None:
            keep.setdefault(name, []).append(inputs.to(chunks[0].hidden.device))
        # With several chunks the weights stay as they are, and nothing is told across.
        take(name, inputs, 0)
        block = blocks[first[name].block]
        if len(chunks) == 1 and first[name] is block[-1]:
            on_stages(block, finished(block))

    with _watching(layer, note, all_tokens=all_tokens):
        done = [_run(layer, chunk, index) for chunk in chunks]
    for block in blocks.values():
        if any(stage.linears[0] in stats for stage in block):
            on_stages(block, finished(block))
    return done


def _run_up_to(
    layer: nn.Module,
    index: int,
    block: Sequence[Stage],
    chunks: Sequence[Chunk],
    take: Callable[[str, Inputs, int], None],
    *,
    all_tokens: bool,
) -> None:
    wanted = [stage.linears[0] for stage in block]
    number = 0

    def note(name: str, inputs: Inputs) -> None:
        if name in wanted:
            take(name, inputs, number)
        if name == wanted[-1]:
            raise _Stop

    with _watching(layer, note, all_tokens=all_tokens):
        for number, chunk in enumerate(chunks):  # noqa: B007 - what note sees
            try:
                _calibrate(layer, chunk, index)
            except _Stop:
                continue


def _run(layer: nn.Module, chunk: Chunk, index: int) -> Chunk:
    return replace(chunk, hidden=_calibrate(layer, chunk, index).to(chunk.hidden.device))


def _calibrate(layer: nn.Module, chunk: Chunk, index: int) -> torch.Tensor:
    # Matrix products run in bfloat16, and what is computed from them until it meets the residual
    # stream, which stays in the model's own precision.
    device = next(layer.parameters()).device
    with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bfloat16(device.type)):
        return run_layer(layer, chunk, index)


@contextmanager
def _watching(layer: nn.Module, note: _Note, *, all_tokens: bool) -> Iterator[None]:
    def tell(name: str, inputs: Inputs) -> None:
        # Statistics, and the solving that a question in the middle of the layer waits for, are
        # no part of the model; nor are other configurations' walks, which go on meanwhile in the
        # same thread.
        with torch.autocast("cpu", enabled=False):
            note(name, inputs)

    handles = []
    holders = dict(attached(layer))
    for name, module in linears_of(layer).items():

        def hook(_: nn.Module, inputs: tuple[Any, ...], named: Any, name: str = name) -> None:
            tell(name, Inputs(inputs[0] if inputs else named["input"]))

        if not isinstance(module, ExpertLinear):
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    for name, holder in holders.items():
        watch = partial(_tell_of_expert, tell, name)
        holder.forward = run_experts(holder, watch, all_tokens=all_tokens)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for holder in holders.values():
            del holder.forward


def _tell_of_expert(
    tell: _Note,
    experts: str,
    linear: str,
    values: torch.Tensor,
    tokens: torch.Tensor,
    weights: torch.Tensor | None,
    routed: int,
) -> None:
    expert = f"{experts}.{linear.partition('.')[0]}"
    tell(f"{experts}.{linear}", Inputs(values, tokens, weights, expert, routed))


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
    return max(1, _budget(torch.device(device)) // _activation_bytes(decoder.layers[0], tokens))


def _budget(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // 4
    return LAYER_BYTES


def _activation_bytes(layer: nn.Module, tokens: int) -> int:
    # A gated feed-forward block holds about four tensors of its width at a time; attention scores
    # are not materialized by PyTorch's fused attention.
    weights = [raw_weight(linear) for linear in linears_of(layer).values()]
    widest = max((max(w.shape) for w in weights), default=1)
    return 4 * widest * next(layer.parameters()).element_size() * tokens
