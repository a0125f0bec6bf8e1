"""What is stated of a layer, where others are stated to be left alone."""

import pytest

from qsweep.base.errors import ArtifactCorrupt
from qsweep.formats.packed_settings import stated_of

MLP = "model.layers.0.mlp"
GATE = f"{MLP}.gate"


@pytest.mark.parametrize(
    "rules",
    [
        {"extra_config": {GATE: {"bits": 16, "data_type": "fp"}}},
        {"extra_config": {r".*\.mlp\.gate$": {"bits": 16}}},
        {"dynamic": {rf"+:{MLP}\.gate$": {"bits": 16}}},
        {"dynamic": {r"+:.*\.gate$": {"bits": 32}, r"+:.*\.down_proj$": {"bits": 8}}},
    ],
)
def test_a_rule_for_a_layer_that_is_left_alone_is_no_damage(rules):
    stated = {"bits": 4, "group_size": 128, **rules}
    assert set(stated_of(stated, f"{MLP}.gate_proj").bits) <= {4, 8}
    assert stated_of(stated, f"{MLP}.gate_proj").bits[0] == 4
    # Of the layer itself nothing could be read.
    with pytest.raises(ArtifactCorrupt, match=rf"bits: \d+ for {GATE}; a whole number from 2 to 8"):
        stated_of(stated, GATE)


def test_the_rule_by_name_counts_before_an_expression():
    rules = {r".*gate_proj": {"bits": 8}, f"{MLP}.gate_proj": {"bits": 3, "group_size": 32}}
    found = stated_of({"bits": 4, "group_size": 128, "extra_config": rules}, f"{MLP}.gate_proj")
    assert (found.bits[0], found.group_sizes[0]) == (3, 32)
    assert (
        stated_of({"bits": 4, "extra_config": rules}, "model.layers.1.mlp.gate_proj").bits[0] == 8
    )


def test_gptqmodel_takes_the_first_rule_that_matches():
    rules = {r"+:.*gate_proj": {"bits": 8}, f"{MLP}.gate_proj": {"bits": 3}}
    assert stated_of({"bits": 4, "dynamic": rules}, f"{MLP}.gate_proj").bits[0] == 8


@pytest.mark.parametrize("bits", [16, 1, None])
def test_what_the_checkpoint_says_of_all_layers_must_be_read(bits):
    stated = {"bits": bits, "dynamic": {r".*gate_proj": {"bits": 4}}}
    with pytest.raises(ArtifactCorrupt, match=f"bits: {bits or 'None'}; a whole number"):
        stated_of(stated, f"{MLP}.gate_proj")
