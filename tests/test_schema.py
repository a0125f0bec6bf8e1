from dataclasses import dataclass

import pytest

from qsweep.errors import ConfigError
from qsweep.schema import build, locate, nearest


@dataclass(frozen=True)
class Options:
    bits: int
    sym: bool | None = None
    name: str = "x"
    tasks: tuple[str, ...] = ()

    def __post_init__(self):
        if self.bits > 8:
            raise ConfigError(f"quant.bits={self.bits}: at most 8")


def test_values_are_converted_as_on_a_command_line():
    assert build(Options, {"bits": "4", "sym": "true"}, "quant") == Options(4, True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": 4, "nmae": "y"}, "quant.nmae: no such option; did you mean 'name'?"),
        ({"bits": "three"}, "quant.bits=three"),
        ({}, "quant.bits: field required"),
        ({"bits": 4.5}, "quant.bits=4.5"),
        ({"bits": 9}, "quant.bits=9: at most 8"),
        (
            {"bits": 4, "tasks": "mmlu"},
            "quant.tasks=mmlu: must be a list, as in quant.tasks=[mmlu]",
        ),
    ],
)
def test_mistakes_are_one_line_that_names_the_place(values, message):
    with pytest.raises(ConfigError) as caught:
        build(Options, values, "quant")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nearest_lists_the_words_when_none_is_near():
    assert nearest("zzz", ["gptq", "awq"]) == "; there are awq, gptq"
    assert nearest("gptw", ["gptq", "gptq", "awq"]) == "; did you mean 'gptq'?"


@pytest.mark.parametrize(
    "target", ["no.such.Thing", "qsweep.errors.Nothing", "qsweep.errors.ConfigError"]
)
def test_a_target_that_is_no_dataclass_is_refused(target):
    with pytest.raises(ConfigError, match="quant._target_"):
        locate(target, "quant._target_")
