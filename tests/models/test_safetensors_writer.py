"""Streamed safetensors files: what the library reads, whole or not at all, and sealed."""

import signal
import subprocess
import sys

import pytest

from qsweep.base.errors import ConfigError
from qsweep.models.safetensors_header import read_annotated, tensor_bytes
from qsweep.models.safetensors_writer import (
    StreamedTensor,
    by_rows,
    seal_of,
    whole,
    write_safetensors,
)


def test_the_library_reads_what_was_streamed(tmp_path):
    import torch
    from safetensors import safe_open

    file = tmp_path / "a.safetensors"
    torch.manual_seed(0)
    tensors = {
        "b": torch.randn(5000, 700).to(torch.bfloat16),
        "i": torch.arange(12, dtype=torch.int64).view(3, 4),
        "f8": torch.randn(4, 4).to(torch.float8_e4m3fn),
        "none": torch.zeros(0, 4),
    }
    asked = []

    def rows(start, stop):
        asked.append(stop - start)
        return tensors["b"][start:stop]

    streamed = {name: whole(t) for name, t in tensors.items()}
    streamed["b"] = by_rows((5000, 700), torch.bfloat16, rows)
    seal = write_safetensors(file, streamed, {"note": 'say "seal":"'}, seal="seal")
    with safe_open(file, framework="pt") as found:
        assert found.metadata() == {"note": 'say "seal":"', "seal": seal}
        for name, tensor in tensors.items():
            assert torch.equal(found.get_tensor(name).float(), tensor.float()), name
    assert sum(asked) == 5000 and max(asked) * 1400 <= 1 << 23
    assert seal_of(file, "seal", seal) == seal
    headers, notes = read_annotated(file)
    assert notes["seal"] == seal
    assert b"".join(tensor_bytes(headers["i"], 7)) == tensors["i"].numpy().tobytes()
    # the same content has the same seal
    assert (
        write_safetensors(tmp_path / "b", streamed, {"note": 'say "seal":"'}, seal="seal") == seal
    )


def test_a_header_that_is_too_long_is_not_read(tmp_path):
    file = tmp_path / "bomb.safetensors"
    file.write_bytes((10**9).to_bytes(8, "little") + b"{}")
    with pytest.raises(ConfigError, match="its header is too long"):
        read_annotated(file)
    write_safetensors(file, {}, {"x": "y" * 2000})
    with pytest.raises(ConfigError, match="its header is too long"):
        read_annotated(file, longest=1000)


def test_what_ends_in_the_middle_leaves_nothing(tmp_path):
    def broken():
        yield b"12"
        raise RuntimeError("no more")

    file = tmp_path / "a.safetensors"
    with pytest.raises(RuntimeError, match="no more"):
        write_safetensors(file, {"a": StreamedTensor("U8", (4,), broken)})
    with pytest.raises(ValueError, match="a: 2 bytes instead of 4"):
        write_safetensors(file, {"a": StreamedTensor("U8", (4,), lambda: [b"12"])})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="nowhere"):
        write_safetensors(tmp_path / "nowhere" / "a", {})


def test_a_kill_leaves_no_file_and_the_next_writer_no_leftover(tmp_path):
    file = tmp_path / "a.safetensors"
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from qsweep.models.safetensors_writer import StreamedTensor, write_safetensors\n"
        "def pieces():\n    yield b'x' * 1000000\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_safetensors(Path(sys.argv[1]), {'a': StreamedTensor('U8', (2000000,), pieces)})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert not file.exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".a.safetensors.")
    write_safetensors(file, {"a": StreamedTensor("U8", (2,), lambda: [b"ok"])})
    assert list(tmp_path.iterdir()) == [file]
