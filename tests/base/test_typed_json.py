"""JSON into frozen dataclasses, or one line that says what is in the way."""

import doctest
import json
import math
from dataclasses import dataclass, field

import pytest

from helpers.damage import JUNK
from qsweep.base import typed_json
from qsweep.base.typed_json import JsonMismatch, convert, convert_or_none, parse, read


@dataclass(frozen=True)
class Inner:
    n: int
    share: float | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    more: dict[str, Inner] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    on: bool = False


def test_what_fits_becomes_the_dataclass():
    text = '{"name": "x", "inner": {"n": 1, "share": 2}, "more": {"a": {"n": 3}}, "words": ["b"]}'
    expected = Outer("x", Inner(1, 2.0), {"a": Inner(3)}, ("b",))
    assert parse(Outer, text) == parse(Outer, text.encode()) == expected
    assert math.isinf(parse(Inner, '{"n": 1, "share": Infinity}').share)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"inner": {"n": 1}}', "has no name"),
        ('{"name": "x", "inner": {}}', "has no inner.n"),
        ('{"name": "x", "inner": {"n": 1, "m": 2}}', "inner.m: no such field"),
        ('{"name": 3, "inner": {"n": 1}}', "name: input should be a valid string, not 3"),
        ('{"name": "x", "inner": {"n": true}}', "inner.n: .* not true"),
        ('{"name": "x", "inner": {"n": "1"}}', 'inner.n: .* not "1"'),
        ('{"name": "x", "inner": {"n": 1}, "words": "b"}', 'words: .* not "b"'),
        ('{"name": "x", "inner": {"n": 1}, "on": 1}', "on: .* not 1"),
        ("[1]", r"not \[1\]"),
        ('{"name": "' + 200 * "x" + '", "inner": "' + 200 * "y" + '"}', "…$"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(text, line):
    with pytest.raises(JsonMismatch, match=line) as caught:
        parse(Outer, text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_a_file_may_hold_anything(junk, tmp_path):
    file = tmp_path / "file.json"
    file.write_bytes(junk)
    with pytest.raises(JsonMismatch):
        read(Outer, file)


def test_unknown_names_may_be_passed_over_on_request():
    content = {"n": 1, "later": {}}
    assert convert(Inner, content, unknown="ignore") == convert_or_none(Inner, content) == Inner(1)
    with pytest.raises(JsonMismatch):
        convert(Inner, content)
    assert convert_or_none(Inner, {"n": "1"}) is None


def test_half_a_surrogate_pair_of_an_odd_path_is_no_reason_to_refuse_a_file(tmp_path):
    value = {"name": "/home/\udce4/\ud83d\ude00/\\ud", "inner": {"n": 1}}
    file = tmp_path / "file.json"
    file.write_text(json.dumps(value))
    expected = Outer("/home/\ufffd/\U0001f600/\\ud", Inner(1))
    assert convert(Outer, value) == read(Outer, file) == expected


def test_the_example_in_the_documentation_runs():
    assert doctest.testmod(typed_json).failed == 0
