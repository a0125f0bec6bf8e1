"""Files that are no reference pack, or not the one that was written: a line each."""

import json

import pytest

from qsweep.base.errors import ConfigError
from qsweep.evaluate.packs.header import (
    SIGNATURE,
    PackedMeasurement,
    PackedModel,
    PackHeader,
    notes_of,
    open_pack,
    require_intact,
)
from qsweep.evaluate.packs.heads import HeadWeight, decoded, encoded
from qsweep.models.safetensors_writer import StreamedTensor, whole, write_safetensors
from qsweep.text.tokenizer_fingerprint import fingerprint_of
from qsweep.text.windows import PRESETS


def small_header(**changes):
    measurement = PackedMeasurement(
        corpus="some text",
        source={"source": "file"},
        preset="paper",
        cut=PRESETS["paper"],
        bos="none",
        reference={"text": "0" * 32, "overrides": {}},
        measurement={},
        content={"metrics": {"ppl": 3.0}, "facts": {"tokens_scored": 3, "windows": 1}},
        cache={},
    )
    model = PackedModel(
        name="small",
        content_hash="0" * 32,
        config="{}",
        model_type="llama",
        linears={"a": (2, 3)},
        parameters=6,
        max_length=4,
        vocab_size=5,
        experts=False,
        artifact={},
        tensors={"a.weight": ("F32", [2, 3])},
        tokenizer=fingerprint_of({"a": 0}, None, {"bos": 0}),
        chat_template=None,
    )
    return PackHeader(**{
        "model": model, "measurements": (measurement,), "head": "exact", "dtype": "float32",
        "device_type": "cpu", "qsweep": "0", **changes,
    })  # fmt: skip


def small_tensors():
    import torch

    return {
        "0.ids": whole(torch.arange(4, dtype=torch.int32)[None]),
        "0.first_scored": whole(torch.tensor([1])),
        "0.lengths": whole(torch.tensor([4])),
        "0.nll": whole(torch.ones(3)),
        "0.first": whole(torch.ones(3, dtype=torch.int32)),
        "0.confidence": whole(torch.ones(3)),
        "0.probe": whole(torch.ones(3, 5)),
        "0.features": whole(torch.ones(3, 2)),
    }


@pytest.fixture
def pack(tmp_path):
    file = tmp_path / "small.pack"
    write_safetensors(file, small_tensors(), notes_of(small_header()), seal=SIGNATURE)
    return file


def test_what_was_written_is_read(pack):
    found = open_pack(pack)
    require_intact(found)
    assert found.header == small_header()
    assert found.header.corpora == ["some text"] and found.header.presets == ["paper"]


def test_every_flipped_byte_is_found(pack):
    content = pack.read_bytes()
    length = int.from_bytes(content[:8], "little")
    places = [*range(0, 8), *range(8, 8 + length, 97), *range(8 + length, len(content))]
    for place in places:
        pack.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ConfigError) as caught:
            require_intact(open_pack(pack))
        assert str(pack) in str(caught.value) and "\n" not in str(caught.value)
    pack.write_bytes(content)
    require_intact(open_pack(pack))


def test_one_that_is_cut_short_says_so(pack):
    content = pack.read_bytes()
    for size in (0, 4, 100, len(content) - 1):
        pack.write_bytes(content[:size])
        with pytest.raises(ConfigError, match="not a whole safetensors file"):
            open_pack(pack)
    pack.write_bytes(content + b"x")
    with pytest.raises(ConfigError, match="not a whole safetensors file"):
        open_pack(pack)


def test_other_versions_and_other_files_are_named(pack, tmp_path):
    for name, value, words in (
        (
            "protocol",
            "2",
            "a reference pack of protocol 2, and this qsweep has protocol 1; make it",
        ),
        ("version", "9", "a reference pack of version 9, and this qsweep has version 1"),
        ("format", "other", "no reference pack; qsweep pack MODEL -o FILE makes one"),
        ("reference", "{}", r"a damaged reference pack \(has no model\)"),
        ("reference", "[" * 100000, "a damaged reference pack"),
    ):
        notes = {**notes_of(small_header()), name: value}
        write_safetensors(pack, small_tensors(), notes, seal=SIGNATURE)
        with pytest.raises(ConfigError, match=words):
            open_pack(pack)
    write_safetensors(pack, small_tensors())
    with pytest.raises(ConfigError, match="no reference pack"):
        open_pack(pack)
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(100))
    for place in (tmp_path / "a.gguf", tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigError, match=str(place)) as caught:
            open_pack(place)
        assert "\n" not in str(caught.value)


def test_tensors_that_are_not_those_of_the_header_are_named(pack):
    for name, tensor in (
        ("0.nll", StreamedTensor("F32", (2,), lambda: [bytes(8)])),
        ("0.ids", StreamedTensor("I64", (1, 4), lambda: [bytes(32)])),
        ("0.features", StreamedTensor("F32", (1, 2), lambda: [bytes(8)])),
        # Numbers alone, without a dimension.
        ("0.nll", StreamedTensor("F32", (), lambda: [bytes(4)])),
        ("0.features", StreamedTensor("F32", (), lambda: [bytes(4)])),
    ):
        notes = notes_of(small_header())
        write_safetensors(pack, {**small_tensors(), name: tensor}, notes, seal=SIGNATURE)
        with pytest.raises(ConfigError, match=f"{name} is not what the header says"):
            open_pack(pack)
    tensors = small_tensors()
    del tensors["0.confidence"]
    write_safetensors(pack, tensors, notes_of(small_header()), seal=SIGNATURE)
    with pytest.raises(ConfigError, match="0.confidence"):
        open_pack(pack)


def test_names_that_would_break_a_line_are_refused(pack):
    header = json.loads(notes_of(small_header())["reference"])
    header["measurements"][0]["corpus"] = "two\nlines"
    notes = {**notes_of(small_header()), "reference": json.dumps(header)}
    write_safetensors(pack, small_tensors(), notes, seal=SIGNATURE)
    with pytest.raises(ConfigError, match="cannot be printed") as caught:
        open_pack(pack)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("head", "largest"), [("int8", 0.005), ("fp8", 0.04), ("bfloat16", 0.003)])
def test_a_narrower_head_is_near_the_weights(head, largest):
    import torch

    torch.manual_seed(0)
    weight = torch.randn(30, 16)
    weight[3] = 0
    source = HeadWeight((30, 16), torch.float32, lambda a, b: weight[a:b])
    parts = encoded(source, head)
    found = decoded(parts, torch.float32).rows(0, 30).float()
    error = (found - weight).norm() / weight.norm()
    assert 0 < error < largest and not found[3].any()
    # by rows it is the same
    assert torch.equal(decoded(parts, torch.float32).rows(7, 9).float(), found[7:9])
    bias = HeadWeight((30,), torch.float32, lambda a, b: weight[a:b, 0])
    assert encoded(bias, head) == {"": bias}
