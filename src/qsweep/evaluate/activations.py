"""Activations as they are served: inputs of a dense model's layers quantized and back, for one run.

What a serving kernel multiplies are codes of activations and codes of weights; here both are numbers
again, so that any device and any bit width can be measured. Scales are computed in float32 from
activations in the model's dtype, as kernels do, by compressed-tensors' own ``calculate_qparams``; the
result is cast back into that dtype, like the dense weights. In float32 it is compressed-tensors'
``fake_quantize`` bit for bit (tests/evaluate/test_activations.py). Nothing depends on which other
windows are run beside: a token's scale is its own, and where one scale is found for all tokens at
once, windows are run alone.

The arithmetic is the library's also where a kernel's differs: a token's dynamic int8 scale is its largest
magnitude / 127.5, that of vLLM's ``dynamic_scaled_int8_quant`` / 127, which moves the divergence by
less than 16 windows resolve (docs/protocol.md).
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import TrialFailed
from qsweep.evaluate.placing import place_layers
from qsweep.formats.activations import LayerActivations, NotSimulated, Rounding
from qsweep.models.experts import detach_experts, experts_in_turn
from qsweep.models.streaming import attach_experts_of
from qsweep.quantizers.native.graph import is_transposed, know_linears, raw_weight

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# How much of a number's last step may lie beyond the largest code and still be rounded to it.
_HALF_STEPS = {("float", 8): 16.0, ("float", 6): 0.25, ("float", 4): 1.0}


class ServedActivations:
    """What was seen while a model ran with quantized activations."""

    def __init__(self) -> None:
        self._layers: dict[str, _Seen] = {}
        self.whole = False
        """Whether a scale is one for all tokens that are run at once."""

    def seen(self, layer: str, how: Rounding) -> "_Seen":
        """The tally of one layer, whose activations are quantized so."""
        self.whole |= how.needs_all_tokens
        return self._layers.setdefault(layer, _Seen())

    def facts(self) -> dict[str, Any]:
        """How many layers there are, and how much of what went into them was out of range.

        ``saturated`` is the share of activations that a static scale cuts off, of those that have
        one; where any does, ``saturated_most`` is that of the layer that has the most,
        ``saturated_layer``.
        """
        shares = {name: seen.share for name, seen in self._layers.items() if seen.counted}
        found: dict[str, Any] = {"layers": len(self._layers)}
        if shares:
            worst = max(shares, key=lambda name: shares[name])
            over = sum(int(seen.over) for seen in self._layers.values() if seen.counted)
            found["saturated"] = over / sum(seen.counted for seen in self._layers.values())
            if over:
                found |= {"saturated_most": shares[worst], "saturated_layer": worst}
        return found

    def require_finite(self) -> None:
        """Name the first layer whose activations had no finite scale. Raises TrialFailed."""
        for name, seen in self._layers.items():
            if seen.broken is not None and bool(seen.broken):
                raise TrialFailed(
                    f"{name}: its activations are not finite, so they have no scale; the layers "
                    "before it overflow with quantized activations, see eval.dtype"
                )


class _Seen:
    """The tally of a layer, on its device until it is asked for."""

    def __init__(self) -> None:
        self.counted = 0
        self.over: Any = 0
        self.broken: Any = None

    @property
    def share(self) -> float:
        return int(self.over) / self.counted


@contextlib.contextmanager
def served_activations(
    model: "PreTrainedModel", layers: Mapping[str, LayerActivations]
) -> Iterator[ServedActivations]:
    """Quantize activations of a dense model's layers while the context is open.

    Args:
        model: In evaluation mode, on its device.
        layers: By the checkpoint's names, what is done to each layer's inputs and outputs.

    Raises:
        NotSimulated: A layer is not found among the model's, or is no linear layer.
        TrialFailed: A static scale is no positive number; the line names the layer.
    """
    for name, layer in layers.items():
        _require_scales(name, layer)
    found = ServedActivations()
    with contextlib.ExitStack() as undo:
        undo.enter_context(_one_by_one(model))
        for name, modules in place_layers(model, layers).items():
            for module in modules:
                # That of a streamed model's layer is nowhere until it runs.
                device = raw_weight(module).device
                device = model.device if device.type == "meta" else device
                if (inputs := layers[name].inputs) is not None:
                    _require_groups(name, inputs, _channels(module))
                    hook = _on_inputs(inputs.on(device), found.seen(name, inputs))
                    undo.callback(module.register_forward_pre_hook(hook).remove)
                if (outputs := layers[name].outputs) is not None:
                    hook = _on_output(outputs.on(device), found.seen(name, outputs))
                    undo.callback(module.register_forward_hook(hook).remove)
        yield found


@contextlib.contextmanager
def _one_by_one(model: "PreTrainedModel") -> Iterator[None]:
    """Let experts run as linear layers, each of which is given its inputs by itself."""
    attach_experts_of(model)
    know_linears(model)
    try:
        with experts_in_turn(model):
            yield
    finally:
        detach_experts(model)


def _on_inputs(how: Rounding, seen: _Seen) -> Any:
    def hook(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (quantized(inputs[0], how, seen), *inputs[1:])

    return hook


def _on_output(how: Rounding, seen: _Seen) -> Any:
    def hook(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        return quantized(output, how, seen)

    return hook


def _channels(module: Any) -> int:
    shape = raw_weight(module).shape
    return int(shape[0] if is_transposed(module) else shape[1])


def _require_groups(name: str, how: Rounding, channels: int) -> None:
    size = how.args.group_size
    if size is not None and size > 0 and channels % size:
        raise NotSimulated(f"{name}: its {channels} inputs are no groups of {size}")


def quantized(values: "Tensor", how: Rounding, seen: _Seen | None = None) -> "Tensor":
    """Activations [..., channels] after they were quantized and back, in their own dtype.

    Args:
        values: Any number of tokens, also none.
        how: What is done to them, its tensors on their device.
        seen: Told how many are out of the range of a static scale, and whether a scale is finite.
    """
    import torch

    if not values.numel():
        return values
    args, found = how.args, values.to(torch.float32)
    if how.factor is not None:
        found = found * how.factor
    if how.limit is not None:
        found = found.clamp(-how.limit, how.limit)
    if args.group_size is not None and args.strategy in ("group", "tensor_group"):
        found = found.unflatten(-1, (-1, args.group_size))
    scale, zero = _scale(found, how)
    scaled = found / scale if zero is None else (found / scale).add_(zero)
    low, high = _range(args)
    if seen is not None:
        _tally(seen, scaled, scale, how, high)
    codes = _rounded(scaled.clamp_(low, high), args)
    found = (codes if zero is None else codes.sub_(zero)).mul_(scale)
    found = found.reshape(values.shape)
    if how.factor is not None:
        found = found / how.factor
    return found.to(values.dtype)


def _scale(values: "Tensor", how: Rounding) -> "tuple[Tensor, Tensor | None]":
    # What codes are multiplied by, and what they are raised by: broadcast over `values`.
    import torch
    from compressed_tensors.quantization.utils import calculate_qparams

    args, whole = how.args, how.global_scale
    if how.scale is not None:
        # Of groups of channels, which have a dimension of their own, each has one.
        column = (-1, 1) if how.scale.numel() > 1 else (-1,)
        scale = how.scale.reshape(column)
        zero = None if how.zero_point is None else how.zero_point.reshape(column)
    elif args.strategy == "tensor":
        scale, zero = calculate_qparams(*torch.aminmax(values), args)
    else:
        low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
        scale, zero = calculate_qparams(low, high, args, global_scale=whole)
    if how.power_of_two:
        scale = scale.log2().ceil().exp2()
    if whole is not None:
        scale = scale / whole
    return scale, None if args.symmetric or zero is None else zero.to(torch.float32)


def _tally(seen: _Seen, scaled: "Tensor", scale: "Tensor", how: Rounding, high: float) -> None:
    import torch

    if how.scale is not None or how.global_scale is not None:
        args = how.args
        beyond = high + _HALF_STEPS.get((args.type, args.num_bits), 0.5)
        seen.over = seen.over + (scaled.abs() > beyond).sum()
        seen.counted += scaled.numel()
    if how.scale is None:
        broken = ~torch.isfinite(scale).all()
        seen.broken = broken if seen.broken is None else seen.broken | broken


def _range(args: Any) -> tuple[float, float]:
    from compressed_tensors.quantization.utils import calculate_range

    low, high = calculate_range(args, "cpu")
    return float(low), float(high)


def _rounded(values: "Tensor", args: Any) -> "Tensor":
    """Values within the codes' range, rounded to the nearest, ties to the even code; in place."""
    import torch

    if args.type == "int":
        return values.round_()
    if args.num_bits == 8:
        return values.to(torch.float8_e4m3fn).to(torch.float32)
    # e2m1 and e2m3: between powers of two from 1 on codes lie 2^(e - mantissa) apart, below 1 as
    # between 1 and 2. (The library's own rounding is compiled where it runs on a CPU.)
    mantissa = args.num_bits - 3
    exponent = torch.frexp(values).exponent.sub_(1).clamp_(0, 2)
    step = torch.ldexp(torch.full_like(values, 2.0**-mantissa), exponent)
    return values.div_(step).round_().mul_(step)


def _require_scales(name: str, layer: LayerActivations) -> None:
    import torch

    for of, how in (("input", layer.inputs), ("output", layer.outputs)):
        for part in ("scale", "global_scale") if how is not None else ():
            value = getattr(how, part)
            if value is not None and not bool((torch.isfinite(value) & (value > 0)).all()):
                raise TrialFailed(
                    f"{name}: its {of}_{part} is {value.min():.4g}, and no activation can be "
                    "divided by that; calibrate it again on text that reaches this layer"
                )
