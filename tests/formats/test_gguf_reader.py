import numpy as np
import pytest
import torch

from qsweep.base.errors import ArtifactCorrupt
from qsweep.formats.gguf.ggml import (
    dequantize,
    dequantize_rows,
    dequantize_rows_numpy,
    library_path,
)
from qsweep.formats.gguf.reader import GGUFFile, GGUFTensor, read_gguf
from qsweep.formats.gguf.types import TENSOR_TYPES

gguf = pytest.importorskip("gguf")
# Of which ggml reads weights: two hold activations alone.
QUANTIZED = [t for t in TENSOR_TYPES.values() if t.quantized and t.name not in ("Q8_1", "Q8_K")]


@pytest.fixture
def written(tmp_path):
    """A file by the official writer, and what went into it."""
    generator = np.random.default_rng(0)
    plain = generator.normal(size=(6, 64)).astype(np.float32)
    packed = gguf.quants.quantize(
        generator.normal(size=(3, 4, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0
    )
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(1024)
    writer.add_rope_freq_base(10000.0)
    writer.add_token_list(["<s>", "Ġthe", "é"])
    writer.add_token_types([3, 1, 1])
    writer.add_bool("flag", True)
    writer.add_tensor("plain.weight", plain)
    writer.add_tensor("half.weight", plain.astype(np.float16))
    writer.add_tensor("stack.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, plain, packed


def test_reads_what_the_official_writer_wrote(written):
    path, plain, packed = written
    file = read_gguf(path)
    assert file.metadata["general.architecture"] == "llama"
    assert file.metadata["llama.context_length"] == 1024
    assert file.metadata["llama.rope.freq_base"] == 10000.0
    assert file.metadata["tokenizer.ggml.tokens"] == ["<s>", "Ġthe", "é"]
    assert file.metadata["tokenizer.ggml.token_type"] == [3, 1, 1]
    assert file.metadata["flag"] is True
    assert file.tensors["stack.weight"].shape == (3, 4, 64)
    assert file.tensors["stack.weight"].nbytes == packed.nbytes
    assert np.array_equal(dequantize(file, "plain.weight", torch.float32).numpy(), plain)
    half = dequantize(file, "half.weight", torch.float32).numpy()
    assert np.array_equal(half, plain.astype(np.float16).astype(np.float32))


def test_a_stack_and_one_of_it(written):
    path, _, packed = written
    file = read_gguf(path)
    expected = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    whole = dequantize(file, "stack.weight", torch.float32)
    assert np.array_equal(whole.numpy(), expected.reshape(3, 4, 64))
    assert torch.equal(dequantize(file, "stack.weight", torch.float32, 1), whole[1])
    rounded = dequantize(file, "stack.weight", torch.bfloat16)
    assert torch.equal(rounded, whole.to(torch.bfloat16))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_corrupt(written, share):
    path = written[0]
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ArtifactCorrupt):
        read_gguf(path)


def test_another_file_is_corrupt(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"no such thing" * 100)
    with pytest.raises(ArtifactCorrupt, match="not a"):
        read_gguf(path)


@pytest.mark.skipif(library_path() is None, reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("type_", QUANTIZED, ids=lambda t: t.name)
def test_ggml_and_numpy_agree_on_random_bytes(type_):
    # Enough rows that several threads share them.
    rows = np.random.default_rng(type_.number).integers(
        0, 256, (600, type_.bytes_of(512)), np.uint8
    )
    rows = torch.from_numpy(rows)
    out = torch.empty(600, 512)
    dequantize_rows(rows, type_, out)
    if type_.name in ("Q1_0", "Q2_0"):
        assert len(out.unique()) > 2
        return  # the package does not unpack them
    with np.errstate(all="ignore"):
        expected = dequantize_rows_numpy(rows, type_)
    finite = out.isfinite() & expected.isfinite()
    assert finite.float().mean() > 0.5
    assert torch.equal(out[finite], expected[finite])


@pytest.mark.parametrize("name", ["F64", "I8", "I16", "I32", "I64"])
def test_plain_numbers_of_every_type(name, tmp_path):
    numbers = np.arange(-6, 6).reshape(3, 4)
    dtype = {"F": "float", "I": "int"}[name[0]] + name[1:]
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("w", numbers.astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(path)
    assert file.tensors["w"].type.name == name
    assert np.array_equal(dequantize(file, "w", torch.float32).numpy(), numbers)


@pytest.mark.parametrize("name", ["Q8_1", "Q8_K"])
def test_types_of_activations_hold_no_weights(name, tmp_path):
    type_ = next(t for t in TENSOR_TYPES.values() if t.name == name)
    tensor = GGUFTensor("w", (4, type_.block), type_, 0, tmp_path / "model.gguf")
    tensor.path.write_bytes(bytes(tensor.nbytes))
    with pytest.raises(ArtifactCorrupt, match=f"w is stored as {name}, which llama.cpp computes"):
        dequantize(GGUFFile(tensor.path, {}, {"w": tensor}), "w", torch.float32)
