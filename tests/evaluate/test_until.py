"""Windows are read in a random order until an interval is narrow enough."""

import pytest
import torch

from qsweep.base.errors import ConfigError, TrialFailed
from qsweep.evaluate import build_reference, measure, open_reference, reference_measurement
from qsweep.evaluate.compare import compare
from qsweep.evaluate.intervals import half_width
from qsweep.evaluate.until import (
    FIRST_LOOK,
    as_read_by,
    looks,
    measure_until,
    parse_until,
    reading_order,
)
from qsweep.formats.dense import load_dense
from qsweep.formats.hf import reference_artifact
from qsweep.models.facts import read_facts
from qsweep.text.windows import Preset, Windows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ratio ±0.5 %", "ratio ±0.5 %"),
        ("ratio +-1%", "ratio ±1 %"),
        ("RATIO 2 %", "ratio ±2 %"),
        ("kld ±0.002", "kld ±0.002"),
        ("kld +/- 1e-3", "kld ±0.001"),
    ],
)
def test_a_rule_is_read_as_it_is_meant(text, said):
    assert str(parse_until(text)) == said


@pytest.mark.parametrize(
    "text", ["", "ratio", "ratio 0.5", "kld 0.1 %", "ppl 1 %", "ratio ±0 %", "kld -1", "kld 1.2.3"]
)
def test_what_is_no_rule_is_one_line_with_two_that_are(text):
    with pytest.raises(ConfigError) as caught:
        parse_until(text)
    for advised in ("ratio ±0.5 %", "kld ±0.002"):
        assert f"eval.until='{advised}'" in str(caught.value)
        assert str(parse_until(advised)) == advised


def test_the_order_is_random_and_always_the_same():
    order = reading_order(200)
    assert sorted(order) == list(range(200)) and order == reading_order(200)
    assert order[:6] == [87, 46, 15, 44, 192, 185]
    # what is read first lies all over the text
    assert 70 < sum(order[:50]) / 50 < 130


def test_looks_lie_ever_further_apart_and_meet_every_window_once():
    found = list(looks(100))
    assert found[0] == (0, FIRST_LOOK) and found[-1][1] == 100
    assert all(end == begin for (_, end), (begin, _) in zip(found[:-1], found[1:], strict=True))
    assert len(found) < 12 and list(looks(5)) == [(0, 5)] and list(looks(0)) == []


def some_windows(count, context=32):
    ids = torch.randint(0, 4096, (count, context), generator=torch.Generator().manual_seed(0))
    full = torch.full((count,), context)
    first = torch.ones_like(full)
    first[::3] = 5  # windows of unequal counts
    return Windows(ids, first, full, Preset("paper", context), "none")


@pytest.fixture(scope="module")
def setting(tiny_model, tmp_path_factory):
    """A model, the same with noise in its weights, windows, and the reference on these."""
    facts = read_facts(tiny_model("llama"), "llama")
    out, windows = tmp_path_factory.mktemp("reference"), some_windows(40)

    def load(noise=0.0, **more):
        model = load_dense(
            reference_artifact(facts), facts.path, dtype=torch.float32, device="cpu", **more
        )
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters() if noise else ():
            if parameter.ndim == 2:
                parameter.data += noise * torch.randn(parameter.shape, generator=generator)
        return model

    build_reference(load(), windows, out)
    reference = open_reference(out, facts.path, "cpu", torch.float32)
    return load, windows, reference, reference_measurement(out, windows)


def until(setting, rule, noise=0.002, model=None):
    load, windows, reference, base = setting
    return measure_until(model or load(noise), windows, reference, base, parse_until(rule))


def test_what_is_read_is_what_measuring_those_windows_gives(setting):
    load, windows, reference, base = setting
    model = load(0.002)
    found = until(setting, "ratio ±2.5 %", model=model)
    read = found.arrays["window_number"].tolist()
    assert FIRST_LOOK <= len(read) < 40 and read == reading_order(40)[: len(read)]
    assert found.facts["windows"] == len(read) and found.facts["until"]["reached"]
    assert found.facts["whole"] == {"windows": 40, "fingerprint": windows.fingerprint}
    plain = measure(model, windows.select(read), reference.select(windows, read))
    for name in ("window_nll", "window_tokens", "token_kld", "token_top1"):
        assert torch.allclose(found.arrays[name], plain.arrays[name], atol=1e-5), name
    assert found.metrics["ppl"] == pytest.approx(plain.metrics["ppl"], rel=1e-6)
    whole = measure(model, windows, reference)
    assert torch.allclose(found.arrays["window_nll"], whole.arrays["window_nll"][read], atol=1e-3)


def test_the_interval_is_the_sequences_and_as_narrow_as_was_asked(setting):
    _, windows, _, base = setting
    found = until(setting, "ratio ±2.5 %")
    count = found.facts["windows"]
    beside = compare(found, as_read_by(found, base, windows))
    ratio, high = beside["ppl_ratio"], beside["ppl_ratio_high"]
    assert high / ratio - 1 <= 0.025
    plain = compare(measure_again(setting, found), as_read_by(found, base, windows))
    assert high - ratio > 1.3 * (plain["ppl_ratio_high"] - plain["ppl_ratio"])
    half = half_width(found.metrics["kld_stderr"], count, sequential=True)
    assert found.metrics["kld_high"] - found.metrics["kld"] == pytest.approx(half)


def measure_again(setting, found):
    load, windows, reference, _ = setting
    read = found.arrays["window_number"].tolist()
    return measure(load(0.002), windows.select(read), reference.select(windows, read))


def test_a_text_that_does_not_suffice_is_read_to_its_end_and_said(setting):
    found = until(setting, "kld ±0.0000001")
    assert found.facts["windows"] == 40 and found.facts["until"]["reached"] is False
    assert sorted(found.arrays["window_number"].tolist()) == list(range(40))


def test_a_text_that_one_look_reads_is_measured_as_without_a_rule(setting):
    load, windows, reference, base = setting
    few = list(range(FIRST_LOOK))
    part, states, model = windows.select(few), reference.select(windows, few), load(0.002)
    found = measure_until(model, part, states, base, parse_until("ratio ±0.01 %"))
    plain = measure(model, part, states)
    assert found.facts == plain.facts and found.metrics == plain.metrics
    assert set(found.arrays) == set(plain.arrays)
    assert compare(found, as_read_by(found, plain, part))["ppl_ratio_low"] == 1.0


def test_a_model_that_computes_no_numbers_is_refused_at_the_first_look(setting):
    load, *_ = setting
    model, told = load(), []
    model.lm_head.weight.data[7] = float("nan")
    _, windows, reference, base = setting
    first = f"first in window {reading_order(40)[0]} of the text, of which 12 were read"
    with pytest.raises(TrialFailed, match=f"logits are not finite: .*{first}"):
        measure_until(
            model, windows, reference, base, parse_until("ratio ±1 %"),
            lambda _, done: told.append(done),
        )  # fmt: skip
    assert max(told) == FIRST_LOOK / 40


def test_a_copy_is_known_at_the_first_look(setting):
    found = until(setting, "ratio ±0.01 %", noise=0.0)
    assert found.facts["windows"] == FIRST_LOOK and found.metrics["kld"] == 0
    assert found.metrics["kld_high"] == 0


def test_a_streamed_model_reads_the_same_windows_and_gives_the_same_figures(setting):
    load, *_ = setting
    there, streamed = (until(setting, "kld ±0.00001", 0.0, load(stream=s)) for s in (False, True))
    assert there.facts["windows"] == streamed.facts["windows"]
    assert torch.equal(there.arrays["window_nll"], streamed.arrays["window_nll"])


def test_a_reference_on_some_windows_hands_out_their_features(setting):
    _, windows, reference, _ = setting
    ends = [0, *windows.counts.cumsum(0).tolist()]
    chosen = [7, 8, 9, 2, 30]
    some = reference.select(windows, chosen)
    whole = torch.cat([reference.features(slice(ends[n], ends[n + 1])) for n in chosen])
    assert torch.equal(some.features(slice(0, len(whole))), whole)
    assert torch.equal(some.features(slice(33, 101)), whole[33:101])
    assert some.fingerprint == windows.select(chosen).fingerprint
    assert len(some.nll) == len(whole)
