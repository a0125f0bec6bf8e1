"""AWQ's two searches as GPTQModel runs them, corrected for float32 on a CPU and made quick.

GPTQModel 7.6 leaves two things to be desired, which :func:`corrected_awq` replaces while a model is
quantized. Its scale search keeps what it believes to be a copy of the weights, but in float32 on a
CPU that is the weights themselves, so every candidate is tried on the ruins of the one before.
Its clip search multiplies activations and weights element by element, which takes four fifths of
AWQ's time; the same sums are matrix products. The candidates and the losses stay the method's own,
but a scale that does badly on a quarter of the calibration text is not tried on the rest.

Formulas: Lin et al. 2023, AWQ, https://arxiv.org/abs/2306.00978, section 3.2.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from math import isfinite
from typing import TYPE_CHECKING, Any

from qsweep.base.errors import BackendUnavailable

if TYPE_CHECKING:
    import torch

_STEPS = 20
_SCREEN = 4
_FINALISTS = 5
_ROWS = 256
_EXPECTED = {
    "_compute_best_scale": "self x w_mean x_mean module2inspect linears2scale fp16_output kwargs",
    "_compute_best_clip": "self w input_feat n_grid max_shrink n_sample_token",
    "_pseudo_quantize_tensor_into": "self src dst",
    "_iter_module_forward_outputs": "self x module module_kwargs",
}


@contextmanager
def corrected_awq() -> Iterator[None]:
    """Use these searches instead of GPTQModel's, and let its portable kernel pack float32 weights.

    Raises:
        BackendUnavailable: The installed GPTQModel is built differently.
    """
    import torch
    from gptqmodel.looper.awq_processor import AWQProcessor
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear

    for name, expected in _EXPECTED.items():
        method = getattr(AWQProcessor, name, None)
        if method is None or " ".join(inspect.signature(method).parameters) != expected:
            raise BackendUnavailable(
                f"AWQ: the installed gptqmodel has another {name}; pip install 'gptqmodel==7.6.0'"
            )
    scale, clip = AWQProcessor._compute_best_scale, AWQProcessor._compute_best_clip
    dtypes = AwqTorchLinear.SUPPORTS_DTYPES
    try:
        AWQProcessor._compute_best_scale = _compute_best_scale
        AWQProcessor._compute_best_clip = _compute_best_clip
        AwqTorchLinear.SUPPORTS_DTYPES = [*dtypes, torch.float32]
        yield
    finally:
        AWQProcessor._compute_best_scale = scale
        AWQProcessor._compute_best_clip = clip
        AwqTorchLinear.SUPPORTS_DTYPES = dtypes


def candidate_scales(
    x_mean: "torch.Tensor", w_mean: "torch.Tensor", ratio: float
) -> "torch.Tensor":
    """One candidate for the scale of each input channel [in]; their extremes multiply to 1.

    ``x_mean`` and ``w_mean`` are the channels' mean magnitudes, of activations and of weights
    relative to their group's largest.
    """
    import torch

    scales = (x_mean.pow(ratio) / (w_mean.pow(1 - ratio) + 1e-4)).clamp(min=1e-4)
    scales = scales / (scales.max() * scales.min()).sqrt()
    return torch.where(torch.isfinite(scales), scales, torch.ones_like(scales))


def search_scale(
    weights: Sequence["torch.Tensor"],
    candidates: Sequence["torch.Tensor"],
    round_trip: Callable[["torch.Tensor"], None],
    error: Callable[[int], float],
    chunks: int,
) -> tuple["torch.Tensor", float]:
    """The candidate with the least error, and that error; ``weights`` are as before afterwards.

    All candidates are tried on every fourth chunk of the calibration text, and the best five of
    them on the rest.

    Args:
        weights: The matrices [out, in] that one scale is searched for, changed in place meanwhile.
        candidates: Scales [in].
        round_trip: Quantizes and dequantizes a matrix in place.
        error: The squared error of the block's output on one chunk, with the weights as they are.
        chunks: How many chunks there are.

    Raises:
        ValueError: No candidate has a finite error.
    """
    originals = [weight.detach().clone() for weight in weights]

    def total(scales: "torch.Tensor", part: Iterable[int]) -> float:
        for weight, original in zip(weights, originals, strict=True):
            weight.copy_(original).mul_(scales)
            round_trip(weight)
            weight.div_(scales)
        return sum(error(chunk) for chunk in part)

    screened = range(0, chunks, _SCREEN)
    rest = [chunk for chunk in range(chunks) if chunk % _SCREEN]
    try:
        errors = {place: total(scales, screened) for place, scales in enumerate(candidates)}
        finite = [place for place, value in errors.items() if isfinite(value)]
        if not finite:
            raise ValueError("AWQ: every scale gives an infinite error; do activations overflow?")
        best = sorted(finite, key=errors.__getitem__)[:_FINALISTS]
        if rest:
            errors |= {place: errors[place] + total(candidates[place], rest) for place in best}
        winner = min(best, key=errors.__getitem__)
    finally:
        for weight, original in zip(weights, originals, strict=True):
            weight.copy_(original)
    return candidates[winner], errors[winner]


def search_clip(
    weight: "torch.Tensor",
    inputs: "torch.Tensor",
    group_size: int,
    round_trip: Callable[["torch.Tensor"], None],
    factors: Sequence[float],
) -> "torch.Tensor":
    """The bound for each group's magnitudes that quantizes with the least output error.

    Args:
        weight: [out, in].
        inputs: Activations [tokens, in].
        group_size: Inputs per group; it divides ``in``.
        round_trip: Quantizes and dequantizes [rows, groups, group_size] in place.
        factors: Shares of the group's maximum to try, the first one first.

    Returns:
        [out, groups, 1] of the weight's dtype.
    """
    import torch

    rows, columns = weight.shape
    shape = (-1, columns // group_size, group_size)
    grouped = inputs.reshape(inputs.shape[0], *shape[1:]).transpose(0, 1).float()
    # |X d|^2 = d' (X'X) d: with fewer inputs in a group than tokens, the small square is cheaper.
    gram = grouped.transpose(1, 2) @ grouped if group_size < inputs.shape[0] else None
    bounds = []
    for part in weight.split(_ROWS):
        part = part.reshape(shape)
        largest = part.abs().amax(dim=-1, keepdim=True)
        best, least = largest.clone(), torch.full_like(largest, float("inf"), dtype=torch.float32)
        for factor in factors:
            bound = largest * factor
            rounded = torch.clamp(part, -bound, bound)
            round_trip(rounded)
            delta = (rounded - part).float().transpose(0, 1)
            if gram is not None:
                error = ((delta @ gram) * delta).sum(-1)
            else:
                error = (grouped @ delta.transpose(1, 2)).square().sum(1)
            error = error.T.unsqueeze(-1)
            better = error < least
            best, least = torch.where(better, bound, best), torch.where(better, error, least)
        bounds.append(best)
    return torch.cat(bounds)


def _compute_best_scale(
    self: Any,
    x: "torch.Tensor",
    w_mean: "torch.Tensor",
    x_mean: "torch.Tensor",
    module2inspect: Any,
    linears2scale: Sequence[Any],
    fp16_output: Any,
    kwargs: Any = None,
) -> tuple["torch.Tensor", float]:
    # In the place of AWQProcessor's method of that name, so with its arguments.
    import torch

    weights = [linear.weight for linear in linears2scale]
    device = weights[0].device
    x_mean, w_mean = x_mean.view(-1).to(device), w_mean.view(-1).to(device)
    hint = getattr(self._scale_context, "prev_scale", None)
    if hint is not None:
        w_mean = w_mean * float(hint)

    # The unquantized outputs come in the chunks that GPTQModel ran them in, split by samples.
    references = [fp16_output] if isinstance(fp16_output, torch.Tensor) else list(fp16_output)
    ends = list(accumulate(len(part) for part in references))
    rows = [slice(None)]
    if len(references) > 1:
        rows = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]

    def block_error(chunk: int) -> float:
        own = _rows_of(kwargs or {}, rows[chunk], x.shape[0])
        outputs = self._iter_module_forward_outputs(x[rows[chunk]], module2inspect, own)
        output = torch.cat(list(outputs))
        reference = references[chunk].to(output.device)
        return (output.float() - reference.float()).square().sum().item()

    with torch.inference_mode():
        error: Callable[[int], float] = block_error
        chunks = len(references)
        if module2inspect is linears2scale[0] and device.type == x.device.type == "cpu":
            error, chunks = _error_of_one_matrix(weights[0], x), 1
        ratios = [step / _STEPS for step in range(_STEPS)]
        best, least = search_scale(
            weights,
            [candidate_scales(x_mean, w_mean, ratio) for ratio in ratios],
            lambda weight: self._pseudo_quantize_tensor_into(weight, weight),
            error,
            chunks,
        )
    return best.detach().cpu(), least / max(sum(part.numel() for part in references), 1)


def _error_of_one_matrix(weight: "torch.Tensor", x: "torch.Tensor") -> Callable[[int], float]:
    # |X d'|^2 = sum of (d X'X) * d: the activations are gone through once, not once per candidate.
    original = weight.detach().clone().float()
    inputs = x.reshape(-1, x.shape[-1]).float()
    gram = inputs.T @ inputs

    def error(_: int) -> float:
        delta = weight.float() - original
        return float(((delta @ gram) * delta).sum())

    return error


def _rows_of(value: Any, rows: slice, count: int) -> Any:
    # Arguments of the block that go with the samples: masks, positions.
    import torch

    if isinstance(value, torch.Tensor):
        return value[rows] if value.ndim and value.shape[0] == count else value
    if isinstance(value, dict):
        return {key: _rows_of(item, rows, count) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_rows_of(item, rows, count) for item in value)
    return value


def _compute_best_clip(
    self: Any,
    w: "torch.Tensor",
    input_feat: "torch.Tensor",
    n_grid: int = 20,
    max_shrink: float = 0.5,
    n_sample_token: int = 512,
) -> "torch.Tensor":
    # In the place of AWQProcessor's method of that name.
    import torch

    inputs = input_feat.reshape(-1, input_feat.shape[-1])
    inputs = inputs[:: max(1, inputs.shape[0] // n_sample_token)].to(w.device)
    group_size = self.qcfg.group_size if self.qcfg.group_size > 0 else w.shape[1]
    with torch.inference_mode():
        return search_clip(
            w,
            inputs,
            group_size,
            lambda values: self._pseudo_quantize_tensor_into(values, values),
            [1 - step / n_grid for step in range(int(max_shrink * n_grid))],
        )
