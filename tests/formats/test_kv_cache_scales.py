"""Scales of an FP8 cache that a checkpoint brings, under the names that they go by."""

import pytest
import torch
from safetensors.torch import save_file

from qsweep.base.errors import ArtifactCorrupt
from qsweep.formats.artifact import Artifact, Size
from qsweep.formats.kv_cache.scales import stored_scales


def artifact(path, tensors, kv_cache="fp8 per tensor, static", format="compressed-tensors"):
    save_file(
        {name: torch.tensor(value) for name, value in tensors.items()}, path / "model.safetensors"
    )
    details = {} if kv_cache is None else {"kv_cache": kv_cache}
    return Artifact(path, format, Size(0, 0, 0, 0, 0), details=details)


def test_names_of_compressed_tensors_modelopt_and_older_ones(tmp_path):
    found = stored_scales(
        artifact(
            tmp_path,
            {
                "model.layers.0.self_attn.k_scale": 0.5,
                "model.layers.0.self_attn.v_scale": [0.25],
                "model.layers.1.self_attn.k_proj.k_scale": 2.0,
                "model.layers.1.self_attn.v_proj.v_scale": 3.0,
                "model.layers.2.self_attn.attn.k_scale": 4.0,
                "language_model.model.layers.13.self_attn.v_proj.output_scale": 5.0,
                "model.layers.3.self_attn.kv_scale": 6.0,
                # of activations and of weights
                "model.layers.0.self_attn.q_scale": 7.0,
                "model.layers.0.self_attn.q_proj.output_scale": 7.0,
                "model.layers.0.self_attn.k_proj.input_scale": 7.0,
                "model.layers.0.self_attn.k_proj.weight_scale": 7.0,
                "model.layers.0.mlp.up_proj.output_scale": 7.0,
            },
        )
    )
    assert found == {
        (0, "keys"): 0.5, (0, "values"): 0.25, (1, "keys"): 2.0, (1, "values"): 3.0,
        (2, "keys"): 4.0, (13, "values"): 5.0, (3, "keys"): 6.0, (3, "values"): 6.0,
    }  # fmt: skip


def test_an_artifact_that_has_no_fp8_cache_has_none(tmp_path):
    scales = {"model.layers.0.self_attn.k_scale": 0.5}
    assert stored_scales(artifact(tmp_path, scales, "int8 per tensor, static")) == {}
    assert stored_scales(artifact(tmp_path, scales, None)) == {}
    assert len(stored_scales(artifact(tmp_path, scales, None, "fp8"))) == 1


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), [1.0, 2.0]])
def test_a_scale_that_is_none_is_named(tmp_path, value):
    with pytest.raises(ArtifactCorrupt, match=r"layers\.0\.self_attn\.k_scale"):
        stored_scales(artifact(tmp_path, {"model.layers.0.self_attn.k_scale": value}))
