"""``kv_cache=``: what people write, its one spelling, and what is no type."""

import pytest

from qsweep.base.errors import ConfigError
from qsweep.formats.kv_cache.spec import KVCache, LayerCache, kv_cache


@pytest.mark.parametrize(
    ("written", "spelled"),
    [
        (None, "none"),
        ("none", "none"),
        ("q8_0", "q8_0"),
        ("q8_0/q4_0", "q8_0/q4_0"),
        ("q8_0/q8_0", "q8_0"),
        ("none/fp8", "none/fp8"),
        ({"default": "q4_0"}, "q4_0"),
        ({5: "q8_0", "default": "q4_0", "0": None}, "{default: q4_0, 0: none, 5: q8_0}"),
        ({"default": "q4_0", 1: "q4_0"}, "q4_0"),
        ({3: "q8_0/q4_0"}, "{default: none, 3: q8_0/q4_0}"),
        ("{default:q4_0, 10: none,2:fp8}", "{default: q4_0, 2: fp8, 10: none}"),
    ],
)
def test_each_meaning_has_one_spelling(written, spelled):
    found = kv_cache(written)
    assert str(found) == spelled
    assert kv_cache(spelled) == found and hash(kv_cache(spelled)) == hash(found)
    assert bool(found) is (spelled != "none")


def test_layers_have_what_they_are_given():
    found = kv_cache({"default": "q4_0", 0: "none", 2: "q8_0/q5_1"})
    assert found.of(1) == found.of(99) == LayerCache("q4_0", "q4_0")
    assert found.of(2) == LayerCache("q8_0", "q5_1") and not found.of(0)
    assert found.kinds == (LayerCache("q4_0", "q4_0"), LayerCache(), LayerCache("q8_0", "q5_1"))
    assert not KVCache()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("q8", r"kv_cache=q8: no type 'q8'; .*; did you mean 'q8_0'"),
        ("q8_0/q4", r"no type 'q4'; .*; did you mean 'q4_"),
        ("q8_0/", "no type ''"),
        (4, "no type '4'"),
        ({"default": "int4"}, r"kv_cache.default=int4: no type 'int4'; .*; did you mean 'int8'"),
        ({"first": "q8_0"}, "kv_cache.first: neither default nor the number of a layer, from 0"),
        ({"defalt": "q8_0"}, "kv_cache.defalt: neither default nor"),
        ({-1: "q8_0"}, "kv_cache.-1: neither default nor the number"),
    ],
)
def test_what_is_no_type_and_no_layer_is_said(written, said):
    with pytest.raises(ConfigError, match=said) as caught:
        kv_cache(written)
    assert "\n" not in str(caught.value)
