"""What a budget may be, and one line on what it may not."""

import pytest

from qsweep.base.errors import ConfigError
from qsweep.search.budget.settings import (
    Budget,
    BudgetConfig,
    budget_config,
    read_budgets,
    read_context,
)


def test_several_in_order():
    found = read_budgets({"size_gb": ["1.9", 1.2, "1.9"], "bpw": [None]})
    assert found == [Budget("size_gb", 1.2), Budget("size_gb", 1.9)]
    assert str(found[1]) == "size_gb=1.9"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "say how large the model may be: size_gb=1.9, bpw=4.25, or vram_gb=16"),
        ({"size_gb": [None], "bpw": [None]}, "say how large"),
        ({"size_gb": ["1"], "bpw": ["3"]}, "size_gb and bpw are given; one of them"),
        ({"size_gb": ["0"]}, "size_gb=0: must be a number of GB, above 0"),
        ({"size_gb": ["-1"]}, "size_gb=-1: must be a number of GB"),
        ({"bpw": ["four"]}, "bpw=four: must be a number of bits per weight"),
        ({"bpw": ["nan"]}, "bpw=nan"),
        ({"vram_gb": ["inf"]}, "vram_gb=inf"),
        ({"vram_gb": [True]}, "vram_gb=True"),
        ({"vram_gb": [""]}, "vram_gb=: must be"),
    ],
)
def test_no_budget(given, words):
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        read_budgets(given)


@pytest.mark.parametrize("value", [0, -1, 2.5, "8k", True])
def test_no_context(value):
    with pytest.raises(ConfigError, match="context="):
        read_context(value, needed=True)


def test_context_is_needed_for_a_card_alone():
    assert read_context(None, needed=False) is None
    assert read_context(32768, needed=True) == 32768
    with pytest.raises(ConfigError, match="as in context=32768"):
        read_context(None, needed=True)


def test_settings():
    assert budget_config({"neighbours": 2, "fuse": False}) == BudgetConfig(2, False)
    with pytest.raises(ConfigError, match=r"budget.neighbours=-1: must be at least 0"):
        budget_config({"neighbours": -1})
    with pytest.raises(ConfigError, match="did you mean 'neighbours'"):
        budget_config({"neighbors": 1})
    with pytest.raises(ConfigError, match="no mapping of options"):
        budget_config("x")
