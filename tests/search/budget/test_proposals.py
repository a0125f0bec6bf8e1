"""Limits, and what is proposed within them."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.budgets import EMBEDDING, LAYERS, WEIGHTS, candidate, costs
from qsweep.base.errors import ConfigError
from qsweep.formats.kv_cache.spec import kv_cache
from qsweep.quantizers.rules import Rule
from qsweep.search.budget.costs import costs_of
from qsweep.search.budget.families import patterns_of
from qsweep.search.budget.limits import Limit, bits_left, limit_of, range_of
from qsweep.search.budget.proposals import propose, rivals, uniforms_within
from qsweep.search.budget.reach import require_in_range
from qsweep.search.budget.settings import Budget

CONFIG = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "intermediate_size": 128,
}


def _size(amount: float) -> Limit:
    return limit_of(Budget("size_gb", amount), {}, None)


def test_bits_go_where_they_matter():
    known = costs(candidate(2), candidate(4))
    # Room for one layer of four.
    limit = _size((2 * 4 + 2) * WEIGHTS / 8e9 + 1000 / 1e9)
    (proposal,) = propose(limit, known)
    assert proposal.choice == (1, 0, 0, 0)
    assert proposal.base == 0
    assert proposal.rules == [f"{LAYERS[0]}=bits:4,group_size:64"]
    assert known.bytes_of(proposal.choice) <= limit.bytes
    assert proposal.loss == pytest.approx(100 * 4.0**-4 + 3 * 4.0**-2)


def test_what_was_larger_than_counted_is_made_smaller():
    known = costs(candidate(2), candidate(4))
    limit = _size((2 * 4 + 2) * WEIGHTS / 8e9 + 1000 / 1e9)
    (proposal,) = propose(limit, known, excess=1)
    assert proposal.choice == (0, 0, 0, 0)
    assert proposal.uniform
    assert propose(limit, known, excess=10**6) == []


def test_neighbours_are_others():
    known = costs(candidate(2), candidate(3), candidate(4))
    limit = _size(3 * 4 * WEIGHTS / 8e9 + 1000 / 1e9)
    found = propose(limit, known, neighbours=3)
    assert len({one.choice for one in found}) == 4
    assert [one.loss for one in found] == sorted(one.loss for one in found)


def test_bits_per_weight_count_linear_layers_alone():
    known = costs(candidate(2, embedding=4), candidate(4, embedding=8))
    (proposal,) = propose(Limit(Budget("bpw", 2.5), None), known)
    linear = [n for n, group in enumerate(known.groups) if group != (EMBEDDING,)]
    widths = [(2, 4)[proposal.choice[n]] for n in linear]
    assert sum(widths) / len(widths) == 2.5
    # The embedding is that of the best candidate within the budget.
    assert proposal.choice[known.groups.index((EMBEDDING,))] == 0
    (larger,) = propose(Limit(Budget("bpw", 4), None), known)
    assert larger.choice[known.groups.index((EMBEDDING,))] == 1
    # By size it counts like any other.
    (by_size,) = propose(_size(known.largest / 1e9), known)
    assert set(by_size.choice) == {1}


def test_equal_options_of_several_candidates_are_one():
    same = candidate(3)
    known = costs_of(
        [candidate(2), same, same], [(name,) for name in LAYERS], dict.fromkeys(LAYERS)
    )
    assert np.isfinite(known.losses).sum(1).tolist() == [2] * len(LAYERS)


def test_groups_whose_layers_differ_within_a_candidate_have_no_such_option():
    two, three = candidate(2), candidate(3)
    mixed = candidate(4)
    mixed = type(mixed)(**{**vars(mixed), "values": {**mixed.values, LAYERS[0]: "bits:8"}})
    known = costs_of([two, three, mixed], [LAYERS], dict.fromkeys(LAYERS))
    assert np.isfinite(known.losses).tolist() == [[True, True, False]]


def test_memory_of_a_card_is_shared_with_the_context():
    one = limit_of(Budget("vram_gb", 1), CONFIG, 4096)
    longer = limit_of(Budget("vram_gb", 1), CONFIG, 8192)
    # Two layers of keys and values of two heads of 16, in 16 bits.
    assert one.bytes - longer.bytes >= 4096 * 2 * 2 * 2 * 16 * 2
    assert one.bytes + one.taken == 10**9
    quantized = limit_of(Budget("vram_gb", 1), CONFIG, 8192, kv_cache("q8_0/q4_0"))
    assert quantized.bytes > limit_of(Budget("vram_gb", 1), CONFIG, 8192, kv_cache("q8_0")).bytes
    # 8.5 and 4.5 bits instead of 16.
    cache = limit_of(Budget("vram_gb", 1), CONFIG, 8192).beside.cache
    assert quantized.beside.cache == pytest.approx(cache * (8.5 + 4.5) / 32, rel=0.01)
    with pytest.raises(ConfigError, match="leaves nothing for the model; a shorter context"):
        limit_of(Budget("vram_gb", 0.001), CONFIG, 10**6)


def test_range():
    known = costs(candidate(2), candidate(4))
    assert range_of(_size(1), known) == (known.smallest / 1e9, known.largest / 1e9)
    assert range_of(Limit(Budget("bpw", 3), None), known) == (2.0, 4.0)
    for amount in (1.9, 4.1):
        with pytest.raises(ConfigError, match=r"smallest .* bpw=2, the largest bpw=4"):
            require_in_range([Limit(Budget("bpw", amount), None)], [known])
    require_in_range([Limit(Budget("bpw", 2), None), Limit(Budget("bpw", 4), None)], [known])


def test_what_is_left_is_what_is_asked_less_the_rest():
    known = costs(candidate(2), candidate(4))
    left, _ = bits_left(_size(1), known)
    assert left == 8e9 - 8000


def test_uniform_ones_that_may_be_the_best_within_a_budget():
    known = costs(candidate(2), candidate(3), candidate(4), candidate(5))
    within = uniforms_within(Limit(Budget("bpw", 4.5), None), [known])
    assert [one.name for one in within] == ["4 bits", "3 bits", "2 bits"]
    # Two at least, and whoever is near.
    assert [one.name for one in rivals(within)] == ["4 bits", "3 bits"]
    near = [replace(one, name=f"near {n}") for n, one in enumerate([within[0]] * 3)]
    assert len(rivals([within[0], *near, within[2]])) == 4
    assert rivals(uniforms_within(Limit(Budget("bpw", 1), None), [known])) == []


def test_what_a_rule_of_the_candidates_own_settles_is_not_chosen_for():
    found = [candidate(2), candidate(4)]
    settled = LAYERS[1]
    for one in found:
        del one.values[settled]
        one.bits[settled] = 8 * WEIGHTS
    known = costs(*found)
    assert (settled,) not in known.groups and len(known.groups) == len(LAYERS) - 1
    (proposal,) = propose(Limit(Budget("size_gb", 1), 10**9), known)
    assert set(proposal.choice) == {1}
    assert known.smallest < known.largest < 10**6


def test_a_candidate_that_cannot_hold_a_layer_is_no_option_for_it():
    two, four = candidate(2), candidate(4)
    del four.values[LAYERS[3]]
    known = costs(two, four)
    (proposal,) = propose(Limit(Budget("bpw", 4), None), known)
    assert proposal.choice == (1, 1, 1, 0)
    assert proposal.rules == [f"{LAYERS[3]}=bits:2,group_size:64"]
    propose(Limit(Budget("bpw", 2.5), None), costs(two, four))


def test_patterns_name_their_layers_and_what_vllm_makes_one_of():
    layers = [
        f"model.layers.{n}.{kind}"
        for n in (1, 11)
        for kind in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj",
                     "mlp.up_proj", "mlp.gate", "mlp.down_proj")
    ]  # fmt: skip
    (attention,) = patterns_of(layers[:3], layers)
    (mlp,) = patterns_of(layers[3:5], layers)
    assert [n for n in layers if Rule(attention).matches(n)] == layers[:3]
    assert [n for n in layers if Rule(mlp).matches(n)] == layers[3:5]
    assert Rule(attention).matches("model.layers.1.self_attn.qkv_proj")
    assert Rule(mlp).matches("model.layers.1.mlp.gate_up_proj")
    experts = [f"0.mlp.experts.{n}.{kind}" for n in range(2) for kind in ("up_proj", "down_proj")]
    assert patterns_of(experts, [*experts, "0.mlp.gate"]) == ["0.mlp.experts.*"]
    assert patterns_of(experts[::2], experts) == ["0.mlp.experts.*.up_proj"]
    # Where no pattern has these alone, each is named.
    assert patterns_of(["0.w1", "0.w3"], ["0.w1", "0.w2", "0.w3"]) == ["0.w1", "0.w3"]
