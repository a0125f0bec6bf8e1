"""What the evaluation needs at most, measured in processes of their own."""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import psutil
import pytest
import torch

from qsweep.base.cleanup import remove_abandoned
from qsweep.base.memory import available_bytes
from qsweep.base.scratch import OnDisk, on_disk
from qsweep.formats.hf import ShardWriter

SCRIPT = textwrap.dedent(
    """
    import json, sys
    from pathlib import Path
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from qsweep.evaluate import build_reference, measure, open_reference
    from qsweep.evaluate.footprint import ResidentMemory
    from qsweep.text.windows import Preset, Windows

    folder, preset = Path(sys.argv[1]), sys.argv[2]
    config = AutoConfig.for_model(
        "llama", vocab_size=128_256, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )
    torch.manual_seed(0)
    source = folder / "model"
    AutoModelForCausalLM.from_config(config).save_pretrained(source)

    def load():
        return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()

    windows = Windows(
        torch.randint(128_256, (1, 2048)), torch.full((1,), 1), torch.full((1,), 2048),
        Preset("gptq", 2048), "none",
    )
    model = load()
    memory = ResidentMemory()
    cache = folder / "cache"
    cache.mkdir()
    build_reference(model, windows, cache)
    building = memory.peak_bytes()
    reference = open_reference(cache, source, "cpu", torch.float32)
    memory = ResidentMemory()
    found = measure(model, windows, reference)
    measuring = memory.peak_bytes()
    print(json.dumps({
        "building": building, "measuring": measuring, "kld": found.metrics["kld"],
        "tokens": found.facts["tokens_scored"],
    }))
    """
)


def test_a_vocabulary_of_128k_takes_at_most_a_gigabyte_beyond_the_model(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), "gptq"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    logits = found["tokens"] * 128_256 * 4
    assert logits > 1e9  # what a script that keeps a window's logits would need, once
    # without another copy of them, or a softmax of theirs
    assert found["building"] < 1e9
    assert found["measuring"] < 1e9
    assert found["kld"] == 0


@pytest.mark.gpu
def test_a_vocabulary_of_128k_on_a_gpu(tmp_path):
    import torch

    script = SCRIPT.replace("dtype=torch.float32).eval()", "dtype=torch.bfloat16).eval().cuda()")
    script = script.replace('"cpu", torch.float32', '"cuda", torch.bfloat16')
    script = script.replace("ResidentMemory()", "TorchMemory('cuda')")
    script = script.replace("import ResidentMemory", "import TorchMemory")
    assert torch.cuda.is_available()
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), "gptq"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["building"] < 1e9 and found["measuring"] < 1e9
    assert found["kld"] == 0


@pytest.fixture
def machine(tmp_path):
    """``machine(files)`` lays out ``proc`` and ``sys`` below a folder."""

    def make(files):
        for name, text in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path

    return make


def group(folder, limit, used, inactive, *, version):
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    limit_file, used_file, stat = names
    return {
        f"sys/fs/cgroup/{folder}/{limit_file}": f"{limit}\n",
        f"sys/fs/cgroup/{folder}/{used_file}": f"{used}\n",
        f"sys/fs/cgroup/{folder}/memory.stat": f"anon 5\n{stat} {inactive}\n",
    }


@pytest.mark.parametrize(
    ("told", "files", "expected"),
    [
        ("0::/\n", group("", 1000, 300, 100, version=2), 800),
        # Of groups within groups the narrowest counts, and files that were read are no loss.
        (
            "0::/a/b\n",
            group("a/b", "max", 300, 0, version=2) | group("a", 5000, 4000, 500, version=2),
            1500,
        ),
        # In a container the told path is the host's.
        ("0::/docker/1234\n", group("", 900, 100, 0, version=2), 800),
        (
            "3:cpuset:/\n4:memory:/jobs/7\n0::/\n",
            group("memory/jobs/7", 2000, 500, 100, version=1)
            | group("memory", 1 << 62, 9000, 0, version=1),
            1600,
        ),
        ("4:memory:/\n", group("memory", 100, 300, 0, version=1), 0),
    ],
)
def test_free_memory_ends_where_a_control_group_does(machine, told, files, expected):
    root = machine({"proc/self/cgroup": told} | files)
    assert available_bytes(root) == expected


def test_without_limits_the_machine_tells(machine):
    unlimited = available_bytes(machine({"proc/self/cgroup": "0::/\n"}))
    assert unlimited == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_a_tensor_on_disk_is_the_same_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tensor = torch.randn(3, 5).bfloat16()
    kept = on_disk(tensor)
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(kept, tensor)
    assert kept.dtype == tensor.dtype
    kept += 1
    assert not torch.equal(kept, tensor)


def test_who_is_killed_while_a_file_takes_its_room_leaves_what_the_next_start_removes(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dies = "import os, signal; os.posix_fallocate = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    script = (
        f"{dies}; import torch; from qsweep.base.scratch import on_disk; on_disk(torch.ones(9))"
    )
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)})
    (left,) = tmp_path.iterdir()
    assert remove_abandoned(tmp_path / "outputs") == [left] and not left.exists()


def mappings():
    return len(Path("/proc/self/maps").read_text().splitlines())


def test_many_small_tensors_on_disk_share_few_mappings(tmp_path):
    # A process may have 65,530, and a mixture has more parts of experts.
    given = [
        *(torch.randn(7, n % 5) for n in range(300)),
        *(torch.tensor(2.5, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bool)),
        torch.arange(5 << 20, dtype=torch.int32),
    ]
    disk, before = OnDisk(), mappings()
    kept = [disk.keep(tensor) for tensor in given]
    assert mappings() - before < 50
    for one, other in zip(kept, given, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    # What lies in one file is written as the tensors that it is.
    files = []
    for rests in (False, True):
        (out := tmp_path / str(rests)).mkdir()
        writer = ShardWriter(out, 4000, rests_on_disk=rests)
        for number, tensor in enumerate(given):
            writer.add(str(number), tensor)
        writer.close()
        files.append({file.name: file.read_bytes() for file in sorted(out.iterdir())})
    assert files[0] == files[1]
