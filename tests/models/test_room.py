"""Whether a model is held whole or layer by layer is told by what is free and what is asked for."""

import pytest

from qsweep.base.errors import ConfigError
from qsweep.base.memory import available_bytes
from qsweep.models.facts import read_facts
from qsweep.models.room import held_parameters, streams
from qsweep.models.settings import ModelConfig


def test_auto_streams_what_does_not_fit():
    assert not streams("auto", 1)
    assert streams("auto", available_bytes() * 2)


@pytest.mark.parametrize("choice", [True, False])
def test_a_choice_is_a_choice(choice):
    assert streams(choice, 1) is choice
    assert streams(choice, 1 << 60) is choice


def test_two_layers_and_what_is_in_none_are_held(tiny_model):
    facts = read_facts(tiny_model("llama"), "llama")
    # It has two layers, so that all of it is.
    assert held_parameters(facts) == facts.parameters
    first = {n: s for n, s in facts.linears.items() if ".layers.0." in n}
    deeper = {n.replace(".0.", f".{layer}."): s for n, s in first.items() for layer in range(10)}
    layer = sum(rows * columns for rows, columns in first.values())
    large = facts.__class__(**{**facts.__dict__, "linears": deeper, "parameters": 10 * layer + 7})
    assert held_parameters(large) == 2 * layer + 7


def test_one_device_and_several_exclude_each_other(tmp_path):
    with pytest.raises(ConfigError, match=r"leave one of the two out"):
        ModelConfig("x", path=str(tmp_path), stream=True, device_map="auto")
    assert ModelConfig("x", path=str(tmp_path), device_map="auto").stream == "auto"
