"""What is read for each token that is generated."""

import json
import shutil

import pytest

from models.test_architectures import build
from models.test_experts import MIXTURE
from qsweep.formats.active import active_bytes, chosen_share
from qsweep.formats.hf import reference_artifact
from qsweep.models.facts import read_facts, read_tensors


@pytest.mark.parametrize(
    ("config", "share"),
    [
        ({"n_routed_experts": 256, "num_experts_per_tok": 8}, 1 / 32),
        ({"num_local_experts": 8, "moe_topk": [2, 2, 4, 4]}, 3 / 8),
        ({"n_routed_experts": 512, "zero_expert_num": 256, "moe_topk": 12}, 12 / 768),
        ({"ffn_config": {"moe_num_experts": 16, "moe_top_k": 4}}, 1 / 4),
        ({"expert_count": 8, "expert_used_count": 2}, 1 / 4),
        ({"num_experts": 8, "num_experts_per_tok": None}, None),
        ({"hidden_size": 64}, None),
    ],
)
def test_configurations_say_how_many_of_its_experts_a_token_is_sent_to(config, share):
    assert chosen_share(config) == share


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        # The head is the embedding.
        ({"model.embed_tokens.weight": 800, "model.layers.0.mlp.up_proj.weight": 80}, 110),
        ({"model.embed_tokens.weight": 800, "lm_head.weight": 800}, 100),
        ({"token_embd.weight": 800, "blk.0.ffn_up.weight": 80}, 110),
        ({"token_embd.weight": 800, "output.weight": 800, "per_layer_token_embd.weight": 8}, 100),
        # Shared experts, and routers, are read for every token.
        ({"layers.0.mlp.shared_experts.up_proj.weight": 80, "layers.0.mlp.gate.weight": 80}, 20),
        ({"layers.0.mlp.experts.7.up_proj.weight": 80, "layers.0.mlp.experts.down_proj": 80}, 5),
        ({"blk.0.ffn_up_exps.weight": 80, "blk.0.ffn_up_shexp.weight": 80}, 12),
        ({"layers.0.block_sparse_moe.input_linear.weight": 80}, 2),
        # Of no text.
        ({"visual.blocks.0.attn.qkv.weight": 80, "mtp.layers.0.mlp.up_proj.weight": 80}, 0),
    ],
)
def test_names_tell_what_is_read(tensors, expected):
    assert active_bytes(tensors, 0.25) == expected


def test_a_mixture_reads_the_experts_that_a_token_is_sent_to(tmp_path, pocket_dir):
    path = build("qwen3_moe", tmp_path / "moe", pocket_dir, **MIXTURE)
    size = reference_artifact(read_facts(path, "moe")).size
    bits = {name: header.bits for name, header in read_tensors(path).items()}
    of_experts = sum(count for name, count in bits.items() if ".experts." in name)
    looked_up = bits["model.embed_tokens.weight"]
    assert size.active_bytes == (sum(bits.values()) - looked_up - of_experts / 2) / 8
    # Where nobody says of how many, nothing is claimed.
    other = tmp_path / "other"
    shutil.copytree(path, other)
    config = json.loads((other / "config.json").read_text())
    config["num_experts_per_tok"] = None
    (other / "config.json").write_text(json.dumps(config))
    assert reference_artifact(read_facts(other, "moe")).size.active_gb is None


def test_a_dense_model_reads_all_of_its_weights(pocket_dir):
    size = reference_artifact(read_facts(pocket_dir, "pocket")).size
    assert size.active_bytes == size.total_bits / 8
    assert size.active_gb < size.size_gb
