"""AWQ's searches against plain loops, and against GPTQModel's own where that works."""

import os

import pytest
import torch

from qsweep.quantizers.gptqmodel.awq_search import candidate_scales, search_clip, search_scale

GENERATOR = torch.Generator().manual_seed(5)


def round_trip(values):
    """Asymmetric rounding to 3 bits over the last dimension, in place."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    scale = (high - low).clamp(min=1e-5) / 7
    zero = (-low / scale).round()
    values.copy_((((values / scale).round() + zero).clamp(0, 7) - zero) * scale)


@pytest.mark.parametrize("group_size", [16, 64])
@pytest.mark.parametrize("tokens", [12, 200])
def test_clip_is_the_best_of_all_factors(group_size, tokens):
    weight = torch.randn(8, 64, generator=GENERATOR) ** 3
    inputs = torch.randn(tokens, 64, generator=GENERATOR)
    factors = [1 - step / 20 for step in range(10)]
    bounds = search_clip(weight, inputs, group_size, round_trip, factors)
    assert bounds.shape == (8, 64 // group_size, 1)
    for row in range(8):
        for group in range(64 // group_size):
            columns = slice(group * group_size, (group + 1) * group_size)
            part, seen = weight[row, columns], inputs[:, columns]
            errors = {}
            for factor in factors:
                bound = part.abs().max() * factor
                rounded = part.clamp(-bound, bound)
                round_trip(rounded)
                errors[float(bound)] = float((seen @ (rounded - part)).square().sum())
            chosen = errors[min(errors, key=lambda b: abs(b - float(bounds[row, group])))]
            assert chosen <= min(errors.values()) * 1.0001


@pytest.mark.parametrize(("chunks", "slack"), [(1, 0), (3, 0.02), (12, 0.02)])
def test_scale_is_the_best_and_weights_come_back(chunks, slack):
    weight = torch.randn(8, 32, generator=GENERATOR)
    before = weight.clone()
    inputs = torch.randn(1200, 32, generator=GENERATOR) * torch.linspace(0.1, 8, 32)
    means = inputs.abs().mean(0), (weight.abs() / weight.abs().max()).mean(0)
    candidates = [candidate_scales(*means, step / 20) for step in range(20)]
    parts = inputs.chunk(chunks)

    def error(chunk):
        return float((parts[chunk] @ (weight - before).T).square().sum())

    best, least = search_scale([weight], candidates, round_trip, error, chunks)
    assert torch.equal(weight, before)
    errors = []
    for scales in candidates:
        rounded = before * scales
        round_trip(rounded)
        errors.append(float((inputs @ (rounded / scales - before).T).square().sum()))
    # A candidate that a quarter of the text speaks against is not tried on all of it.
    assert least <= min(errors) * (1 + slack + 1e-4)
    (chosen,) = (place for place, scales in enumerate(candidates) if torch.equal(best, scales))
    assert least == pytest.approx(errors[chosen], rel=1e-4)


def test_infinite_errors_are_reported():
    weight = torch.ones(2, 4)
    with pytest.raises(ValueError, match="infinite"):
        search_scale([weight], [torch.ones(4)], round_trip, lambda _: float("nan"), 2)
    assert torch.equal(weight, torch.ones(2, 4))


def test_extremes_of_a_candidate_multiply_to_one():
    x, w = torch.rand(64, generator=GENERATOR), torch.rand(64, generator=GENERATOR)
    scales = candidate_scales(x, w, 0.4)
    assert float(scales.max() * scales.min()) == pytest.approx(1, rel=1e-5)
    assert torch.isfinite(candidate_scales(torch.zeros(4), torch.zeros(4), 0.5)).all()


@pytest.mark.parametrize("group_size", [32, -1])
@pytest.mark.parametrize("sym", [True, False])
def test_clip_as_gptqmodel_finds_it(group_size, sym):
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    pytest.importorskip("gptqmodel")
    from types import SimpleNamespace

    from gptqmodel.looper.awq_processor import AWQProcessor

    from qsweep.quantizers.gptqmodel.awq_search import corrected_awq

    processor = object.__new__(AWQProcessor)
    processor.qcfg = SimpleNamespace(group_size=group_size, bits=3, sym=sym)
    weight = torch.randn(128, 64, generator=GENERATOR) ** 3
    inputs = torch.randn(700, 64, generator=GENERATOR)
    theirs = processor._compute_best_clip(weight.clone(), inputs)
    with corrected_awq():
        ours = processor._compute_best_clip(weight.clone(), inputs)
    assert ours.shape == theirs.shape
    assert (ours != theirs).float().mean() < 0.01
    assert processor._compute_best_clip.__module__.startswith("gptqmodel")
