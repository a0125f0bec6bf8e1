"""Which linear layers of a decoder layer share an input, and in which order they run.

It is learned from the identity of the tensors they are given while the layer runs.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from qsweep.base.errors import IncompatibleTrial
from qsweep.models.experts import ExpertLinear, attached, run_experts
from qsweep.models.facts import is_of_text
from qsweep.quantizers.native.graph import linears_of, named_linears
from qsweep.quantizers.native.layers import Chunk, Inputs, Stage, run_layer
from qsweep.quantizers.native.limits import LAYER_BYTES

Note = Callable[[str, Inputs], None]


def find_stages(layer: nn.Module, probe: Chunk, index: int) -> list[Stage]:
    """Find which linear layers of a decoder layer share an input, by running it on the probe.

    A linear layer that does not run, because the model multiplies by its weight itself (Mamba's
    ``dt_proj``) or only for other inputs than text, is in no stage. Experts run on all tokens here.

    Raises:
        IncompatibleTrial: one of several that are built alike did not run, as in a mixture of
            experts that are modules.
    """
    stages: list[list[str]] = []
    found: list[tuple[int, str]] = []
    known: dict[tuple[int, str], tuple[Any, int]] = {}
    places: dict[str, int] = {}
    again: set[int] = set()

    def note(name: str, inputs: Inputs) -> None:
        if name in places:
            again.add(places[name])
            return
        key = id(inputs.values), inputs.expert
        reference, stage = known.get(key, (None, -1))
        # An id may be used again once its tensor is gone: the reference tells.
        if reference is None or reference() is not inputs.values:
            stage = len(stages)
            known[key] = (weakref.ref(inputs.values), stage)
            stages.append([])
            found.append((inputs.values.shape[-1], inputs.expert))
        stages[stage].append(name)
        places[name] = stage

    with watching(layer, note, all_tokens=True):
        run_layer(layer, probe, index)
    _refuse_idle_experts(places, linears_of(layer).keys() - places.keys())
    numbered = list(_numbered(stages, found))
    blocks = {numbered[number].block for number in again}
    marked = [replace(stage, repeats=stage.block in blocks) for stage in numbered]
    # What runs again is quantized before the rest.
    return sorted(marked, key=lambda stage: not stage.repeats)


def _refuse_idle_experts(ran: Iterable[str], idle: Iterable[str]) -> None:
    alike = {_without_last_number(name) for name in ran} - {None}
    for name in sorted(idle):
        if _without_last_number(name) in alike and is_of_text(name):
            raise IncompatibleTrial(
                f"{name} takes no part for every token, as experts do; those are quantized whose "
                "class has transformers' use_experts_implementation"
            )


def _without_last_number(name: str) -> str | None:
    parts = name.split(".")
    last = max((n for n, part in enumerate(parts) if part.isdecimal()), default=None)
    return None if last is None else ".".join((*parts[:last], "*", *parts[last + 1 :]))


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


@contextmanager
def watching(layer: nn.Module, note: Note, *, all_tokens: bool) -> Iterator[None]:
    """Within it, ``note`` is told what goes into each linear layer before that runs.

    With ``all_tokens`` experts are shown all of them, whichever are their own.
    """

    def tell(name: str, inputs: Inputs) -> None:
        # Statistics, and the solving that a question in the middle of the layer waits for, are
        # no part of the model; nor are other configurations' walks, which go on meanwhile in the
        # same thread.
        with torch.autocast("cpu", enabled=False):
            note(name, inputs)

    handles = []
    holders = dict(attached(layer))
    for _, module, name in named_linears(layer):

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
    tell: Note,
    experts: str,
    linear: str,
    values: torch.Tensor,
    tokens: torch.Tensor,
    weights: torch.Tensor | None,
    routed: int,
) -> None:
    expert = f"{experts}.{linear.partition('.')[0]}"
    tell(f"{experts}.{linear}", Inputs(values, tokens, weights, expert, routed))
