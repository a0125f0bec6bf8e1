"""Which card runs which number format, and how."""

from pathlib import Path

import pytest

from qsweep.base.errors import ConfigError
from qsweep.formats.hardware import CARDS, find_card, fit, native_on, where
from qsweep.formats.numbers import FORMATS

CONF = Path(__file__).resolve().parents[2] / "conf" / "format"


def how(name, card, holder=None):
    return fit(FORMATS[name], CARDS[card], holder).how


def test_every_number_format_of_the_group_is_known_by_name():
    assert set(FORMATS) == {path.stem for path in CONF.glob("*.yaml")}


@pytest.mark.parametrize(
    ("name", "cards"),
    [
        ("fp8", {"t4": "unpacked", "a100": "unpacked", "l4": "native", "h100": "native", "b200": "native"}),
        ("nvfp4", {"rtx3090": "unpacked", "rtx4090": "unpacked", "h100": "unpacked", "rtx5090": "native"}),
        ("mxfp8", {"h100": None, "b200": "native", "cpu": None}),
        ("w8a8", {"t4": "native", "a100": "native", "h100": "native", "b200": None, "cpu": "native"}),
        ("w4afp8", {"l4": None, "h100": "native", "b200": None}),
        ("w4a8", {"t4": None, "b200": None, "cpu": "native"}),
        ("w4a16", {"t4": "unpacked", "b200": "unpacked", "cpu": "unpacked"}),
        ("nvfp4a16", {"a100": "unpacked", "cpu": None}),
        ("int", {"t4": "unpacked", "cpu": "unpacked"}),
    ],
)  # fmt: skip
def test_generations_multiply_what_they_have_kernels_for(name, cards):
    assert {card: how(name, card) for card in cards} == cards


def test_a_gguf_file_runs_wherever_llama_cpp_does():
    assert {how("nvfp4", card, "gguf") for card in CARDS} == {"unpacked"}


def test_what_is_unpacked_says_that_activations_are_not_quantized():
    assert "activations stay in 16 bits" in fit(FORMATS["fp8"], CARDS["a100"]).why
    assert fit(FORMATS["w8a8"], CARDS["b200"]).why == "w8a8 needs Turing to Hopper"
    assert "activations stay in 16 bits" in where(FORMATS["nvfp4"])


def test_every_format_says_where_it_runs():
    for number in FORMATS.values():
        assert native_on(number) and where(number)
        runs = {how(number.name, card) for card in CARDS}
        assert runs != {None}, f"{number.name} runs nowhere"


@pytest.mark.parametrize("spelled", ["rtx4090", "RTX 4090", "rtx-4090", "NVIDIA GeForce RTX 4090"])
def test_a_card_may_be_written_as_it_is_sold(spelled):
    assert find_card(spelled, "search.hardware").name == "rtx4090"


@pytest.mark.parametrize(
    ("name", "told"), [("h10", "did you mean"), ("mi300x", "no such card; there are a10, a100,")]
)
def test_an_unknown_card_is_one_line_with_the_nearest(name, told):
    with pytest.raises(ConfigError) as error:
        find_card(name, "search.hardware")
    assert told in str(error.value) and "\n" not in str(error.value)
