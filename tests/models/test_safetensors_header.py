"""Headers of safetensors files: whole ones are read, damaged ones named with the tensor."""

import json

import pytest
import torch
from safetensors.torch import save_file

from qsweep.base.errors import ConfigError
from qsweep.models.safetensors_header import read_header, same_content

GOOD = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "I8", "shape": [4], "data_offsets": [24, 28]},
}


def write(path, header, data=28):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))
    return path


def test_what_safetensors_writes_is_read(tmp_path):
    tensors = {
        "x": torch.arange(6.0).view(2, 3),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "nothing": torch.zeros(0, 4),
        "half": torch.zeros(5, dtype=torch.bfloat16),
    }
    file = tmp_path / "f.safetensors"
    save_file(tensors, file)
    found = read_header(file)
    assert {n: i.shape for n, i in found.items()} == {n: t.shape for n, t in tensors.items()}
    content = file.read_bytes()
    x = found["x"]
    assert content[x.start : x.start + x.bits // 8] == tensors["x"].numpy().tobytes()
    write(file, GOOD)
    assert list(read_header(file)) == ["a", "b"]


def changed(name, **fields):
    return {**GOOD, name: {**GOOD[name], **fields}}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", ""),
        (b"{", ""),
        (b"[1, 2]", "no JSON object"),
        (b"\xff\xfe", ""),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, ""),
        (b'{"a": {}, "a": {}}', "a is there twice"),
        ({"a": 5}, "a lacks dtype, shape or data_offsets"),
        ({"a": {"dtype": "F32"}}, "a lacks"),
        (changed("a", shape="2, 3"), 'a has the shape "2, 3"'),
        (changed("a", shape=["2", 3]), 'a has the shape ["2", 3]'),
        (changed("a", shape=[-2, -3]), "a has the shape [-2, -3]"),
        (changed("a", shape=[2.0, 3]), "a has the shape [2.0, 3]"),
        (changed("a", shape=[3, 3]), "a has 24 bytes for the shape [3, 3] in F32"),
        (changed("a", dtype="F99"), "unknown dtype F99 of a"),
        (changed("a", dtype=3), "unknown dtype 3 of a"),
        (changed("a", data_offsets=[-4, 20]), "a has the offsets [-4, 20]"),
        (changed("a", data_offsets=[24, 0]), "a has -24 bytes"),
        (changed("a", data_offsets=[0]), "a has the offsets [0]"),
        (changed("a", data_offsets="0-24"), "a has the offsets"),
        (changed("b", data_offsets=[20, 24]), "28 bytes instead of"),
        (changed("b", data_offsets=[30, 34]), "instead of"),
        ({**changed("b", data_offsets=[20, 24]), "c": {**GOOD["b"]}}, "b overlaps the tensor"),
        ({**changed("b", data_offsets=[25, 29])}, "instead of"),
        (
            {"a": GOOD["a"], "c": {"dtype": "I8", "shape": [2], "data_offsets": [26, 28]}},
            "c has a gap",
        ),
    ],
)
def test_damage_is_named(tmp_path, header, message):
    file = write(tmp_path / "f.safetensors", header)
    with pytest.raises(ConfigError) as caught:
        read_header(file)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{file}: not a whole safetensors file")
    if "instead of" not in message:
        assert message in line
    else:
        assert "instead of" in line


def test_same_content(tmp_path):
    file = tmp_path / "f.safetensors"
    x = torch.randn(300, 301)
    y = x.clone()
    y[-1, -1] += 1
    save_file(
        {"x": x, "same": x.clone(), "y": y, "half": x.bfloat16(), "t": x.T.contiguous()}, file
    )
    found = read_header(file)
    answers = {name: same_content(found["x"], found[name]) for name in found}
    assert answers == {"x": True, "same": True, "y": False, "half": False, "t": False}
