"""Take the calibration text through a decoder layer, for any decoder-only architecture."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from qsweep.quantizers.native.graph import linears_of, raw_weight
from qsweep.quantizers.native.layers import Chunk, Inputs, Stage, StageInputs, blocks_of, run_layer
from qsweep.quantizers.native.memory import activation_bytes
from qsweep.quantizers.native.precision import multiplies_bfloat16
from qsweep.quantizers.native.stages import watching
from qsweep.quantizers.native.stats import InputStats, lend_ranges

# Is told of stages that run side by side, and what goes into each.
OnStages = Callable[[Sequence[Stage], Sequence[InputStats]], None]


class _Stop(Exception):
    """The layer has run far enough."""


def rounds_needed(
    layer: nn.Module,
    stages: Sequence[Stage],
    chunks: Sequence[Chunk],
    walking: int,
    sharing: int,
    room: int,
) -> int:
    """In how many rounds there is memory for GPTQ configurations inside a decoder layer.

    Each has weights and the factor of a Gram matrix. One that walks through layers of its own also
    has that Gram matrix, of experts those that run side by side, and the activations of a forward
    that waits.

    Args:
        layer: The decoder layer.
        stages: Its stages.
        chunks: The calibration text.
        walking: How many configurations walk through layers of their own.
        sharing: How many share the unquantized model's statistics.
        room: Bytes that there are for them.
    """
    weights = [raw_weight(linear) for linear in linears_of(layer).values()]
    if not weights:
        return 1
    square = 4 * max(max(weight.shape) for weight in weights) ** 2
    each = sum(weight.numel() * weight.element_size() for weight in weights) + square
    # What runs again waits for all of the layer.
    again = any(stage.repeats for stage in stages)
    blocks = [list(stages)] if again else blocks_of(stages)
    grams = [sum(4 * stage.channels**2 for stage in block) for block in blocks]
    more = max(square, *grams)
    if len(chunks) == 1:
        more += activation_bytes(layer, chunks[0].tokens)
    costs = [each + more] * walking + [each] * sharing
    return fewest_rounds(costs, room)


def fewest_rounds(costs: Sequence[int], room: int) -> int:
    """The fewest rounds, each with every n-th of all, in none of which costs are above ``room``.

    As many as there are costs where one alone is above it.
    """
    count = max(1, len(costs))
    fit = (n for n in range(1, count) if max(sum(costs[k::n]) for k in range(n)) <= room)
    return next(fit, count)


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
            Those that run several times are replaced before all others.
        gather: Makes the statistics of a linear layer of this name.
        keep: Filled with what goes into the stages.
        plain: What a run without quantized layers kept, for the statistics across both.
        all_tokens: Let the statistics of each expert be of all tokens.

    Returns:
        The text with the layer's output.
    """
    first = {stage.linears[0]: stage for stage in stages}
    blocks = {block[0].block: block for block in blocks_of(stages)}
    again = {name for name, stage in first.items() if stage.repeats}
    stats = {name: gather(full_name(name)) for name in first}
    # Of experts that are shown all tokens, one tensor for all of them.
    moved: tuple[torch.Tensor, Inputs] | None = None

    def finished(block: Sequence[Stage]) -> list[InputStats]:
        found = [stats.pop(stage.linears[0]).finish() for stage in block]
        lend_ranges(found)
        return found

    def take(name: str, inputs: Inputs, number: int) -> None:
        beside = plain[name][number] if plain and name not in again else None
        across = None if beside is None else inputs.beside(beside.values, beside.tokens)
        stats[name].add(inputs.values, across, inputs.weights, inputs.routed)

    def keep_too(name: str, inputs: Inputs) -> None:
        nonlocal moved
        assert keep is not None
        if moved is None or moved[0] is not inputs.values:
            moved = inputs.values, inputs.to(chunks[0].hidden.device)
        keep.setdefault(name, []).append(replace(inputs, values=moved[1].values))

    if changes_weights and again:
        # What runs again cannot be changed before it has been seen each time: it comes before the rest.
        def look(name: str, inputs: Inputs) -> None:
            if name in again:
                take(name, inputs, 0)

        with watching(layer, look, all_tokens=all_tokens):
            for chunk in chunks:
                _calibrate(layer, chunk, index)
        for block in blocks.values():
            if block[0].repeats:
                on_stages(block, finished(block))

    if len(chunks) > 1 and changes_weights:
        for block in blocks.values():
            if not block[0].repeats:
                _run_up_to(layer, index, block, chunks, take, all_tokens=all_tokens)
                on_stages(block, finished(block))
        return [_run(layer, chunk, index) for chunk in chunks]

    on_the_way = len(chunks) == 1 and (changes_weights or not again)

    def note(name: str, inputs: Inputs) -> None:
        if name not in stats:
            return
        if keep is not None and name not in again:
            keep_too(name, inputs)
        # With several chunks the weights stay as they are, and nothing is told across.
        take(name, inputs, 0)
        block = blocks[first[name].block]
        if on_the_way and first[name] is block[-1]:
            on_stages(block, finished(block))

    with watching(layer, note, all_tokens=all_tokens):
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

    with watching(layer, note, all_tokens=all_tokens):
        for number, chunk in enumerate(chunks):  # noqa: B007 - what note sees
            try:
                _calibrate(layer, chunk, index)
            except _Stop:
                continue


def _run(layer: nn.Module, chunk: Chunk, index: int) -> Chunk:
    return chunk.with_hidden(_calibrate(layer, chunk, index))


def _calibrate(layer: nn.Module, chunk: Chunk, index: int) -> torch.Tensor:
    # Matrix products run in bfloat16, and what is computed from them until it meets the residual
    # stream, which stays in the model's own precision.
    device = next(layer.parameters()).device
    half = multiplies_bfloat16(device.type) and not chunk.exact
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        return run_layer(layer, chunk, index)
