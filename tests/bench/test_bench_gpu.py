"""bench/gpu.py without a GPU: its code runs, its JSON is as promised, what is missing is said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))


def run_part(part, out, *more):
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--out", str(out), "--part", part]
    return subprocess.run(
        [*command, *more],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def check(part, out, subjects):
    done = run_part(part, out, "--device", "cpu", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((out / f"gpu-{part}.json").read_text())
    assert set(document) == {"what", "machine", "versions", "commit", "rows"}
    assert {"cpu", "gpus", "device"} <= document["machine"].keys()
    assert document["versions"].keys() >= {"torch", "transformers", "python"}
    rows = document["rows"]
    assert {row["subject"] for row in rows} >= subjects
    for row in rows:
        assert row["part"] == part
        assert ("skipped" in row) == (row["value"] is None)
        assert "skipped" in row or "unit" in row
    text = (out / f"gpu-{part}.txt").read_text()
    assert all(row["what"] in text for row in rows)
    return {(row["subject"], row["what"]): row for row in rows}


@pytest.mark.slow
def test_evaluate(tmp_path):
    rows = check("evaluate", tmp_path, {"ceiling", "trial"})
    assert rows["trial", "divergence from itself"]["value"] == 0
    assert rows["trial", "profile"]["skipped"] == "no GPU"
    # No figure can be above what its operations allow at the rate of large products.
    assert rows["trial", "perplexity"]["value"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "subjects"),
    [
        ("serve", {"ceiling", "trial"}),
        ("quantize", {"ceiling", "trial"}),
        ("correctness", {"pocket", "tests"}),
    ],
)
def test_the_other_parts(part, subjects, tmp_path):
    check(part, tmp_path, subjects)


def test_without_a_gpu_it_says_so(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run_part("evaluate", tmp_path)
    assert done.returncode == 1
    assert "sees no CUDA device" in done.stdout
    assert not list(tmp_path.iterdir())


def test_operations_are_counted_as_torch_counts_them():
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from gpu_parts.ceiling import evaluation_work
    from gpu_parts.models import make_model

    model = make_model("trial", "cpu")
    model.set_attn_implementation("eager")  # whose products are plain ones, which torch counts
    ids = torch.zeros(3, 64, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(input_ids=ids)
    ours = evaluation_work(model.config, 3, 64, 3, 4).flops
    # All of them, where causal attention needs only half; and a few for the rotary embedding.
    attention = model.config.num_hidden_layers * 3 * 2 * 256 * 64**2
    assert ours + attention == pytest.approx(counter.get_total_flops(), rel=1e-5)


def test_a_failing_step_costs_no_other_figure(tmp_path):
    from gpu_parts.lab import Lab

    lab = Lab("evaluate", "cpu", tmp_path, True, 60.0)
    with lab.step("one", "broken"):
        raise ValueError("two lines\nof it")
    with lab.step("one", "missing"):
        raise ImportError("no gptqmodel")
    with lab.step("one", "late", needs_s=100) as possible:
        assert not possible
    lab.add("two", "fine", 1.5, "s", ok=True)
    assert not lab.finish()
    rows = json.loads((tmp_path / "gpu-evaluate.json").read_text())["rows"]
    assert [row.get("ok") for row in rows] == [False, None, None, True]
    assert rows[0]["value"] == "ValueError: two lines"
    assert (
        "no gptqmodel" in rows[1]["skipped"] and "s left, takes up to 100 s" in rows[2]["skipped"]
    )
