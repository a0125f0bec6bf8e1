"""Which layer got how many bits: from the table of tensors to a line and a table."""

import dataclasses
import re

import pytest

from qsweep.base.errors import QsweepError
from qsweep.formats.tensor_table import TensorRow
from qsweep.formats.weight_errors import tensor_table
from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.quantizers.rtn import RTN
from qsweep.results.assignment import assignment_in, assignment_of, bits_text
from qsweep.results.assignment_text import spans, text_map
from qsweep.results.record_file import content_of, record_of
from qsweep.results.tensor_flags import Claim
from qsweep.results.tensors import summary_of


def row(name, type_, bpw, weights=1000, *, quantized=True, linear=True):
    return TensorRow(
        name=f"{name}.weight", type=type_, bpw=bpw, weights=weights, share=0.1,
        quantized=quantized, linear=linear, relative_error=0.1, max_error=0.1, constant=0,
        changed=None,
    )  # fmt: skip


def layers(*stored, module="mlp.up_proj"):
    """A row for each layer, by its type and bits per weight."""
    return [row(f"model.layers.{n}.{module}", *one) for n, one in enumerate(stored)]


@pytest.fixture(scope="module")
def rows_of(tmp_path_factory):
    """The table of what rounding makes of a model by rules."""

    def make(path, **options):
        facts = read_facts(path, "model")
        out = tmp_path_factory.mktemp("rounded")
        return tensor_table(
            RTN(**options).quantize(SourceModel(facts, "cpu"), None, out), facts, "cpu"
        )

    return make


def test_places_are_kinds_in_the_order_of_use_by_layer(rows_of, pocket_dir):
    found = assignment_of(rows_of(pocket_dir, bits=4, group_size=64, rules={"*.2.*.down_proj": 8}))
    assert list(found.short_kinds.values()) == [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    ]  # fmt: skip
    assert found.layers == (0, 1, 2, 3) and len(found.places) == 28
    assert found.places["mlp.down_proj", 2].type == "int8 g64 asym"
    others = {one.type for place, one in found.places.items() if place != ("mlp.down_proj", 2)}
    assert others == {"int4 g64 asym"}
    assert list(found.beside) == ["model.embed_tokens"]
    assert not found.beside["model.embed_tokens"].quantized
    assert found.is_mixed and str(found) == f"{bits_text(found.bpw)} bpw: 8 bits ×1, 4 bits ×27"


def test_bits_are_those_that_the_trials_table_has(pocket_dir, tmp_path):
    facts = read_facts(pocket_dir, "pocket")
    quant = RTN(bits=3, rules={"*.o_proj": "keep", "*.v_proj": 8})
    artifact = quant.quantize(SourceModel(facts, "cpu"), None, tmp_path)
    found = assignment_of(tensor_table(artifact, facts, "cpu"))
    assert found.bpw == pytest.approx(artifact.size.bpw, rel=1e-3)
    kept = [one for (kind, _), one in found.places.items() if kind.endswith("o_proj")]
    assert {(one.type, one.bpw, one.quantized) for one in kept} == {("BF16", 16, False)}
    share = sum(one.weights for one in kept) / sum(one.weights for one in found.places.values())
    assert found.mean_bits == pytest.approx(16 * share + found.bpw * (1 - share))
    assert str(found).endswith("bpw: 16 bits (kept) ×4, 8 bits ×4, 3 bits ×20")


def test_experts_of_a_layer_are_one_place(rows_of, mixture_dir):
    plain = assignment_of(rows_of(mixture_dir, bits=4, group_size=32))
    assert not plain.is_mixed  # routers stay in 16 bits, and nobody chose that
    assert "mlp.gate" not in plain.kinds and "experts.gate_proj" in plain.short_kinds.values()
    rules = {"*.experts.0.*": "keep", "*.experts.*": 3}
    found = assignment_of(rows_of(mixture_dir, bits=4, group_size=32, rules=rules))
    stored = found.places["mlp.experts.down_proj", 1]
    assert stored.type == "BF16+int3 g32 asym" and stored.quantized
    assert stored.bpw > 16 / 8  # the mean of eight experts, one of which is kept
    (rows, columns), *_ = (
        shape for name, shape in read_facts(mixture_dir, "moe").linears.items()
        if name.endswith("layers.1.mlp.experts.0.down_proj")
    )  # fmt: skip
    assert stored.weights == 8 * rows * columns
    assert "BF16+int3 g32 asym ×9" in str(found)


def test_a_router_has_a_place_where_somebody_had_it_quantized():
    router, tower = "model.layers.0.mlp.gate", "model.visual.blocks.0.mlp.gate"
    rows = [
        *layers(("Q4_K", 4.5)),
        row(router, "Q8_0", 8.5, linear=False),
        row(tower, "Q8_0", 8.5, linear=False),
        row("model.layers.0.conv1d", "Q8_0", 8.5, linear=False),
    ]
    found = assignment_of(rows)
    assert found.kinds == ("mlp.up_proj", "mlp.gate") and found.is_mixed
    assert found.places["mlp.gate", 0].weights == 1000  # the tower's is none of the decoder's
    kept = dataclasses.replace(rows[1], type="BF16", bpw=16.0, quantized=False)
    assert not assignment_of([rows[0], kept]).is_mixed


def test_the_types_of_llama_cpps_own_mix_are_told(pocket_conversion, pocket_dir, conversions):
    from qsweep.quantizers.gguf import GGUF

    facts = read_facts(pocket_dir, "pocket")
    (out := conversions / "mix").mkdir(exist_ok=True)
    artifact = GGUF(type="Q4_K_M").quantize(SourceModel(facts, "cpu"), None, out)
    found = assignment_of(tensor_table(artifact, facts, "cpu"))
    assert found.is_mixed and str(found) == "4.8 bpw: Q6_K ×4, Q4_K ×24"
    assert found.beside["model.embed_tokens"].type == "Q6_K"
    text = text_map(found)
    assert re.search(r"\| 0-1 +\|( +4.5 \|){7}", text) and re.search(r"\| 2-3 .* 6.56 \|", text)
    assert text.endswith(r"Bits per weight: Q4_K 4.5, Q6_K 6.56; in no layer: embed_tokens 6.56.")


def test_one_type_is_no_mix_whatever_its_scales_take():
    alike = layers(("int4 g128 sym", 4.16), ("int4 g128 sym", 4.41))
    assert not assignment_of(alike).is_mixed
    # A type whose name is silent on bits is one all the same.
    assert assignment_of(layers(("trellis", 2.0), ("trellis", 4.0))).is_mixed
    assert assignment_of(layers(("int4 g128 sym", 4.2), ("int4 g64 sym", 4.3))).is_mixed
    numbers = [
        dataclasses.replace(one, quantized=False) for one in layers(("BF16", 16), ("F32", 32))
    ]
    assert not assignment_of(numbers).is_mixed
    assert str(assignment_of(numbers)) == "24 bpw: 32 bits (kept) ×1, 16 bits (kept) ×1"
    assert str(assignment_of([])) == "no layers" and text_map([]) == ""


def test_a_line_names_integers_by_bits_and_others_by_type_and_does_not_grow():
    short = [*[("int3 g64 sym", 3.0)] * 12, *[("int2 g64 sym", 2.0)] * 12]
    assert str(assignment_of(layers(*short))) == "2.5 bpw: 3 bits ×12, 2 bits ×12"
    # Bits alone would not tell these apart.
    groups = layers(("int3 g64 sym", 3.5), ("int3 g128 sym", 3.25))
    assert str(assignment_of(groups)) == "3.38 bpw: int3 g64 sym ×1, int3 g128 sym ×1"
    many = layers(*((f"T{n}", float(n)) for n in range(1, 10)))
    assert (
        str(assignment_of(many)) == "5 bpw: T9 ×1, T8 ×1, T7 ×1, T6 ×1, T5 ×1, T4 ×1, 3 more types"
    )


def test_layers_that_are_alike_share_a_line_wherever_they_are():
    stored = [("Q6_K", 6.5625) if n in (0, 1, 5) else ("Q4_K", 4.5) for n in range(8)]
    some = layers(("Q8_0", 8.5), module="self_attn.q_proj")  # the others have none
    table = text_map([*layers(*stored), *some]).splitlines()
    assert [re.split(r" *\| *", line)[1:4] for line in table[:5] if "--" not in line] == [
        ["layers", "q_proj", "up_proj"],
        ["0", "8.5", "6.56"],
        ["1, 5", "–", "6.56"],
        ["2-4, 6-7", "–", "4.5"],
    ]
    assert spans([]) == "" and spans([3]) == "3" and spans([0, 1, 3, 4, 5, 9]) == "0-1, 3-5, 9"


def test_kinds_keep_their_modules_where_names_would_be_one():
    rows = [row(f"h.0.{kind}", "Q4_K", 4.5) for kind in ("attn.c_proj", "mlp.c_proj", "mlp.c_fc")]
    assert assignment_of(rows).short_kinds == {
        "attn.c_proj": "attn.c_proj", "mlp.c_fc": "c_fc", "mlp.c_proj": "mlp.c_proj"
    }  # fmt: skip


def test_a_record_tells_the_same_as_the_table(rows_of, pocket_dir):
    rows = rows_of(pocket_dir, bits=4, rules={"*.o_proj": "keep", "*.1.mlp.*": 2})
    summary = summary_of(rows, Claim(), ())
    record = record_of({"key": "k", "status": "finished"})
    again = record_of(content_of(dataclasses.replace(record, tensors=summary)))
    found, known = assignment_in(again.tensors), assignment_of(rows)
    assert str(found) == str(known) and found.places.keys() == known.places.keys()
    assert found.beside == known.beside and found.mean_bits == pytest.approx(known.mean_bits)
    # A record of before weights were counted has its places, weighed alike.
    old = content_of(again)
    old["tensors"]["kinds"] = [
        {k: v for k, v in kind.items() if k != "weights"} for kind in old["tensors"]["kinds"]
    ]
    del old["tensors"]["beside"]
    earlier = assignment_in(record_of(old).tensors)
    assert earlier.is_mixed and earlier.places.keys() == known.places.keys()
    with pytest.raises(QsweepError, match="weights"):
        record_of(old | {"tensors": {"kinds": [old["tensors"]["kinds"][0] | {"weights": ["x"]}]}})
