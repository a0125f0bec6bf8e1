"""The dense engine on CUDA: the CPU's numbers, no waiting inside the loop, bounded memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qsweep.evaluate import build_reference, measure, noise_floor, open_reference
from qsweep.evaluate.engine import batch_size, open_engine
from qsweep.formats.dense import load_dense
from qsweep.formats.hf import reference_artifact
from qsweep.models.facts import read_facts
from qsweep.quantizers.native.stats import InputStats

pytestmark = pytest.mark.gpu

MODELS = ["pocket", "llama", "qwen3", "mistral", "gemma3_text", "gpt_neox"]


@pytest.fixture(params=MODELS)
def source(request, cuda, tiny_model, pocket_dir):
    return pocket_dir if request.param == "pocket" else tiny_model(request.param)


def windows_for(source, count=8, context=256):
    from gpu_parts.models import random_windows

    return random_windows(count, context, read_facts(source, "x").vocab_size)


def load(source, device, dtype):
    return load_dense(
        reference_artifact(read_facts(source, "x")), source, dtype=dtype, device=device
    )


def referenced(model, windows, source, dtype, folder):
    build_reference(model, windows, folder)
    return open_reference(folder, source, str(model.device), dtype)


def test_perplexity_is_the_cpus(source, cuda):
    windows = windows_for(source)
    cpu, gpu = (measure(load(source, d, torch.float32), windows) for d in ("cpu", cuda))
    assert gpu.metrics["ppl"] == pytest.approx(cpu.metrics["ppl"], rel=1e-3)
    torch.testing.assert_close(
        gpu.arrays["token_nll"], cpu.arrays["token_nll"], rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_against_itself_is_zero(source, cuda, dtype, tmp_path):
    windows = windows_for(source)
    model = load(source, cuda, dtype)
    reference = referenced(model, windows, source, dtype, tmp_path)
    floor = noise_floor(model, windows, reference)
    assert floor["kld"] == 0
    assert floor["kld_floor_batch"] < 1e-2
    assert 0 <= floor["kld_floor_dtype"] < 1e-2


@pytest.mark.parametrize("shard_bytes", [1 << 29, 100_000])
def test_nothing_in_the_loop_waits_for_the_device(source, cuda, tmp_path, shard_bytes):
    windows = windows_for(source)
    model = load(source, cuda, torch.bfloat16)

    def watch(_, done):
        torch.cuda.set_sync_debug_mode("error" if done is not None and done < 1 else "default")

    engine = open_engine(model, windows.ids)
    try:
        build_reference(model, windows, tmp_path, watch, shard_bytes=shard_bytes)
        reference = open_reference(tmp_path, source, cuda, torch.bfloat16)
        measure(model, windows, progress=watch, batch=2, engine=engine)
        found = measure(model, windows, reference, watch, batch=2, engine=engine)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.metrics["kld"] < 1e-2


def test_a_cache_made_through_pinned_memory_is_what_was_computed(source, cuda, tmp_path):
    windows = windows_for(source)
    model = load(source, cuda, torch.bfloat16)
    reference = referenced(model, windows, source, torch.bfloat16, tmp_path)
    with torch.inference_mode():
        engine = open_engine(model, windows.ids)
        size = batch_size(engine, windows.ids.shape[1])
        own = engine.features(windows.ids[:size].to(cuda)).cpu()
    width = windows.ids.shape[1]
    scored = torch.arange(len(own)) % width != width - 1
    count = int(scored.sum())
    assert torch.equal(reference.features(slice(0, count)), own[scored])


def test_a_batch_that_does_not_fit_is_halved(cuda, pocket_dir, monkeypatch):
    windows = windows_for(pocket_dir)
    model = load(pocket_dir, cuda, torch.float32)
    expected = measure(model, windows, batch=1).metrics["ppl"]
    body, tried = model.model.forward, []

    def greedy(input_ids, **options):
        tried.append(len(input_ids))
        if len(input_ids) > 2:
            torch.empty(1 << 50, dtype=torch.uint8, device=cuda)
        return body(input_ids=input_ids, **options)

    monkeypatch.setattr(model.model, "forward", greedy)
    found = measure(model, windows, batch=8, engine=None)
    assert found.facts["batch"] == 2
    assert tried[-4:] == [2] * 4
    assert found.metrics["ppl"] == pytest.approx(expected, rel=1e-4)


def test_evaluation_takes_little_beyond_the_model(cuda, tmp_path):
    # The vocabulary is that of Llama 3; its logits alone, of these windows, would be 4 GB.
    from gpu_parts.evaluate import save_head
    from gpu_parts.models import SHAPES, make_model, random_windows

    model = make_model("llama-1b", cuda, layers=2)
    windows = random_windows(4, 2048, SHAPES["llama-1b"]["vocab_size"])
    save_head(model, tmp_path / "source")
    (tmp_path / "cache").mkdir()
    build_reference(model, windows, tmp_path / "cache")
    reference = open_reference(tmp_path / "cache", tmp_path / "source", cuda, model.dtype)
    before = torch.cuda.memory_allocated(cuda)
    torch.cuda.reset_peak_memory_stats(cuda)
    measure(model, windows, reference)
    assert torch.cuda.max_memory_allocated(cuda) - before < 1e9


def test_gram_matrices_of_half_precision_are_summed_in_float32(cuda):
    inputs = torch.randn(5000, 96, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    half, full = InputStats("half"), InputStats("full")
    half.add(inputs.to(cuda))
    full.add(inputs.float())
    torch.testing.assert_close(half.finish().gram.cpu(), full.finish().gram, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(half.magnitude.cpu(), full.magnitude, rtol=1e-4, atol=1e-5)


def test_a_sweep_runs_on_the_gpu(cuda, tmp_path):
    command = [sys.executable, "-m", "qsweep", "quant=rtn", "bits=4", "device=cuda"]
    command += [f"outputs_dir={tmp_path}", "eval.max_windows=2", "sweep=gpu"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "sweeps" / "gpu" / "results.csv").read_text()
    assert table.count("finished") == 2, table
    facts = [json.loads(f.read_text()) for f in tmp_path.rglob("measurement.json")]
    assert {f["facts"]["device_type"] for f in facts} == {"cuda"}
