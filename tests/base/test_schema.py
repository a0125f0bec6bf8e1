import math
from dataclasses import dataclass, field
from typing import Literal

import pytest

from qsweep.base.errors import ConfigError
from qsweep.base.schema import build, locate, nearest


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


@dataclass(frozen=True)
class Inner:
    share: float = 0.5


@dataclass(frozen=True)
class Numbers:
    count: int | None = None
    share: float = 0.5
    auto: int | Literal["auto"] = "auto"
    flag: bool | Literal["auto"] = "auto"
    many: tuple[int, ...] = ()
    inner: Inner = field(default_factory=Inner)
    word: str = ""


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("name", ["count", "share", "auto"])
def test_true_is_no_number(name, value):
    with pytest.raises(ConfigError, match=rf"x\.{name}={str(value).lower()}: a number is wanted"):
        build(Numbers, {name: value}, "x")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "Infinity", math.nan, -math.inf, "1e999"])
@pytest.mark.parametrize("name", ["count", "share", "auto"])
def test_a_number_is_finite(name, value):
    with pytest.raises(ConfigError, match=rf"x\.{name}=.*finite"):
        build(Numbers, {name: value}, "x")


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"many": [1, True]}, "x.many"),
        ({"inner": {"share": "nan"}}, "x.inner.share"),
        ({"inner": {"share": True}}, "x.inner.share"),
        ({"count": 3.7}, "x.count"),
        ({"count": "yes"}, "x.count"),
    ],
)
def test_numbers_are_checked_wherever_they_stand(values, place):
    with pytest.raises(ConfigError, match=place):
        build(Numbers, values, "x")


def test_what_spells_a_number_or_is_meant_as_no_number_is_taken():
    given = {"count": "4", "share": 1, "auto": "auto", "flag": True, "many": ["1"], "word": "nan"}
    made = build(Numbers, given, "x")
    assert (made.count, made.share, made.auto, made.many) == (4, 1.0, "auto", (1,))
    assert made.flag is True and made.word == "nan"
    assert build(Numbers, {"count": 4.0}, "x").count == 4


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("auto", r"x\.auto=aut: input should be 'auto' or a valid integer, unable to parse"),
        ("flag", r"x\.flag=aut: input should be 'auto' or a valid boolean, unable to interpret"),
        ("count", r"x\.count=aut: input should be a valid integer"),
    ],
)
def test_a_word_that_is_taken_as_well_is_named(name, line):
    with pytest.raises(ConfigError, match=line):
        build(Numbers, {name: "aut"}, "x")


def test_nearest_lists_the_words_when_none_is_near():
    assert nearest("zzz", ["gptq", "awq"]) == "; there are awq, gptq"
    assert nearest("gptw", ["gptq", "gptq", "awq"]) == "; did you mean 'gptq'?"


@pytest.mark.parametrize(
    "target", ["no.such.Thing", "qsweep.base.errors.Nothing", "qsweep.base.errors.ConfigError"]
)
def test_a_target_that_is_no_dataclass_is_refused(target):
    with pytest.raises(ConfigError, match="quant._target_"):
        locate(target, "quant._target_")
