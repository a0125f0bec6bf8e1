"""Divergence among tokens that are alike, from a measurement's arrays."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from helpers.records import reference, trial
from helpers.typed import typed
from qsweep.results.html.data import groups
from qsweep.results.html.token_bins import Tokens
from qsweep.results.html.tokens import divergence_by_token

WINDOWS, CONTEXT = 50, 129


@pytest.fixture
def arrays():
    dice = np.random.default_rng(0)
    positions = np.tile(np.arange(1, CONTEXT), WINDOWS)
    entropy = dice.uniform(0, 6, len(positions)).astype("float32")
    # Grows with the position, and is larger where the reference weighed more.
    kld = (0.001 * positions * (1 + (entropy > 2))).astype("float32")
    return {
        "token_kld": kld,
        "reference_confidence": np.exp(-entropy),
        "reference_entropy": entropy,
        "window_tokens": np.full(WINDOWS, CONTEXT - 1),
        "positions": positions,
    }


def panels(tmp_path, arrays, **facts):
    file = tmp_path / "arrays.safetensors"
    save_file({name: values for name, values in arrays.items() if name != "positions"}, file)
    records = [reference(), trial("gptq 4-bit", "gptq", 1.05, bits=4)]
    for record in records:
        record["measurements"][0]["facts"] |= {"context": CONTEXT, "windows": WINDOWS, **facts}
    (group,) = groups(typed(records))
    return {panel.id: panel for panel in divergence_by_token(group, lambda *_: file)}


def test_positions_are_in_bins_that_double(tmp_path, arrays):
    found = panels(tmp_path, arrays)
    values = found["positions"].spec["data"]["values"]
    assert [v["bin"] for v in values] == [
        "1-1", "2-3", "4-7", "8-15", "16-31", "32-63", "64-127", "128-255"
    ]  # fmt: skip
    for value, low in zip(values, 2 ** np.arange(8), strict=True):
        inside = (arrays["positions"] >= low) & (arrays["positions"] < 2 * low)
        assert value["tokens"] == inside.sum() and value["from"] == low
        assert value["kld"] == pytest.approx(float(arrays["token_kld"][inside].mean()), rel=1e-5)


def test_entropies_are_in_bins_of_nats(tmp_path, arrays):
    values = panels(tmp_path, arrays)["entropy"].spec["data"]["values"]
    assert [v["bin"] for v in values] == ["0-0.1", "0.1-0.5", "0.5-1", "1-2", "2-4", "4 and more"]
    inside = arrays["reference_entropy"]
    chosen = arrays["token_kld"][(inside >= 2) & (inside < 4)]
    assert values[4]["tokens"] == len(chosen)
    assert values[4]["median"] == pytest.approx(float(np.median(chosen)), rel=1e-5)


def test_a_measurement_of_before_entropies_has_the_other_panels(tmp_path, arrays):
    del arrays["reference_entropy"]
    assert panels(tmp_path, arrays).keys() == {"tokens", "confidence", "positions"}
    del arrays["window_tokens"]
    assert panels(tmp_path, arrays).keys() == {"tokens", "confidence"}


def test_positions_that_counts_do_not_tell_are_read_or_not_shown(tmp_path, arrays):
    assert "positions" not in panels(tmp_path, arrays, stride=64)
    assert "positions" not in panels(tmp_path, arrays, preset="conversations")
    told = {**arrays, "token_position": arrays["positions"][::-1].astype("int32").copy()}
    row = groups(typed([reference(), trial("x", "gptq", 1.05, bits=4)]))[0].quantized[0]
    assert np.array_equal(Tokens(row, told).positions, told["token_position"])
    found = panels(tmp_path, told, preset="conversations")["positions"].spec["data"]["values"]
    assert found[0]["kld"] > found[-1]["kld"]  # turned round
