"""GGUF files of other makers: measured where they are the model's, refused in one line where not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from helpers.gguf_files import rewrite  # noqa: E402
from qsweep.base.errors import AnotherModel, BackendUnavailable  # noqa: E402
from qsweep.formats.artifact import from_content, to_content  # noqa: E402
from qsweep.formats.container import container  # noqa: E402
from qsweep.formats.dense import load_dense  # noqa: E402
from qsweep.formats.gguf.converter import convert, converter_dir  # noqa: E402
from qsweep.formats.gguf.dense import CONTAINER, dense_state_dict, model_file  # noqa: E402
from qsweep.formats.gguf.ggml import dequantize  # noqa: E402
from qsweep.formats.gguf.native import NativeModel, quantize_file  # noqa: E402
from qsweep.formats.gguf.reader import read_gguf  # noqa: E402
from qsweep.formats.gguf.stored import stored_tensors  # noqa: E402
from qsweep.formats.gguf.types import FILE_TYPES, TENSOR_TYPES  # noqa: E402
from qsweep.models.facts import read_facts  # noqa: E402
from qsweep.models.source import SourceModel  # noqa: E402
from qsweep.quantizers.gguf import GGUF  # noqa: E402
from qsweep.quantizers.gguf.foreign import compare, foreign_artifact  # noqa: E402

try:
    converter_dir()
except BackendUnavailable as error:
    pytest.skip(str(error), allow_module_level=True)

TYPES = {t.name: t for t in TENSOR_TYPES.values()}
# Types of every family, in one file: what no file type of llama.cpp writes.
MIX = {
    r"blk\.0\.attn_q": "NVFP4", r"blk\.1\.ffn_down": "MXFP4", r"blk\.1\.ffn_up": "IQ4_XS",
    r"blk\.2\.ffn_up": "IQ3_S", r"blk\.2\.ffn_gate": "Q5_1", "attn_k": "Q5_K", "attn_output": "Q3_K",
    r"blk\.3\.ffn_gate": "TQ2_0",
}  # fmt: skip
IDS = torch.randint(0, 4096, (1, 64), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pocket(pocket_dir):
    return SourceModel(read_facts(pocket_dir, "pocket"), "cpu")


@pytest.fixture(scope="module")
def base(pocket_conversion):
    return pocket_conversion


@pytest.fixture(scope="module")
def work(base):
    """Where artifacts find that the model is converted."""
    return base.path.parents[2]


@pytest.fixture(scope="module")
def files(base, tmp_path_factory):
    """Whole files by llama.cpp: one type, a usual mixture, and one of everything."""
    folder = tmp_path_factory.mktemp("files")
    overrides = {pattern: TYPES[name] for pattern, name in MIX.items()}
    for name, type_, mix in (
        ("q8", "Q8_0", None), ("q4", "Q4_K_M", None), ("mix", "Q4_K_M", overrides),
    ):  # fmt: skip
        quantize_file(base.path, folder / f"{name}.gguf", FILE_TYPES[type_], None, mix)
    return {path.stem: path for path in folder.iterdir()}


def stored(path, name):
    info = read_gguf(path).tensors[name]
    shape = (*info.shape[:-1], info.type.bytes_of(info.shape[-1]))
    return read_gguf(path).bytes_of(name).numpy().reshape(shape), info.type


def numbers(path, name):
    return dequantize(read_gguf(path), name, torch.float32).numpy()


def head_once_more(q8, q4, out):
    # As those do who keep the head at eight bits.
    return rewrite(q4, out, tensors={"output.weight": stored(q8, "token_embd.weight")})


def fused(q8, q4, out):
    tensors = {}
    for layer in range(4):
        names = [f"blk.{layer}.attn_{part}.weight" for part in "qkv"]
        parts = [stored(q8, name) for name in names]
        joined = np.concatenate([part for part, _ in parts])
        tensors |= dict.fromkeys(names)
        tensors[f"blk.{layer}.attn_qkv.weight"] = (joined, parts[0][1])
    return rewrite(q8, out, tensors=tensors)


def in_parts(q8, q4, out):
    rewrite(q4, out, parts=9, order=lambda name: name[::-1])
    return sorted(out.parent.glob("made-*.gguf"))[2]


def aligned(q8, q4, out):
    return rewrite(q4, out, alignment=256)


def with_angles(q8, q4, out):
    return rewrite(q4, out, tensors={"rope_freqs.weight": np.ones(32, np.float32)})


VARIANTS = {
    head_once_more: ("the tied head is stored once more",),
    fused: ("blk.*.attn_k.weight lies in blk.*.attn_qkv.weight",),
    in_parts: (),
    aligned: (),
    with_angles: (),
}


def dense_logits(artifact, source):
    model = load_dense(artifact, source, dtype=torch.float32, device="cpu")
    with torch.inference_mode():
        return model(IDS).logits[0]


def native_logits(path):
    with NativeModel(path, context=64, batch=64, gpu=None, threads=1, exact=True) as model:
        return torch.cat([torch.tensor(part) for _, part in model.logits(IDS[0].tolist())])


def divergence(first, second):
    p, q = first.double().log_softmax(-1), second.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("make", VARIANTS, ids=lambda make: make.__name__)
def test_what_others_rightly_do_otherwise_is_measured(make, base, files, tmp_path, pocket_dir):
    path = make(files["q8"], files["q4"], tmp_path / "made.gguf")
    found = compare(base, read_gguf(path))
    assert found.problem is None
    assert found.notes == VARIANTS[make]
    assert found.equal == found.unquantized == 9


def made(pocket, path, out):
    """The artifact of a file as the store would give it back."""
    out.mkdir()
    artifact = foreign_artifact(pocket, path, out)
    assert artifact.origin == read_gguf(path).path
    return replace(from_content(out, to_content(artifact)), origin=path)


@pytest.mark.parametrize("make", [head_once_more, fused, in_parts], ids=lambda m: m.__name__)
def test_the_dense_model_is_what_llama_cpp_runs(make, base, files, pocket, work, tmp_path):
    path = make(files["q8"], files["q4"], tmp_path / "made.gguf")
    artifact = made(pocket, path, work / make.__name__)
    native = native_logits(model_file(artifact))
    assert divergence(dense_logits(artifact, pocket.path), native) < 2e-3
    assert artifact.details.get("unlike_ours", []) == list(VARIANTS[make])


def test_a_mix_of_all_families_is_measured_and_counted(base, files, pocket, work):
    path = files["mix"]
    artifact = made(pocket, path, work / "mix")
    expected = native_logits(path)
    assert divergence(dense_logits(artifact, pocket.path), expected) < 2e-3
    used = artifact.details["tensor_types"]
    assert set(MIX.values()) <= set(used)
    assert sum(used.values()) == len(pocket.facts.linears)
    assert artifact.details["other_tensor_types"] == {"Q6_K": 1}
    assert artifact.details["type"] == "Q4_K_M"
    assert artifact.runtimes == ("llama.cpp",)
    # Of all linear layers: bits that lie in the file.
    file = read_gguf(path)
    linear = [t for t in file.tensors.values() if t.name.startswith("blk.") and len(t.shape) == 2]
    assert artifact.size.linear_bits == sum(8 * t.nbytes for t in linear)
    assert artifact.size.linear_weights == sum(a * b for a, b in pocket.facts.linears.values())
    assert artifact.size.parameters == pocket.facts.parameters
    assert artifact.size.weight_bytes == path.stat().st_size
    errors = artifact.details["weight_errors"]
    assert errors["model.norm.weight"] == 0
    assert 0.6 < errors["model.layers.3.mlp.gate_proj.weight"] < 1
    assert 0.05 < errors["model.layers.0.self_attn.q_proj.weight"] < 0.2


def test_a_tensors_own_factor_counts(base, files, tmp_path):
    # NVFP4's is a tensor beside; llama.cpp multiplies the layer's outputs by it.
    q = "blk.0.attn_q.weight"
    half = rewrite(
        files["mix"], tmp_path / "half.gguf",
        tensors={"blk.0.attn_q.scale": np.full(1, 0.5, np.float32)},
    )  # fmt: skip
    found, whole = compare(base, read_gguf(half)), compare(base, read_gguf(files["mix"]))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert "off model.layers.0.self_attn.q_proj.weight by 5" in found.problem
    assert whole.errors[name] < 0.2
    dense = dense_logits(dense_of(base, half, tmp_path), base.checkpoint.path)
    native = native_logits(half)
    assert divergence(dense, native) < 2e-3
    assert divergence(native, native_logits(files["mix"])) > 1e-2
    kinds = {t.name: t for t in stored_tensors(read_gguf(half))}
    assert kinds["blk.0.attn_q.scale"].linear and kinds["blk.0.attn_q.scale"].weights == 0
    assert kinds[q].bits == 8 * 256 * 256 // 64 * 36


def rows_reversed(q8, q4, out):
    rows, type_ = stored(q8, "blk.1.ffn_up.weight")
    return rewrite(q8, out, tensors={"blk.1.ffn_up.weight": (rows[::-1].copy(), type_)})


def layers_swapped(q8, q4, out):
    return rewrite(q8, out, tensors={"blk.1.ffn_up.weight": "blk.2.ffn_up.weight"})


def another_fine_tune(q8, q4, out):
    norms = [name for name, t in read_gguf(q8).tensors.items() if len(t.shape) == 1]
    return rewrite(q8, out, tensors={name: numbers(q8, name) * np.float32(1.01) for name in norms})


def a_merge(q8, q4, out):
    """Norms as they were, and something added to a layer."""
    import gguf

    name = "blk.2.ffn_down.weight"
    noise = np.random.default_rng(0).normal(size=(256, 768)).astype(np.float32)
    changed = numbers(q8, name) + 0.1 * noise * numbers(q8, name).std()
    packed = gguf.quants.quantize(changed, gguf.GGMLQuantizationType.Q8_0)
    return rewrite(q8, out, tensors={name: (packed, TYPES["Q8_0"])})


def a_bias_more(q8, q4, out):
    return rewrite(q8, out, tensors={"blk.1.ffn_up.bias": np.zeros(768, np.float32)})


def a_layer_less(q8, q4, out):
    gone = [name for name in read_gguf(q8).tensors if name.startswith("blk.3.")]
    return rewrite(q8, out, tensors=dict.fromkeys(gone))


def not_a_number(q8, q4, out):
    rows, type_ = stored(q8, "blk.1.ffn_up.weight")
    rows = rows.copy()
    rows[3, :2] = np.float16(np.nan).reshape(1).view(np.uint8)
    return rewrite(q8, out, tensors={"blk.1.ffn_up.weight": (rows, type_)})


def narrower(q8, q4, out):
    rows, type_ = stored(q8, "blk.1.ffn_up.weight")
    return rewrite(q8, out, tensors={"blk.1.ffn_up.weight": (rows[:512].copy(), type_)})


STRANGERS = {
    rows_reversed: r"blk.1.ffn_up.weight does not resemble .*: its rows are in another order",
    layers_swapped: r"blk.1.ffn_up.weight does not resemble .*: these are other weights",
    another_fine_tune: r"9 of its 9 unquantized tensors .* another fine-tune or revision of this",
    a_merge: r"blk.2.ffn_down.weight is off .* by 10%, and Q8_0 rounds by 3% at most",
    a_bias_more: r"it has a tensor blk.1.ffn_up.bias that the model has not",
    a_layer_less: r"it has no tensor blk.3.attn_",
    not_a_number: r"blk.1.ffn_up.weight holds numbers that are not finite",
    narrower: r"blk.1.ffn_up.weight has the shape \(512, 256\), where .* is \(768, 256\)",
}


@pytest.mark.parametrize("make", STRANGERS, ids=lambda make: make.__name__)
def test_what_is_not_the_models_is_named(make, base, files, tmp_path):
    import re

    path = make(files["q8"], files["q4"], tmp_path / "made.gguf")
    found = compare(base, read_gguf(path))
    assert found.problem is not None and re.match(STRANGERS[make], found.problem), found.problem
    assert found.problem.isprintable()


def test_norms_in_half_precision_and_a_rounder_vocabulary(base, files, pocket_dir, tmp_path):
    q8 = files["q8"]
    norms = [name for name, t in read_gguf(q8).tensors.items() if len(t.shape) == 1]
    rows, type_ = stored(q8, "token_embd.weight")
    source = base.checkpoint.tensor("model.embed_tokens.weight").float()
    for count in (4128, 4080):
        embedding = np.concatenate([rows, rows[:32]])[:count]
        tensors = {name: numbers(q8, name).astype(np.float16) for name in norms}
        tensors["token_embd.weight"] = (embedding, type_)
        path = rewrite(q8, tmp_path / f"{count}.gguf", tensors=tensors)
        found = compare(base, read_gguf(path))
        assert found.problem is None
        assert found.notes == (f"token_embd.weight has {count} rows, of which the model has 4096",)
        artifact = dense_of(base, path, tmp_path)
        weight = dense_state_dict(artifact, pocket_dir)["model.embed_tokens.weight"][...]
        assert weight.shape == source.shape
        assert torch.equal(weight[count:], source[count:])
        assert (weight - source).norm() < 0.01 * source.norm()


def dense_of(base, path, folder):
    from qsweep.formats.artifact import Artifact
    from qsweep.formats.gguf.rules import to_json

    details = {"tensors": to_json(base.layout, base.checkpoint.infos)}
    return Artifact(folder, "gguf", CONTAINER.size(path), details=details, origin=path)


def test_other_numbers_in_the_metadata_are_told(base, files, tmp_path):
    path = rewrite(
        files["q8"], tmp_path / "made.gguf", metadata={"llama.rope.freq_base": 5e5}
    )  # fmt: skip
    found = compare(base, read_gguf(path))
    assert found.problem is None
    assert found.settings == ("rope.freq_base is 500000.0 in the file and 10000.0 in the model",)


def test_another_model_is_refused_in_one_line(pocket, base, tiny_model, work, tmp_path):
    convert(tiny_model("qwen3"), tmp_path / "other.gguf", "bf16")
    (out := work / "refused").mkdir()
    with pytest.raises(AnotherModel, match="no GGUF file of pocket: it is qwen3, and the model"):
        foreign_artifact(pocket, tmp_path / "other.gguf", out)
    assert not list(out.iterdir())


def test_sizes_are_the_same_from_the_file_alone(base, pocket, work):
    for options in ({"bits": 4}, {"type": "Q2_K"}):
        (out := work / str(options)).mkdir()
        artifact = GGUF(**options).quantize(pocket, None, out)
        assert container("gguf").size(out) == artifact.size
