"""Rules of llama.cpp's quantizer: a type for each tensor, the others as they are without rules."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("llama_cpp")

from qsweep.base.errors import BackendUnavailable, ConfigError, IncompatibleTrial  # noqa: E402
from qsweep.formats.gguf.checkpoint import open_checkpoint  # noqa: E402
from qsweep.formats.gguf.converter import converter_dir  # noqa: E402
from qsweep.formats.gguf.dense import MODEL_FILE, dense_state_dict  # noqa: E402
from qsweep.formats.gguf.native import planned_types, quantize_file  # noqa: E402
from qsweep.formats.gguf.reader import read_gguf  # noqa: E402
from qsweep.formats.gguf.types import WRITABLE, file_type, tensor_type  # noqa: E402
from qsweep.formats.numbers import MXFP4  # noqa: E402
from qsweep.models.facts import read_facts  # noqa: E402
from qsweep.models.source import SourceModel  # noqa: E402
from qsweep.quantizers.gguf import GGUF  # noqa: E402
from qsweep.quantizers.gguf.rules import outside_layers  # noqa: E402
from qsweep.sweep.config import describe  # noqa: E402
from qsweep.text.calibration import CalibrationTokens  # noqa: E402

try:
    converter_dir()
except BackendUnavailable as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(scope="module")
def written(conversions):
    """``written(path, GGUF(...))``: the artifact, and its file."""
    count = iter(range(100))

    def make(path, quantizer, calibration=None):
        model = SourceModel(read_facts(path, path.name), "cpu")
        (out := conversions / f"rules-{next(count)}").mkdir()
        artifact = quantizer.quantize(model, calibration, out)
        return artifact, read_gguf(out / MODEL_FILE)

    return make


@pytest.fixture(scope="module")
def facts(pocket_dir):
    return read_facts(pocket_dir, "pocket")


def types(file):
    return {name: t.type.name for name, t in file.tensors.items() if len(t.shape) > 1}


def refusal(facts, rules, **options):
    with pytest.raises((ConfigError, IncompatibleTrial)) as caught:
        GGUF(**options, rules=rules).check(facts)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.slow
def test_other_tensors_are_those_of_the_file_without_rules(pocket_dir, written):
    # Q4_K_M counts the layers that it decides of: one less, and others would get its better type.
    rules = {"*.[01].self_attn.v_proj": "q8_0", "*.0.mlp.down_proj": 3, "*.3.mlp.up_proj": "keep"}
    plain, usual = written(pocket_dir, GGUF(bits=4))
    artifact, file = written(pocket_dir, GGUF(bits=4, rules=rules))
    changed = {
        "blk.0.attn_v.weight": "Q8_0",
        "blk.1.attn_v.weight": "Q8_0",
        "blk.0.ffn_down.weight": "Q3_K",
        "blk.3.ffn_up.weight": "BF16",
    }
    assert types(file) == types(usual) | changed
    same = usual.tensors.keys() - changed.keys()
    assert all(torch.equal(file.bytes_of(n), usual.bytes_of(n)) for n in same)
    # What is counted is what lies there.
    assert artifact.details["kept_by"] == {
        "quant.rules: *.3.mlp.up_proj": ["model.layers.3.mlp.up_proj"]
    }
    assert sum(artifact.details["tensor_types"].values()) == 27
    assert artifact.details["tensor_types"]["Q8_0"] == 2
    assert artifact.size.linear_weights == plain.size.linear_weights - 256 * 768
    assert artifact.runtimes == ("llama.cpp", "ollama")
    own, weights = dense_state_dict(artifact, pocket_dir), open_checkpoint(pocket_dir)

    def error(layer):
        expected = weights.tensor(f"{layer}.weight").float()
        return float((own[f"{layer}.weight"][...] - expected).norm() / expected.norm())

    assert error("model.layers.3.mlp.up_proj") == 0
    assert 0 < error("model.layers.1.self_attn.v_proj") < 0.01
    assert 0.05 < error("model.layers.1.mlp.up_proj") < 0.1
    assert 0.1 < error("model.layers.0.mlp.down_proj") < 0.25


@pytest.mark.slow
def test_embedding_and_head_may_be_named(pocket_dir, tiny_model, written):
    tied, file = written(pocket_dir, GGUF(bits=4, rules={"lm_head": "q4_0"}))
    assert types(file)["token_embd.weight"] == "Q4_0"
    assert tied.details["other_tensor_types"] == {"Q4_0": 1}
    rules = {"*.embed_tokens": "iq4_nl", "lm_head": "keep"}
    _, file = written(tiny_model("llama"), GGUF(bits=4, rules=rules))
    assert types(file)["token_embd.weight"] == "IQ4_NL"
    assert types(file)["output.weight"] == "BF16"


@pytest.mark.parametrize(
    ("quantizer", "number", "others"),
    [
        (GGUF(type="F16"), 1, "F16"),
        (GGUF(format=MXFP4()), 38, "MXFP4"),
        (GGUF(type="Q8_0"), 7, "Q8_0"),
    ],
    ids=lambda value: str(value),
)
def test_every_file_type_takes_rules(quantizer, number, others, pocket_dir, written):
    artifact, file = written(pocket_dir, replace(quantizer, rules={"*.down_proj": "q4_k"}))
    assert file.metadata["general.file_type"] == number
    assert artifact.details["tensor_types"] == {others: 24, "Q4_K": 4}
    _, plain = written(pocket_dir, quantizer)
    assert types(file)["token_embd.weight"] == types(plain)["token_embd.weight"]


@pytest.mark.slow
def test_rows_that_no_block_divides_get_the_type_in_its_place(pocket_dir, tmp_path, written):
    import shutil

    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(pocket_dir)
    config.hidden_size, config.head_dim, config.num_hidden_layers = 288, 72, 2
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pocket_dir / name, tmp_path / name)
    artifact, file = written(tmp_path, GGUF(bits=8, rules={"*.q_proj": 4, "*.down_proj": 4}))
    assert artifact.details["fallback"] is True
    assert types(file)["blk.0.attn_q.weight"] == "Q5_0"
    assert types(file)["blk.0.ffn_down.weight"] == "Q4_K"
    message = refusal(read_facts(tmp_path, "odd"), {"*.q_proj": "nvfp4"})
    assert "NVFP4 packs 64 weights together" in message
    assert "288 inputs of model.layers.0.self_attn.q_proj" in message


def test_types_that_need_importance_get_it(pocket_dir, facts, written):
    rules = {"*.down_proj": "iq2_xs"}
    assert "set quant.imatrix=true" in refusal(facts, rules)
    # llama.cpp makes embeddings of these types without.
    GGUF(bits=8, rules={"lm_head": "iq3_xxs"}).check(facts)
    quantizer = GGUF(type="Q8_0", imatrix=True, rules=rules)
    assert quantizer.uses_calibration
    assert not GGUF(type="Q8_0", imatrix=True, rules={"*.down_proj": "f16"}).uses_calibration
    text = CalibrationTokens(torch.randint(0, 4096, (4, 64)).tolist())
    artifact, _ = written(pocket_dir, quantizer, text)
    assert artifact.details["tensor_types"] == {"Q8_0": 24, "IQ2_XS": 4}
    assert artifact.details["imatrix_entries"] == 28


@pytest.mark.slow
def test_all_types_that_rules_may_name_are_written(pocket_conversion, tmp_path):
    matrix = {
        name: torch.ones(t.shape[-1])
        for name, t in read_gguf(pocket_conversion.path).tensors.items()
        if len(t.shape) > 1
    }
    target = tmp_path / "one.gguf"
    for name in WRITABLE:
        wanted = {"^blk\\.0\\.ffn_down\\.weight$": tensor_type(name)}
        quantize_file(pocket_conversion.path, target, file_type("Q8_0"), matrix, wanted)
        planned = planned_types(pocket_conversion.path, file_type("Q8_0"), matrix, wanted)
        stored = read_gguf(target)
        assert {n: t.type for n, t in stored.tensors.items()} == planned
        assert stored.tensors["blk.0.ffn_down.weight"].type.name == name


def test_options_name_types_whatever_they_were_given_as(facts):
    assert GGUF(bits=4).options() == {"bits": 4, "type": "Q4_K_M", "imatrix": False}
    assert GGUF(bits=4, rules={}).options() == GGUF(bits=4).options()
    told = {"*.q_proj": 4, "*.k_proj": "Q4_K", "*.v_proj": {"type": "q4_k"}, "*.o_proj": "16"}
    quantizer = GGUF(bits=4, rules=told)
    assert quantizer.options()["rules"] == [
        *(f"*.{part}_proj=q4_k" for part in "qkv"),
        "*.o_proj=keep",
    ]
    again = GGUF(bits=4, rules=quantizer.options()["rules"])
    assert again == quantizer
    assert describe(GGUF(bits=4, rules={"*.o_proj": 8})) == "gguf Q4_K_M *.o_proj=q8_0"
    quantizer.check(facts)


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"*.downproj": "q6_k"}, "did you mean '*.down_proj'"),
        ({"*.down_proj": "q6k"}, "no tensor type 'q6k'; did you mean 'q6_k'"),
        ({"*.down_proj": "q4_k_m"}, "a mixture of types; name one; for instance q4_k"),
        ({"*.down_proj": "iq3_m"}, "a mixture of types; name one"),
        ({"*.down_proj": "q8_k"}, "no tensor type 'q8_k'"),
        ({"*.down_proj": "fp8"}, "no tensor type 'fp8'"),
        ({"*.down_proj": 7}, "plain types of 2, 3, 4, 5, 6, 8 bits, not 7"),
        ({"*.down_proj": {"bits": 4, "group_size": 64}}, "each type of llama.cpp's fixes it"),
        ({"*.down_proj": {"bits": 4, "type": "q6_k"}}, "bits and type both name a type"),
        ({"*.down_proj": {"bit": 4}}, "did you mean 'bits'"),
        ({"*.down_proj": {}}, "an empty mapping"),
        ({"*.down_proj": None}, "must be a type of llama.cpp's"),
        ({"": 8}, "an empty pattern"),
        ({"*": 8, "*.down_proj": 4}, "'*' stands before it"),
        ({"*": "keep"}, "nothing is left to quantize"),
        ({"*head": 8}, "names no layer but lm_head and its like (output head)"),
        ({"lm_head": 8, "*.embed_tokens": 4}, "one matrix in this model, and they differ"),
        (["*.down_proj"], "must be PATTERN=VALUE"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_in_one_line(facts, rules, told):
    message = refusal(facts, rules)
    assert told in message
    assert message.startswith("quant.rules")


def test_wildcards_mean_what_llama_cpp_decides_of_only_by_name(facts, tiny_model):
    mamba = read_facts(tiny_model("mamba"), "mamba")
    assert outside_layers(mamba).keys() == {"backbone.embeddings", "lm_head"}
    assert "unless a pattern ends in the name, as '*.dt_proj'" in refusal(mamba, {"*.dt_pro?": 8})
    GGUF(bits=4, rules={"*.x_proj": 8, "*.embeddings": 8}).check(mamba)
    # Of one matrix by two names, the one that is spelled out counts.
    GGUF(bits=4, rules={"lm_head": 4, "*": "keep"}).check(facts)


def test_experts_of_a_layer_lie_in_one_tensor(mixture_dir, written):
    facts = read_facts(mixture_dir, "moe")
    message = refusal(facts, {"*.experts.0.*": "q8_0"})
    assert "those of model.layers.0.mlp.experts.*.down_proj differ; name them all" in message
    assert "llama.cpp never quantizes model.layers.0.mlp.gate (router)" in refusal(
        facts, {"*.mlp.gate": 8}
    )
    rules = {"*.0.mlp.experts.*.down_proj": "q5_0", "*.1.mlp.experts.*": "keep"}
    artifact, file = written(mixture_dir, GGUF(type="Q8_0", rules=rules))
    found = types(file)
    assert found["blk.0.ffn_down_exps.weight"] == "Q5_0"
    assert found["blk.0.ffn_up_exps.weight"] == "Q8_0"
    assert found["blk.1.ffn_up_exps.weight"] in ("BF16", "F16", "F32")
    assert all(".1.mlp.experts." in name for name in artifact.details["kept_layers"])
