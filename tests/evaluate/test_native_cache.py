"""llama.cpp's own run with ``type_k`` and ``type_v`` against the simulated cache, on one file."""

import pytest
import torch

from qsweep.evaluate.kv_cache import served_cache
from qsweep.evaluate.metrics import kl_divergence
from qsweep.formats.kv_cache.spec import kv_cache

IDS = [(7 + 31 * i) % 1000 for i in range(160)]


@pytest.fixture(scope="module")
def native(pocket_conversion):
    """Logits of llama.cpp's own run, by cache."""
    from qsweep.formats.gguf.native import NativeModel

    def run(cache):
        types = kv_cache(cache).default
        with NativeModel(
            pocket_conversion.path, context=160, batch=160, gpu=None, threads=1, kv_cache=types
        ) as model:
            return torch.cat([torch.from_numpy(part.copy()) for _, part in model.logits(IDS)])

    return run


@pytest.fixture(scope="module")
def dense(pocket_dir):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(pocket_dir, dtype=torch.float32).eval()


@pytest.mark.parametrize("cache", ["none/q4_0", "q4_0/none"])
def test_the_simulated_cache_diverges_where_llama_cpps_does(cache, native, dense):
    ids = torch.tensor([IDS])
    with torch.inference_mode():
        plain = dense(ids, use_cache=False).logits[0]
        with served_cache(dense, kv_cache(cache)):
            cached = dense(ids, use_cache=False).logits[0]
    simulated = kl_divergence(plain, cached)
    own = kl_divergence(native("none"), native(cache))
    # Numbers between two codes fall on either side; nearly all fall where llama.cpp's fall.
    assert float(simulated.mean() / own.mean()) == pytest.approx(1, abs=0.1)
    assert torch.corrcoef(torch.stack([simulated, own]))[0, 1] > 0.9
