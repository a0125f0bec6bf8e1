"""What goes wrong on a user's machine: one clear line each, the right exit code, nothing lost."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.machine import tmpfs
from helpers.sweeps import ROOT, SMALL, qsweep, rows

TEXT = "A sentence that is measured, and another one that says the same again.\n" * 400
QUICK = ["eval.context=64", "eval.noise_floor=false"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return ["corpus=file", f"corpus.path={path}"]


def lines(result):
    found = [line for line in result.stderr.splitlines() if line.strip()]
    assert "Traceback" not in result.stderr + result.stdout
    return found


# texts


@pytest.mark.parametrize(("content", "name"), [("", "empty"), ("\n \n", "blank")])
def test_an_empty_text_is_one_line_and_nothing_runs(tmp_path, content, name):
    path = tmp_path / f"{name}.txt"
    path.write_text(content)
    result = qsweep(tmp_path / "out", "quant=rtn", "corpus=file", f"corpus.path={path}")
    assert result.returncode == 2
    assert lines(result) == [f"error: {name}.txt: no text in {path}"]


def test_a_calibration_text_too_short_fails_its_trial_alone(tmp_path, text):
    path = tmp_path / "short.txt"
    path.write_text("Only a few words.")
    calibration = ["calibration=file", f"calibration.path={path}"]
    outputs = tmp_path / "out"
    result = qsweep(outputs, "quant=gptq", "quant.backend=native", *calibration, *text, *QUICK)
    assert result.returncode == 1
    lines(result)
    found = {r["method"]: r for r in rows(outputs)}
    assert found["none"]["status"] == "finished"
    assert "lower calibration.max_seq_len" in found["gptq"]["reason"]


# models


def copy_of(pocket_dir, tmp_path, *, without=()):
    path = tmp_path / "model"
    shutil.copytree(pocket_dir, path, ignore=lambda _, names: [n for n in names if n in without])
    return path


def test_a_directory_without_a_tokenizer(tmp_path, pocket_dir, text):
    path = copy_of(pocket_dir, tmp_path, without=("tokenizer.json", "tokenizer_config.json"))
    result = qsweep(tmp_path / "out", "quant=rtn", f"model.path={path}", *text)
    assert result.returncode == 2
    (line,) = lines(result)
    assert line.startswith(f"error: {path}: no tokenizer")


def test_a_checkpoint_that_is_only_pickled(tmp_path, pocket_dir, text):
    path = copy_of(pocket_dir, tmp_path, without=("model.safetensors",))
    # what torch.save would write is never opened, so its content does not matter
    (path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    result = qsweep(tmp_path / "out", "quant=rtn", f"model.path={path}", *text)
    assert result.returncode == 2
    (line,) = lines(result)
    assert "only pickled weights (pytorch_model.bin)" in line and "safetensors" in line
    assert not Path("/tmp/never").exists()


def test_truncated_weights(tmp_path, pocket_dir, text):
    path = copy_of(pocket_dir, tmp_path)
    with (path / "model.safetensors").open("r+b") as file:
        file.truncate(1_000_000)
    result = qsweep(tmp_path / "out", "quant=rtn", f"model.path={path}", *text)
    assert result.returncode == 2
    (line,) = lines(result)
    assert "not a whole safetensors file (1000000 bytes instead of" in line


def configured(path, **settings):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | settings))
    return path


def test_a_configuration_that_the_weights_do_not_have_is_one_line_and_nothing_runs(
    tmp_path, pocket_dir, text
):
    # found by transformers, in a process before the first trial's
    path = configured(copy_of(pocket_dir, tmp_path), intermediate_size=100)
    outputs = tmp_path / "out"
    result = qsweep(outputs, "quant=rtn", f"model.path={path}", *text, *QUICK)
    assert result.returncode == 2
    (line,) = lines(result)
    assert line.startswith(f"error: {path}: weights do not fit the model (of another shape: model.")
    assert not list(outputs.glob("sweeps/*")) and not (outputs / "store" / "references").exists()
    # and what is right is remembered, so that nobody is asked again
    shutil.rmtree(path)
    path = copy_of(pocket_dir, tmp_path)
    result = qsweep(outputs, "quant=none", f"model.path={path}", *text, *QUICK)
    assert result.returncode == 0, result.stderr
    assert [f.read_text() for f in (outputs / "store" / "checks").iterdir() if f.suffix == ""] == [
        "fits"
    ]


def test_a_contradiction_in_the_configuration_is_one_line(tmp_path, pocket_dir, text):
    path = configured(copy_of(pocket_dir, tmp_path), max_position_embeddings=0)
    result = qsweep(tmp_path / "out", "quant=rtn", f"model.path={path}", *text)
    assert result.returncode == 2
    (line,) = lines(result)
    assert line == (
        f"error: {path}/config.json: max_position_embeddings is 0, which must be at least 2"
    )


def test_a_broken_tokenizer_is_named(tmp_path, pocket_dir, text):
    path = copy_of(pocket_dir, tmp_path)
    whole = (path / "tokenizer.json").read_text()
    (path / "tokenizer.json").write_text(whole[: len(whole) // 2])
    result = qsweep(tmp_path / "out", "quant=rtn", f"model.path={path}", *text)
    assert result.returncode == 2
    (line,) = lines(result)
    assert line.startswith(f"error: {path}/tokenizer.json: cannot be read as JSON")
    # what only its library can tell fails the trials that need it, by name
    content = json.loads(whole)
    content["model"]["type"] = "Nonesuch"
    (path / "tokenizer.json").write_text(json.dumps(content))
    result = qsweep(tmp_path / "out", "quant=none", f"model.path={path}", *text, *QUICK)
    assert result.returncode == 1
    (found,) = rows(tmp_path / "out")
    assert f"{path}/tokenizer.json: no tokenizer can be made of it" in found["reason"]


def test_a_pipe_among_a_models_files_is_refused_and_not_waited_for(tmp_path, pocket_dir, text):
    path = copy_of(pocket_dir, tmp_path)
    os.mkfifo(path / "special_tokens_map.json")
    started = time.monotonic()
    result = qsweep(tmp_path / "out", "quant=rtn", f"model.path={path}", *text)
    assert time.monotonic() - started < 60
    assert result.returncode == 2
    (line,) = lines(result)
    assert "special_tokens_map.json: is a pipe" in line


def test_weights_that_are_not_numbers_are_named(tmp_path, pocket_dir, text):
    import torch
    from safetensors.torch import load_file, save_file

    path = copy_of(pocket_dir, tmp_path)
    tensors = load_file(path / "model.safetensors")
    name = next(n for n in sorted(tensors) if n.endswith("mlp.down_proj.weight"))
    tensors[name][0, :3] = torch.nan
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    result = qsweep(tmp_path / "out", "quant=none", f"model.path={path}", *text, *QUICK)
    assert result.returncode == 1
    (found,) = rows(tmp_path / "out")
    layer = name.removesuffix(".weight")
    count = tensors[name].numel()
    assert f"{layer} (its weights are not finite): 3 of {count} in weight" in found["reason"]


@pytest.mark.slow  # test_launch.py has the quick ones, of every way to run out of memory
def test_a_model_that_does_not_fit_says_out_of_memory(tmp_path, pocket_dir, text):
    path = copy_of(pocket_dir, tmp_path, without=("model.safetensors",))
    config = json.loads((path / "config.json").read_text())
    config |= {"vocab_size": 200_000, "hidden_size": 1024, "num_attention_heads": 8}
    config |= {"num_key_value_heads": 8, "head_dim": 128, "num_hidden_layers": 1}
    (path / "config.json").write_text(json.dumps(config))
    _sparse_checkpoint(path)
    limit = _address_space_of_the_libraries() + 600_000_000

    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    outputs = tmp_path / "out"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "qsweep", "quant=rtn", f"model.path={path}"),
            *(*SMALL, *text, *QUICK, f"outputs_dir={outputs}"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=240,
        preexec_fn=limited,
    )
    assert result.returncode == 1
    lines(result)
    reasons = {r["reason"] for r in rows(outputs)}
    assert any("out of memory" in reason for reason in reasons), reasons


def _sparse_checkpoint(path):
    # 0.4 GB of zeros in bfloat16 that take no room on the disk; 0.8 GB in float32
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    header, offset = {}, 0
    for name, parameter in model.named_parameters():
        end = offset + 2 * parameter.numel()
        header[name] = {
            "dtype": "BF16",
            "shape": list(parameter.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


def _address_space_of_the_libraries():
    script = (
        "import torch, transformers.models.llama.modeling_llama, safetensors.torch\n"
        "print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmPeak')))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    return int(found.stdout) * 1024


# hubs and trackers out of reach


NOBODY = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}


def run_with(environment, outputs, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "qsweep", *arguments, *SMALL, f"outputs_dir={outputs}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=240,
        env={**os.environ, **environment},
    )


def test_an_unreachable_hub_fails_what_needs_it_and_nothing_else(tmp_path, text):
    environment = {**NOBODY, "HF_HOME": str(tmp_path / "home")}
    started = time.monotonic()
    outputs = tmp_path / "out"
    result = run_with(
        environment, outputs, "-m", "model=pocket,qwen3-0.6b", "quant=rtn", *text, *QUICK
    )
    assert result.returncode == 1
    lines(result)
    assert time.monotonic() - started < 120
    found = {(r["model"], r["method"]): r for r in rows(outputs)}
    assert found["pocket", "rtn"]["status"] == "finished"
    reason = found["qwen3-0.6b", "rtn"]["reason"]
    assert "the model hub cannot be reached" in reason and "model.path=DIR" in reason


@pytest.mark.slow  # test_tracking.py has the quick one
def test_an_unreachable_tracker_costs_a_line_and_no_result(tmp_path, text):
    outputs = tmp_path / "out"
    tracking = ["tracking=mlflow", "tracking.uri=http://127.0.0.1:9"]
    arguments = ["quant=rtn", *text, *QUICK, "sweep=t", "eval.max_windows=2"]
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "qsweep", *arguments, *tracking, f"outputs_dir={outputs}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    told = [line for line in lines(result) if "127.0.0.1:9" in line]
    # one line when it is noticed, and one at the end that says what to do
    assert len(told) == 2 and "qsweep sync" in told[1]
    assert [r["status"] for r in rows(outputs)] == ["finished", "finished"]
    assert time.monotonic() - started < 120


# disks


def test_a_disk_without_any_room_is_one_line(tmp_path, text):
    with tmpfs(tmp_path / "disk", "16k") as disk:
        (disk / "fill").write_bytes(b"x" * 12_000)
        result = qsweep(disk / "out", "quant=rtn", *text, *QUICK)
    assert result.returncode == 2
    (line,) = lines(result)
    assert "no space left on the disk" in line and "outputs_dir=DIR" in line


def test_a_disk_that_fills_up_fails_the_trial_in_words_and_loses_nothing(tmp_path, text):
    # room for the reference's cache and measurement, and not for an artifact
    with tmpfs(tmp_path / "disk", "3m") as disk:
        result = qsweep(disk / "out", "-m", "quant=none,rtn", "bits=8", *text, *QUICK)
        assert result.returncode == 1, result.stdout + result.stderr
        lines(result)
        found = {r["method"]: r for r in rows(disk / "out")}
        assert found["none"]["status"] == "finished"
        assert found["rtn"]["status"] == "failed"
        assert "no space left on the disk" in found["rtn"]["reason"]
        assert not list((disk / "out" / "store").rglob(".*.tmp"))


def test_a_sweeps_folder_on_a_full_disk_is_one_line(tmp_path, text):
    sweeps = tmp_path / "out" / "sweeps"
    sweeps.parent.mkdir()
    with tmpfs(sweeps, "8k") as disk:
        (disk / "filler").write_bytes(b"x" * 4096)
        result = qsweep(tmp_path / "out", "quant=rtn", *text, *QUICK)
    assert result.returncode == 1
    (line,) = lines(result)
    assert "no space left on the disk" in line and "what is finished is kept" in line


def test_a_disk_that_is_read_only_is_one_line(tmp_path, text):
    with tmpfs(tmp_path / "disk", "1m", "ro") as disk:
        result = qsweep(disk / "out", "quant=rtn", *text, *QUICK)
    assert result.returncode == 2
    (line,) = lines(result)
    assert "Read-only file system" in line and "outputs_dir=" in line
