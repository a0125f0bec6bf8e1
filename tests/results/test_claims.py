"""What a real sweep claims of models that share a name, of which one predicts nothing."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.sweeps import run_here


def random_weights(directory: Path):
    """Make a model that knows nothing of the model in a directory."""
    torch.manual_seed(0)
    for file in directory.glob("*.safetensors"):
        tensors = load_file(file)
        noise = {k: torch.randn_like(v.float()).mul(0.02).to(v.dtype) for k, v in tensors.items()}
        kept = {k: noise[k] if v.ndim > 1 else v for k, v in tensors.items()}
        save_file(kept, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def swept(tmp_path_factory, pocket_dir):
    root = tmp_path_factory.mktemp("models")
    for name in ("good", "chance"):
        shutil.copytree(pocket_dir, root / name / "final")
    random_weights(root / "chance" / "final")
    paths = ",".join(str(root / name / "final") for name in ("good", "chance"))
    short = root / "short.txt"
    short.write_text(" ".join(f"word{i} stands here" for i in range(60)))
    options = [
        *("-m", f"model.path={paths}", "quant=rtn,gptq", "bits=8", "sweep=s", "tracking=none"),
        *("calibration=file", f"calibration.path={short}", "calibration.num_samples=64"),
        *("calibration.max_seq_len=200", "corpus=[python_docs]", "eval.max_windows=2"),
        *("eval.noise_floor=false", f"outputs_dir={root}/out"),
    ]
    done = run_here(options)
    assert done.returncode == 0, done.stderr
    with (root / "out/sweeps/s/results.csv").open(encoding="utf-8") as file:
        return done, list(csv.DictReader(file)), root


def test_models_of_one_folder_name_are_called_by_their_paths(swept):
    done, rows, root = swept
    assert "good/final gptq 8-bit" in done.stdout and "chance/final gptq 8-bit" in done.stdout
    places = {row["model_path"] for row in rows}
    assert places == {str(root / name / "final") for name in ("good", "chance")}
    assert len({row["model_hash"] for row in rows}) == 2
    assert len({row["label"] for row in rows}) == len(rows)


def test_what_is_compared_with_chance_has_no_verdict(swept):
    done, rows, _ = swept
    for row in rows:
        chance = "/chance/" in row["model_path"]
        assert bool(row["no_verdict"]) is chance
        assert (row["quality"] == "") is chance
        assert row["verdict"] == ("" if chance or row["reference"] == "true" else "yes")
    assert done.stdout.count("the reference predicts nothing") >= 2
    assert "no verdict on chance/final" in done.stdout


def test_nothing_wins_on_two_windows_and_the_line_says_what_to_do(swept):
    (line,) = [x for x in swept[0].stdout.splitlines() if x.startswith("most quality per GB")]
    assert "no winner" in line and "2 windows" in line and "raise eval.max_windows" in line


def test_rounding_has_a_partner_on_the_grid_of_each_calibrated_trial(swept):
    _, rows, root = swept
    rounded = [row for row in rows if row["method"] == "rtn"]
    assert sorted((row["sym"], row["implied"]) for row in rounded) == [
        *[("false", "false")] * 2,
        *[("true", "true")] * 2,
    ]
    records = [json.loads(f.read_text()) for f in (root / "out/sweeps/s/trials").glob("*.json")]
    asked = {r["method"] for r in records if not r["implied"]}
    assert asked == {"rtn", "gptq"}


def test_how_much_of_a_short_text_was_seen_is_said(swept):
    done, rows, _ = swept
    for row in rows:
        if row["method"] == "gptq":
            assert int(row["calibration_tokens"]) == 64 * 200
            assert 200 <= int(row["calibration_tokens_distinct"]) < 2000
    assert "different tokens where 12800 were asked for" in done.stdout
