"""AWQ (Lin et al. 2023, arXiv:2306.00978) by Gram matrices.

With H = X^T X / tokens, the mean square error of a layer's output is tr((W - Q) H (W - Q)^T): a
candidate costs a product with H, however long the calibration text was.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch.nn.functional import pad

from qsweep.formats.numbers.rounding import encoded, grouped_rows
from qsweep.formats.numbers.scheme import LayerScheme, Scheme
from qsweep.formats.packing import QuantizedMatrix
from qsweep.quantizers.native.stats import InputStats, output_loss, quick_output_loss

# Exponents that the search tries first, and how far it then looks to both sides of the best.
_EXPONENTS = tuple(step / 10 for step in range(11))
_REFINE = 0.05
# Rows that stand for all when exponents are compared.
_SAMPLE_ROWS = 256
# And of each expert, where there are many.
_FEWEST_ROWS = 16

# Whether the weights' magnitudes take part, and the exponent.
_Candidate = tuple[bool, float]


@dataclass(frozen=True)
class Shared:
    """Linear layers that are given the same inputs.

    Attributes:
        weights: Their weights, float32 [rows, channels] each.
        stats: Of the inputs.
        scheme: How weights become codes; where rows share scales, or all have one, the sample of
            rows that is looked at has its own.
    """

    weights: Sequence[torch.Tensor]
    stats: InputStats
    scheme: Scheme


def search_scales(inputs: Sequence[Shared]) -> tuple[torch.Tensor, dict[str, float]]:
    """Scales of the inputs that linear layers share, so that rounding hurts their outputs least.

    Tries s = x^a and s = x^a / w^(1-a), with x the mean magnitude of an input and w that of its
    weights relative to their groups' largest.

    Args:
        inputs: What is scaled alike: one input, or those of several experts, which are parts of one.

    Returns:
        Scales, float32 [channels], and what was found: ``exponent``, and ``gain``, the loss as a
        share of the loss without scaling, over a sample of the rows.
    """
    inputs = [shared for shared in inputs if shared.weights]
    limit = max(_SAMPLE_ROWS // len(inputs), _FEWEST_ROWS)
    samples = [
        (_sample(shared.weights, limit), quick_output_loss(shared.stats.damped), shared.scheme)
        for shared in inputs
    ]
    # What an expert does counts as often as it is asked.
    counts = [
        seen.tokens if seen.routed is None else seen.routed
        for seen in (shared.stats for shared in inputs)
    ]
    shares = [1.0] if len(inputs) == 1 else [count / max(sum(counts), 1) for count in counts]
    magnitude = torch.stack(
        [shared.stats.magnitude * share for shared, share in zip(inputs, shares, strict=True)]
    ).sum(0)
    magnitude[magnitude <= 0] = magnitude[magnitude > 0].mean() if magnitude.any() else 1.0
    relative = _relative_magnitude(inputs)
    tried: dict[_Candidate, float] = {}

    def scales_of(candidate: _Candidate) -> torch.Tensor:
        both, exponent = candidate
        return _scales(magnitude, relative if both else None, exponent)

    def losses_of(scales: torch.Tensor) -> torch.Tensor:
        each = [losses(_error(rows, scales, scheme)).sum() for rows, losses, scheme in samples]
        return torch.stack(each)

    def best_with(candidates: Iterable[_Candidate]) -> _Candidate:
        new = [candidate for candidate in candidates if candidate not in tried]
        if new:
            # A GPU is waited for once.
            found = torch.stack([losses_of(scales_of(candidate)) for candidate in new]).tolist()
            for candidate, each in zip(new, found, strict=True):
                weighed = zip(shares, each, strict=True)
                tried[candidate] = sum(share * loss for share, loss in weighed)
        return min(tried, key=lambda candidate: tried[candidate])

    # With both and an exponent of 1, the weights' magnitudes drop out again.
    both, exponent = best_with(c for c in product((False, True), _EXPONENTS) if c != (True, 1.0))
    near = (round(exponent + step, 6) for step in (-_REFINE, _REFINE))
    best = best_with((both, value) for value in near if 0 <= value <= 1)
    gain = tried[best] / max(tried[False, 0.0], 1e-30)
    return scales_of(best), {"exponent": best[1], "gain": gain}


def quantize(
    weight: torch.Tensor, gram: torch.Tensor, layer: LayerScheme, *, clip: bool
) -> tuple[QuantizedMatrix, torch.Tensor]:
    """Round to nearest, after clipping each group where its own inputs' Gram matrix says it pays.

    Args:
        weight: float32 [rows, channels], scaled.
        gram: Gram matrix [channels, channels] of the scaled inputs.
        layer: How its weights become codes.
        clip: Whether ranges may shrink.

    Returns:
        The matrix, and the loss of each row, float32 [rows].
    """
    channels = weight.shape[1]
    grouped = grouped_rows(weight, layer.scheme.groups(channels))
    scale, zero = layer.find(grouped)
    if clip:
        scale, zero = _clip(grouped, gram, layer, scale, zero)
    matrix = encoded(layer, grouped, scale, zero, channels)
    return matrix, output_loss(matrix.dense(torch.float32) - weight, gram)


def scaled_gram(gram: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The Gram matrix of inputs that are divided by ``scales`` [channels]."""
    return gram / scales / scales[:, None]


def _clip(
    grouped: torch.Tensor,
    gram: torch.Tensor,
    layer: LayerScheme,
    scale: torch.Tensor,
    zero: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    losses = _losses_by_group(gram, grouped.shape[-1])
    low, high = layer.extent(grouped)
    best = layer.share(losses(layer.rounded(grouped, scale, zero).sub_(grouped)))
    for share in layer.scheme.scale.clips[1:]:
        new_scale, new_zero = layer.at(low * share, high * share)
        error = layer.share(losses(layer.rounded(grouped, new_scale, new_zero).sub_(grouped)))
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, new_scale, scale)
        zero = torch.where(better, new_zero, zero)
    return scale, zero


def _losses_by_group(gram: torch.Tensor, size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    # Errors [rows, groups, size] x the groups' own blocks [size, size] -> loss [rows, groups]
    if size == len(gram):
        # Where the block is all of the matrix, products with it are what takes the time.
        whole = quick_output_loss(gram)
        return lambda error: whole(error[:, 0])[:, None]
    if missing := -len(gram) % size:
        gram = pad(gram, (0, missing, 0, missing))
    blocks = torch.stack(
        [gram[start : start + size, start : start + size] for start in range(0, len(gram), size)]
    )

    def losses(error: torch.Tensor) -> torch.Tensor:
        error = error.transpose(0, 1)
        return torch.bmm(error, blocks).mul_(error).sum(-1).T

    return losses


def _scales(
    magnitude: torch.Tensor, relative: torch.Tensor | None, exponent: float
) -> torch.Tensor:
    scales = magnitude.pow(exponent)
    if relative is not None:
        scales = scales / (relative.pow(1 - exponent) + 1e-4)
    scales = scales.clamp(min=1e-4)
    return scales / (scales.max() * scales.min()).sqrt()


def _error(rows: torch.Tensor, scales: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    scaled = rows * scales
    layer = scheme.layers([scaled])[0]
    grouped = grouped_rows(scaled, scheme.groups(rows.shape[1]))
    rounded = layer.rounded(grouped, *layer.find(grouped)).view(len(rows), -1)
    return rounded[:, : rows.shape[1]].div_(scales).sub_(rows)


def _sample(weights: Sequence[torch.Tensor], limit: int) -> torch.Tensor:
    total = sum(len(weight) for weight in weights)
    step = max(1, -(-total // limit))
    return torch.cat([weight[::step] for weight in weights])


def _relative_magnitude(inputs: Sequence[Shared]) -> torch.Tensor:
    weights = [(weight, shared.scheme) for shared in inputs for weight in shared.weights]
    first, _ = weights[0]
    total = torch.zeros(first.shape[1], device=first.device)
    for weight, scheme in weights:
        grouped = grouped_rows(weight.abs(), scheme.groups(weight.shape[1]))
        relative = (grouped / (grouped.amax(-1, keepdim=True) + 1e-6)).view(len(weight), -1)
        total += relative[:, : weight.shape[1]].sum(0)
    return total / sum(len(weight) for weight, _ in weights)
