"""Experts as linear layers: views of the stacks that a mixture of experts keeps them in.

transformers keeps the experts of a layer as parameters of three dimensions in one module, whose class
it marks with ``use_experts_implementation`` (integrations/moe.py) and whose instances tell how
weights lie. :func:`attach_experts` gives such a module a child for each linear layer of each expert,
``experts.3.gate_proj``, that is a view of its part of the stack. Whoever looks for linear layers then
finds an expert as a linear layer with a number, and what is written into it is written into the stack.
:func:`run_experts` computes what the module does through these views, one expert after another, so
that what goes into each can be looked at.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn

_STACKS = ("gate_up_proj", "down_proj")
# How tokens reach the experts: told by index and weight, or laid out expert by expert before.
Dispatch = Literal["routed", "batched"]


@dataclass(frozen=True)
class Part:
    """Where a linear layer that every expert has lies in a stack [experts, …].

    Attributes:
        name: What an expert's layer is called.
        parameter: The stack; its bias is called ``<parameter>_bias``.
        block: Which of ``blocks`` parts of an expert's outputs it is.
        blocks: Layers that lie in one stack.
        interleaved: Whether these alternate row by row, instead of one behind the other.
        transposed: Whether the stack holds [experts, in, out].
    """

    name: str
    parameter: str
    block: int
    blocks: int
    interleaved: bool
    transposed: bool

    def of(self, stack: torch.Tensor, expert: int) -> torch.Tensor:
        """One expert's weight [out, in], a view of the stack."""
        matrix = stack[expert].T if self.transposed else stack[expert]
        return self.rows(matrix)

    def rows(self, whole: torch.Tensor) -> torch.Tensor:
        """The layer's part of an expert's outputs, or of their bias [out]: a view."""
        if self.interleaved:
            return whole[self.block :: self.blocks]
        size = len(whole) // self.blocks
        return whole[self.block * size : (self.block + 1) * size]


class ExpertLinear(nn.Module):
    """A linear layer of one expert. It has no parameters: its weight is a part of the stack's.

    Args:
        stack: The module that holds all experts of a layer.
        part: Where the layer lies in it.
        expert: The expert's number.
    """

    def __init__(self, stack: nn.Module, part: Part, expert: int):
        super().__init__()
        # Not as a child: the stack is this module's ancestor. A copy of the stack copies it along.
        self.__dict__["stack"] = stack
        self.part, self.expert = part, expert

    @property
    def weight(self) -> torch.Tensor:
        """The layer's weight [out, in]: a view."""
        return self.part.of(getattr(self.stack, self.part.parameter), self.expert)

    @property
    def bias(self) -> torch.Tensor | None:
        """Its bias [out], if it has one: a view."""
        bias = getattr(self.stack, f"{self.part.parameter}_bias", None)
        return None if bias is None else self.part.rows(bias[self.expert])

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Inputs [tokens, in] to outputs [tokens, out]."""
        return nn.functional.linear(input, self.weight, self.bias)


class Watch(Protocol):
    """Is shown what goes into each linear layer of each expert, before the layer runs.

    ``inputs`` are [tokens, channels], of which a layer's first ones share one tensor; ``tokens``
    their numbers [tokens] in the text, ``weights`` [tokens] what the expert's outputs for them are
    multiplied by (None: by 1). ``routed`` is how many tokens are the expert's own.
    """

    def __call__(
        self,
        name: str,
        inputs: torch.Tensor,
        tokens: torch.Tensor,
        weights: torch.Tensor | None,
        routed: int,
        /,
    ) -> None:
        """Look at the inputs of the layer ``name``, such as ``3.gate_proj``."""


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds all experts of a layer, in stacks as transformers has them."""
    return dispatch_of(module) is not None


def dispatch_of(module: nn.Module) -> Dispatch | None:
    """How a module of experts is called; None if it is none, or its stacks are of another kind.

    Classes without transformers' mark are told by what their ``forward`` takes: hidden states with
    the routing and its weights (LongCat-Flash, Step 3.7), or a copy of all tokens for each expert,
    scaled before (Llama 4).
    """
    if _is_marked(module):
        return "routed"
    first, last = (getattr(module, name, None) for name in _STACKS)
    if not isinstance(first, torch.Tensor) or not isinstance(last, torch.Tensor):
        return None
    if first.ndim != 3 or last.ndim != 3:
        return None
    # Of rows, twice as many as the last layers have inputs, or of columns.
    (one, other), (outputs, inputs) = first.shape[1:], last.shape[1:]
    if (one, other) not in ((2 * inputs, outputs), (inputs, 2 * outputs)):
        return None
    dispatches: dict[int, Dispatch] = {3: "routed", 1: "batched"}
    return dispatches.get(len(inspect.signature(type(module).forward).parameters) - 1)


def _is_marked(module: nn.Module) -> bool:
    # What the decorator leaves on classes and instances.
    return hasattr(type(module), "_apply_gate") and hasattr(module, "is_concatenated")


def holds_unknown_experts(module: nn.Module) -> bool:
    """Whether a module is called after experts, has stacks of matrices, and none are attached to it."""
    stacks = any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))
    return stacks and "Expert" in type(module).__name__ and not _has_children(module)


def parts_of(module: nn.Module) -> list[Part]:
    """The linear layers that each expert of a module has, in running order."""
    interleaved = not getattr(module, "is_concatenated", True)
    transposed = getattr(module, "is_transposed", None)
    if transposed is None:
        first, last = (module.get_parameter(name).shape for name in _STACKS)
        transposed = first[1] != 2 * last[2]
    down = Part("down_proj", "down_proj", 0, 1, False, transposed)
    if not getattr(module, "has_gate", True):
        return [Part("up_proj", "up_proj", 0, 1, False, transposed), down]
    gate, up = (
        Part(name, "gate_up_proj", block, 2, interleaved, transposed)
        for block, name in enumerate(("gate_proj", "up_proj"))
    )
    return [gate, up, down]


def expert_count(module: nn.Module) -> int:
    """How many experts a module holds weights of."""
    down = module.down_proj
    assert isinstance(down, torch.Tensor)
    return len(down)


def attach_experts(model: nn.Module) -> None:
    """Give each module of experts its linear layers as children: ``0.gate_proj``, and so on.

    Classes without transformers' mark only where these compute what the class does.
    """
    understood: dict[type, bool] = {}
    for module in list(model.modules()):
        if not is_experts(module) or not understood.get(type(module), True):
            continue
        parts = parts_of(module)
        for expert in range(expert_count(module)):
            child = nn.Module()
            for part in parts:
                child.add_module(part.name, ExpertLinear(module, part, expert))
            module.add_module(str(expert), child)
        if type(module) not in understood:
            understood[type(module)] = _is_marked(module) or _computes_the_same(module)
        if not understood[type(module)]:
            _detach(module)


def detach_experts(model: nn.Module) -> None:
    """Take these children off again."""
    for _, module in list(attached(model)):
        _detach(module)


def _has_children(module: nn.Module) -> bool:
    return "0" in module._modules


def _detach(module: nn.Module) -> None:
    for expert in range(expert_count(module)):
        del module._modules[str(expert)]


def _computes_the_same(module: Any) -> bool:
    down = module.down_proj
    if down.is_meta:
        return True
    count, tokens = expert_count(module), 4
    width = len(parts_of(module)[-1].of(down, 0))
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count * tokens, width, generator=generator).to(down)
    index = torch.randint(0, count, (len(hidden), 2), generator=generator)
    index[:, 1] = (index[:, 0] + 1) % count
    weights = torch.rand(len(hidden), 2, generator=generator).to(down)
    routed = dispatch_of(module) == "routed"
    given = (hidden, index.to(down.device), weights) if routed else (hidden,)
    with torch.no_grad():
        try:
            expected = module(*given)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return False
        output = run_experts(module)(*given)
    size = expected.float().abs().max()
    return bool((output.float() - expected.float()).abs().max() <= 2e-2 * size)


def attached(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules below one that have experts attached to them, by name."""
    for name, module in model.named_modules():
        if _has_children(module) and is_experts(module):
            yield name, module


@contextmanager
def experts_in_turn(model: nn.Module) -> Iterator[None]:
    """Within it, attached experts below ``model`` run one after another, as linear layers."""
    holders = [holder for _, holder in attached(model)]
    for holder in holders:
        holder.forward = run_experts(holder)
    try:
        yield
    finally:
        for holder in holders:
            del holder.forward


def _look_away(*seen: Any) -> None:
    """A watch that does nothing."""


def run_experts(
    module: nn.Module, watch: Watch = _look_away, *, all_tokens: bool = False
) -> Callable[..., torch.Tensor]:
    """What stands for the ``forward`` of a module with attached experts, and shows what goes in.

    First every expert's first layers are shown their inputs, in order, then every expert's last
    ones: who changes weights at that moment changes what is computed.

    Args:
        module: The module.
        watch: Is shown the inputs.
        all_tokens: Show every expert all tokens, whichever are its own; the result stays as it is.
    """
    if dispatch_of(module) == "batched":
        return lambda hidden: _run_batched(module, watch, hidden, all_tokens=all_tokens)

    def routed(hidden_states: torch.Tensor, *given: torch.Tensor, **named: Any) -> torch.Tensor:
        # Families call the two that follow by names of their own.
        rest = [*given, *named.values()]
        top_k_index, top_k_weights = sorted(rest, key=torch.is_floating_point)
        hidden = hidden_states.reshape(-1, hidden_states.shape[-1])
        index = top_k_index.reshape(len(hidden), -1)
        weights = top_k_weights.reshape(index.shape)
        output = _run_routed(module, watch, hidden, index, weights, all_tokens=all_tokens)
        return output.view(hidden_states.shape).to(hidden_states.dtype)

    return routed


def _run_routed(
    module: nn.Module,
    watch: Watch,
    hidden: torch.Tensor,
    index: torch.Tensor,
    weights: torch.Tensor,
    *,
    all_tokens: bool,
) -> torch.Tensor:
    # Hidden states [tokens, width], the experts each is sent to, and their weights [tokens, k].
    every = torch.arange(len(hidden), device=hidden.device)
    own, shares = [], []
    for expert in range(expert_count(module)):
        tokens, slots = torch.where(index == expert)
        own.append(tokens)
        shares.append(weights[tokens, slots])
    for expert, tokens in enumerate(own):
        shown, share = (every, None) if all_tokens else (tokens, shares[expert])
        inputs = hidden if all_tokens else hidden[tokens]
        for name in _first(module):
            watch(f"{expert}.{name}", inputs, shown, share, len(tokens))
    inner = []
    for expert, tokens in enumerate(own):
        if all_tokens:
            states = _activated(module, expert, hidden)
            watch(f"{expert}.down_proj", states, every, None, len(tokens))
            states = states[tokens]
        else:
            states = _activated(module, expert, hidden[tokens])
            watch(f"{expert}.down_proj", states, tokens, shares[expert], len(tokens))
        inner.append(states)
    output = torch.zeros_like(hidden)
    for expert, states in enumerate(inner):
        results = _linear(module, expert, "down_proj")(states) * shares[expert][:, None]
        output.index_add_(0, own[expert], results.to(output.dtype))
    if hasattr(module, "identity_expert"):
        tokens, slots = torch.where(index >= expert_count(module))
        passed = hidden[tokens] * weights[tokens, slots, None]
        output.index_add_(0, tokens, passed.to(output.dtype))
    return output


def _run_batched(
    module: nn.Module, watch: Watch, hidden: torch.Tensor, *, all_tokens: bool
) -> torch.Tensor:
    count = expert_count(module)
    states = hidden.view(count, -1, hidden.shape[-1])
    # A token that is not an expert's own comes to it as zeros.
    mine = states.any(-1)
    own = [torch.where(part)[0] for part in mine]
    shown, given = own, states
    if all_tokens:
        # Who is shown another's token sees it as that one does, scaled by what that is worth to it.
        others = states.sum(0) / mine.sum(0).clamp(min=1)[:, None]
        given = torch.where(mine[..., None], states, others)
        shown = [torch.arange(states.shape[1], device=hidden.device)] * count
    for expert, tokens in enumerate(shown):
        inputs = given[expert, tokens]
        for name in _first(module):
            watch(f"{expert}.{name}", inputs, tokens, None, len(own[expert]))
    inner = []
    for expert, tokens in enumerate(shown):
        inner.append(_activated(module, expert, given[expert, tokens]))
        watch(f"{expert}.down_proj", inner[-1], tokens, None, len(own[expert]))
    output = torch.zeros_like(states)
    for expert, tokens in enumerate(own):
        chosen = inner[expert][tokens] if all_tokens else inner[expert]
        output[expert, tokens] = _linear(module, expert, "down_proj")(chosen).to(output.dtype)
    return output.view(-1, hidden.shape[-1])


def _first(module: nn.Module) -> list[str]:
    return [part.name for part in parts_of(module)[:-1]]


def _linear(module: nn.Module, expert: int, name: str) -> nn.Module:
    return module.get_submodule(f"{expert}.{name}")


def _activated(module: Any, expert: int, inputs: torch.Tensor) -> torch.Tensor:
    # [tokens, in] -> what goes into the last layer.
    outputs = [_linear(module, expert, name)(inputs) for name in _first(module)]
    if len(outputs) == 1:
        activated: torch.Tensor = module.act_fn(outputs[0])
        return activated
    if not hasattr(module, "_apply_gate"):
        gated: torch.Tensor = module.act_fn(outputs[0]) * outputs[1]
        return gated
    concatenated = getattr(module, "is_concatenated", True)
    whole = torch.cat(outputs, -1) if concatenated else torch.stack(outputs, -1).flatten(-2)
    gated = module._apply_gate(whole)
    return gated
