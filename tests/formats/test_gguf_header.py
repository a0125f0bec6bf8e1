"""Headers that lie: each is refused in one line, at once, and without making room for what it says."""

import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsweep.base.errors import ArtifactCorrupt, ConfigError
from qsweep.formats.gguf.header import printable
from qsweep.formats.gguf.reader import find_file, read_gguf

gguf = pytest.importorskip("gguf")


def string(text):
    content = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(content)) + content


def value(key, kind, content):
    return string(key) + struct.pack("<I", kind) + content


def entry(name, shape=(32,), type_=0, offset=0):
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + axes + struct.pack("<IQ", type_, offset)


def header(values=(), tensors=(), *, version=3, counts=None, data=512, magic=b"GGUF"):
    counts = counts or (len(tensors), len(values))
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join((*values, *tensors))
    return head + bytes(-len(head) % 32 + data)


ARCHITECTURE = value("general.architecture", 8, string("llama"))
HUGE = 10**12
DAMAGED = {
    "another file": (header(magic=b"PK\3\4"), "not a GGUF file"),
    "version 1": (header(version=1), "a GGUF file of version 1"),
    "version 9": (header(version=9), "a GGUF file of version 9"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(64), "a big-endian GGUF file"),
    "more values than bytes": (header(counts=(0, HUGE)), "1000000000000 metadata values"),
    "more tensors than bytes": (header(counts=(HUGE, 0)), "1000000000000 tensors"),
    "counts of 64 bits": (header(counts=(2**64 - 1, 2**64 - 1)), "go on beyond"),
    "a string of a terabyte": (
        header([value("a", 8, struct.pack("<Q", HUGE))]), "a of 1000000000000 bytes at"),
    "a key of 2^63": (header([struct.pack("<QI", 2**63, 8)]), "a metadata key of 9223372036854775808"),
    "an array of 10^12 bytes": (
        header([value("a", 9, struct.pack("<IQ", 0, HUGE))]), "a with 1000000000000 entries"),
    "an array of 2^64 strings": (
        header([value("a", 9, struct.pack("<IQ", 8, 2**64 - 1))]), "entries at .* go on beyond"),
    "an array of arrays": (
        header([value("a", 9, struct.pack("<IQ", 9, 1) * 1000)]), "a list of the unknown type 9"),
    "an unknown value": (header([value("a", 13, bytes(8))]), "a has the unknown type 13"),
    "a key twice": (header([ARCHITECTURE, ARCHITECTURE]), "'general.architecture' occurs twice"),
    "a tensor twice": (header([], [entry("w"), entry("w", offset=128)]), "tensor 'w' occurs twice"),
    "a key of other bytes": (header([value(b"\xff\xfe", 4, bytes(4))]), "metadata key is not UTF-8"),
    "a value of other bytes": (header([value("a", 8, string(b"\xc3("))]), "a is not UTF-8"),
    "a name of other bytes": (header([], [entry(b"\xff")]), "tensor's name is not UTF-8"),
    "no alignment": (
        header([value("general.alignment", 4, struct.pack("<I", 0))]), "general.alignment is 0"),
    "an odd alignment": (
        header([value("general.alignment", 4, struct.pack("<I", 24))]), "must be a power of two"),
    "an alignment of letters": (
        header([value("general.alignment", 8, string("32"))]), "general.alignment is '32'"),
    "five axes": (header([], [entry("w", (2,) * 5)]), "w has 5 axes"),
    "2^32 - 1 axes": (
        header([], [string("w") + struct.pack("<I", 2**32 - 1) + bytes(64)]), "4294967295 axes"),
    "an axis of none": (header([], [entry("w", (32, 0))]), r"w has the shape \(0, 32\)"),
    "2^80 weights": (header([], [entry("w", (2**40, 2**40))]), "w has the shape"),
    "10^12 weights": (header([], [entry("w", (10**12,))]), "truncated, .* bytes instead of"),
    "rows that no block divides": (header([], [entry("w", (33,), 8)]), "blocks of 32 do not divide"),
    "an unknown type": (header([], [entry("w", type_=99)]), "w has the unknown tensor type 99"),
    "a type of former days": (header([], [entry("w", type_=31)]), "take a file in Q4_0"),
    "an offset outside": (header([], [entry("w", offset=2**60)]), "truncated"),
    "an offset askew": (header([], [entry("w", offset=33)]), "alignment of 32 does not divide"),
    "tensors in one another": (
        header([], [entry("v"), entry("w", (64,), offset=64)]), "the tensors v and w overlap"),
    "a name for the terminal": (header([], [entry("\x1b[31mw\n", type_=99)]), r"\\x1b\[31mw\\n has"),
    "nothing": (b"", "not a readable GGUF file"),
    "four letters": (b"GGUF", "truncated or damaged: the header"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_header_that_lies_is_one_line(name, tmp_path):
    content, said = DAMAGED[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(ArtifactCorrupt, match=said) as caught:
            read_gguf(path)
        assert time.monotonic() - started < 1
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (value("a", 8, struct.pack("<Q", 1 << 30)), "at most make sense"),
        (value("a", 9, struct.pack("<IQ", 0, 1 << 30)), "at most make sense"),
        (struct.pack("<Q", 1 << 20), "a metadata key has 1048576 bytes"),
    ],
)
def test_gigabytes_that_are_there_are_refused_too(content, said, tmp_path):
    # A file with holes costs its maker nothing.
    path = tmp_path / "model.gguf"
    path.write_bytes(header([content]))
    with path.open("r+b") as file:
        file.truncate(1 << 31)
    started = time.monotonic()
    with pytest.raises(ArtifactCorrupt, match=said):
        read_gguf(path)
    assert time.monotonic() - started < 1


def whole():
    values = [
        ARCHITECTURE,
        value("general.alignment", 4, struct.pack("<I", 64)),
        value("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + string("a") + string("é")),
        value("scores", 9, struct.pack("<IQ2f", 6, 2, 0.5, -1)),
    ]
    head = header(values, [entry("v", (32, 4), 8, 192), entry("w")], data=0)
    return head + bytes(-len(head) % 64 + 192 + 136)


def test_what_is_whole_is_read(tmp_path):
    for version in (2, 3):
        path = tmp_path / "model.gguf"
        content = whole()
        path.write_bytes(content[:4] + struct.pack("<I", version) + content[8:])
        file = read_gguf(path)
        assert file.architecture == "llama"
        assert file.metadata["tokenizer.ggml.tokens"] == ["a", "é"]
        # In the order of the header, wherever the data lies.
        assert list(file.tensors) == ["v", "w"]
        start = file.tensors["w"].offset
        assert start % 64 == 0 and file.tensors["v"].offset == start + 192
        assert file.weight_bytes == len(content)


@settings(
    max_examples=400, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 270), st.binary(min_size=1, max_size=8)), max_size=3))
def test_any_damage_is_read_or_refused(tmp_path, changes):
    content = bytearray(whole())
    for at, new in changes:
        content[at : at + len(new)] = new
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    try:
        file = read_gguf(path)
    except ArtifactCorrupt as error:
        assert str(error).isprintable()
        return
    for tensor in file.tensors.values():
        assert tensor.offset + tensor.nbytes <= len(content)


def test_what_is_shown_is_one_printable_line():
    assert printable("a\r\n\x1b]0;x\x07‮b") == "a\\r\\n\\x1b]0;x\\x07\\u202eb"
    assert len(printable("x" * 10_000)) == 200


@pytest.fixture
def split(tmp_path):
    """A file in three parts by the official writer."""
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama", split_max_tensors=2)
    writer.add_context_length(64)
    for i in range(5):
        writer.add_tensor(f"w{i}", np.full((4, 32), i, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(tmp_path.glob("*.gguf"))


def test_any_part_stands_for_the_whole(split):
    for path in split:
        file = read_gguf(path)
        assert file.path == split[0] and list(file.parts) == split
        assert file.metadata["llama.context_length"] == 64
        assert list(file.tensors) == [f"w{i}" for i in range(5)]
        assert all((file.bytes_of(f"w{i}").numpy().view(np.float32) == i).all() for i in range(5))
        assert file.weight_bytes == sum(part.stat().st_size for part in split)
    assert find_file(split[0].parent) == split[0]


def test_parts_that_are_missing_or_anothers_are_named(split, tmp_path):
    kept = split[1].read_bytes()
    split[1].unlink()
    with pytest.raises(
        ArtifactCorrupt, match=r"model-00002-of-00003.gguf: missing, one of the 3 parts of model$"
    ):
        read_gguf(split[2])
    split[1].write_bytes(split[0].read_bytes())
    with pytest.raises(ArtifactCorrupt, match=r"no part of model-00001.*split.no is 0, not 1"):
        read_gguf(split[0])
    # One of another file: as many parts, and other tensors.
    other = kept.replace(b"w2", b"w0")
    split[1].write_bytes(other)
    with pytest.raises(ArtifactCorrupt, match="w0 lies in model-00001-of-00003.gguf too"):
        read_gguf(split[0])
    count = struct.pack("<i", 5)
    split[1].write_bytes(kept.replace(b"split.tensors.count\5\0\0\0" + count,
                                      b"split.tensors.count\5\0\0\0" + struct.pack("<i", 6)))  # fmt: skip
    with pytest.raises(ArtifactCorrupt, match="its split.tensors.count is 6, not 5"):
        read_gguf(split[0])
    alone = tmp_path / "renamed.gguf"
    split[0].rename(alone)
    with pytest.raises(ArtifactCorrupt, match="one of 3 parts, which are found by their names"):
        read_gguf(alone)


def test_a_directory_with_several_models_is_asked_about(split, tmp_path):
    (tmp_path / "mmproj-model.gguf").write_bytes(b"")
    assert find_file(tmp_path) == split[0]
    (tmp_path / "other.gguf").write_bytes(b"")
    with pytest.raises(ConfigError, match="2 GGUF models in it; name one file"):
        find_file(tmp_path)
    with pytest.raises(ConfigError, match="no GGUF file of a model"):
        find_file(tmp_path / "..")
