"""Every way that a message names is gone, and is open or leads on to one that is.

:data:`REFUSALS` are messages of planning; those of a run are provoked by small models. The last test
finds every message in the source that names a way, and wants it in one of the two lists.
"""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from commands.test_advice import texts
from helpers.custom_code import custom_mixture
from helpers.miniatures import SIZES, build
from qsweep.base.errors import BackendUnavailable, ConfigError, IncompatibleTrial
from qsweep.formats import numbers
from qsweep.formats.numbers import FORMATS
from qsweep.models.facts import read_facts
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.quantizers.gguf import GGUF
from qsweep.quantizers.gptqmodel import AWQ, GPTQ, families
from qsweep.quantizers.isolated import (
    AutoAWQ,
    AutoGPTQ,
    AutoRound,
    LLMCompressorAWQ,
    LLMCompressorGPTQ,
    LLMCompressorRTN,
)
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ
from qsweep.quantizers.rtn import RTN
from qsweep.text.calibration import CalibrationTokens

SAMPLES = torch.randint(5, 500, (2, 48), generator=torch.Generator().manual_seed(0)).tolist()
DENSE = {"layers.0.self_attn.q_proj": (512, 512), "layers.0.mlp.up_proj": (512, 512)}
MIXED = DENSE | {
    f"layers.0.mlp.experts.{n}.{kind}_proj": (512, 512) for n in range(4) for kind in ("up", "down")
}
NARROW = {"layers.0.self_attn.q_proj": (512, 512), "layers.0.mlp.up_proj": (2048, 192)}
ODD = DENSE | {"layers.0.shared.b_proj": (4, 512), "layers.0.self_attn.k_proj": (4, 512)}
NATIVE = [RTN, NativeGPTQ, NativeAWQ]
KEPT = {"*.q_proj": "keep"}
Q4_K, NF4 = FORMATS["q4_k"](), numbers.NF4(double_quant=True)
COMPRESSED = numbers.Int("compressed-tensors")


def facts_of(linears=MIXED, kind="llama", *, experts=None, path=Path(), unread=()):
    mixture = linears is MIXED if experts is None else experts
    return ModelFacts(
        "mini", path, kind, linears, 1000, 512, 100, experts=mixture, unread_experts=unread
    )


# What a message says behind a colon or semicolon, as in the source; who is refused so, over what;
# and the ways, of which each must be open, or refused with a message that is here, too.
REFUSALS = [
    *(
        ("gptq, awq and rtn with quant.backend=native quantize most of them", quantizer, facts_of(), NATIVE)
        for quantizer in (
            *(AutoAWQ(), AutoGPTQ(), AutoRound(), AutoRound(export="awq"), LLMCompressorAWQ()),
            *(LLMCompressorGPTQ(), LLMCompressorRTN(), LLMCompressorGPTQ(format=numbers.NVFP4())),
        )
    ),
    *(
        ("quant.backend=native needs none", quantizer, facts_of(kind="of_tomorrow"), [own])
        for quantizer, own in ((GPTQ(), NativeGPTQ), (AWQ(), NativeAWQ))
    ),
    *(
        ("quant.backend=native quantizes it", quantizer, facts_of(kind=kind), [own])
        for quantizer, own in ((GPTQ(), NativeGPTQ), (AWQ(), NativeAWQ))
        for kind in families.FAILING
    ),
    *(
        ("quant.backend=native finds out what does", AWQ(), facts_of(DENSE, kind), [NativeAWQ])
        for kind in ("gemma3", "gemma3_text", "phi3")
    ),
    ("quant.backend=native does", GPTQ(format=numbers.NVFP4()), facts_of(), [NativeGPTQ(format=numbers.NVFP4())]),
    ("quant.backend=native does", AWQ(format=COMPRESSED), facts_of(), [NativeAWQ(format=COMPRESSED)]),
    ("quant.backend=native does", AutoGPTQ(format=numbers.NVFP4()), facts_of(DENSE), [NativeGPTQ(format=numbers.NVFP4())]),
    ("quant.backend=native does", AutoAWQ(rules=KEPT), facts_of(DENSE), [NativeAWQ(rules=KEPT)]),
    ("quant.backend=native does", LLMCompressorRTN(format=NF4), facts_of(DENSE), [RTN(format=NF4)]),
    ("quant=gptq, awq and rtn do", AutoRound(format=numbers.NVFP4()), facts_of(DENSE), [q(format=numbers.NVFP4()) for q in NATIVE]),
    ("quant=gptq, awq and rtn do", AutoRound(rules=KEPT), facts_of(DENSE), [q(rules=KEPT) for q in NATIVE]),
    *(
        ("rounding to nearest only (quant=rtn); format.double_quant=false", q(format=NF4), facts_of(),
         [RTN(format=NF4), q(format=numbers.NF4(double_quant=False))])
        for q in NATIVE[1:]
    ),
    ("does not hold format={}; container={} does", RTN(format=numbers.NF4("gptq")), facts_of(), [RTN(format=numbers.NF4("bitsandbytes"))]),
    ("does not hold format={}; container={} does", NativeAWQ(format=numbers.Int("gptq")), facts_of(), [NativeAWQ(format=numbers.Int("awq")), NativeAWQ(format=COMPRESSED)]),
    ("a checkpoint is one of them (format.container={})",
     NativeGPTQ(rules={"*.up_proj": "nvfp4"}), facts_of(),
     [NativeGPTQ(format=COMPRESSED, rules={"*.up_proj": "nvfp4"})]),
    ("a checkpoint is one of them (format={} for all layers)",
     NativeGPTQ(rules={"*.up_proj": "q4_k"}), facts_of(kind="LlamaForCausalLM"), [NativeGPTQ(format=Q4_K)]),
    ("a gguf file does not hold format={}; name one of {}",
     NativeGPTQ(format=Q4_K, rules={"*.up_proj": "nvfp4"}), facts_of(kind="LlamaForCausalLM"),
     [NativeGPTQ(format=Q4_K, rules={"*.up_proj": name}) for name in ("q2_k", "q6_k", "q8_0")]),
    ("format.container=compressed-tensors holds others", NativeAWQ(rules={"*.up_proj": 8}), facts_of(),
     [NativeAWQ(format=COMPRESSED, rules={"*.up_proj": 8})]),
    ("quant.backend=native with format.container=compressed-tensors holds others",
     AWQ(rules={"*.up_proj": 8}), facts_of(DENSE), [NativeAWQ(format=COMPRESSED, rules={"*.up_proj": 8})]),
    ("keep is the only rule that it holds", NativeAWQ(rules={"*.up_proj": 8}), facts_of(), [NativeAWQ(rules={"*.up_proj": "keep"})]),
    ("take a multiple of {}", NativeGPTQ(group_size=16), facts_of(), [NativeGPTQ(group_size=32)]),
    ("take a multiple of {}", NativeGPTQ(group_size=8, format=COMPRESSED), facts_of(), [NativeGPTQ(group_size=16, format=COMPRESSED)]),
    (", or quant.backend=gptqmodel", NativeGPTQ(group_size=16), facts_of(DENSE), [NativeGPTQ(group_size=32), GPTQ(group_size=16)]),
    ("desc_act=false orders columns", NativeGPTQ(desc_act=True, format=COMPRESSED), facts_of(), [NativeGPTQ(format=COMPRESSED)]),
    ("does not divide the {} inputs of {}; for this model: {}", RTN(), facts_of(NARROW), [RTN(group_size=64)]),
    ("no kernel runs group_size={}; for this model: {}", NativeAWQ(group_size=256), facts_of(), [NativeAWQ(group_size=128)]),
    ("; quant=rtn leaves such layers in 16 bits", AutoRound(group_size=128), facts_of(ODD), [RTN]),
    ("which AWQ does not handle; gptq and rtn do", NativeAWQ(), facts_of(DENSE, "gpt2"), [RTN, NativeGPTQ]),
    ("quant.backend=native or gptqmodel may", AutoAWQ(), facts_of(DENSE, "of_tomorrow"), [NativeAWQ, AWQ]),
    ("quant.backend=gptqmodel and native run on both", AutoGPTQ(), facts_of(DENSE), [GPTQ, NativeGPTQ]),
    ("quant.backend=gptqmodel and native have 2, 3 and 8", AutoAWQ(bits=3), facts_of(DENSE), [AWQ(bits=3), NativeAWQ(bits=3)]),
    ("zero points: sym=false", AutoAWQ(sym=True), facts_of(DENSE), [AutoAWQ(sym=False)]),
    ("loses zero points of 0: sym=true", AutoRound(sym=False), facts_of(DENSE), [AutoRound(sym=True)]),
    ("at run time: desc_act=false", LLMCompressorGPTQ(desc_act=True), facts_of(DENSE), [LLMCompressorGPTQ()]),
]  # fmt: skip


def refusal(quantizer, facts):
    try:
        quantizer.check(facts)
    except BackendUnavailable:
        return None  # what to install, it says; the way itself is open
    except IncompatibleTrial as error:
        assert "\n" not in str(error)
        return str(error)
    return None


def pattern(fragment):
    """A regular expression for a message of the source, whose gaps hold anything."""
    return re.compile(".+".join(re.escape(part) for part in fragment.split("{}")))


@pytest.mark.parametrize(
    ("fragment", "quantizer", "facts", "ways"),
    REFUSALS,
    ids=lambda value: type(value).__name__ if hasattr(value, "method") else None,
)
def test_a_way_that_planning_names_is_open(fragment, quantizer, facts, ways, tmp_path):
    if quantizer.backend == "gptqmodel" and importlib.util.find_spec("gptqmodel") is None:
        pytest.skip("gptqmodel is not installed")  # which it would say first
    (tmp_path / "config.json").write_text("{}")
    facts = replace(facts, path=tmp_path)
    message = refusal(quantizer, facts)
    assert message is not None and pattern(fragment).search(message), message
    for way in ways:
        other = way if not isinstance(way, type) else way(bits=quantizer.bits)
        assert refusal(other, facts) is None, f"{message} -> {refusal(other, facts)}"


@pytest.mark.parametrize(
    "quantizer",
    [*(q() for q in NATIVE), GPTQ(), AWQ(), AutoAWQ(), AutoGPTQ(), AutoRound(), LLMCompressorRTN()],
    ids=lambda q: f"{q.method} {q.backend}",
)
def test_where_nobody_can_nobody_is_named(quantizer, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    facts = facts_of(path=tmp_path, unread=("layers.0.moe.w_in",))
    message = refusal(quantizer, facts)
    assert "stores experts as layers.0.moe.w_in" in message
    assert not re.search(r"quant|native|gptqmodel", message.replace("quantizer", ""))


def test_other_containers_that_gguf_names_are_written_by_one_of_those(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    for container in ("gptq", "awq", "compressed-tensors"):
        number = numbers.Int(container)
        message = refusal(GGUF(format=number), facts_of(path=tmp_path))
        assert "is written by rtn, gptq and awq" in message
        assert None in [refusal(q(format=number), facts_of(path=tmp_path)) for q in NATIVE]
    made = [refusal(q(format=Q4_K), facts_of(path=tmp_path)) for q in NATIVE]
    assert [("gptq and rtn make format=" in (m or "")) for m in made] == [False, False, True]


# Messages of a run.

EXPERTS = {
    **dict.fromkeys(("num_experts", "num_local_experts"), 4),
    **{"num_experts_per_tok": 2, "moe_intermediate_size": 32},
}


def quantize(quantizer, path, out, *, trusted=False):
    """Its artifact, or what it says."""
    facts = read_facts(path, "mini")
    out.mkdir()
    try:
        quantizer.check(facts)
        text = CalibrationTokens(SAMPLES)
        return quantizer.quantize(SourceModel(facts, "cpu", trusted), text, out)
    except IncompatibleTrial as error:
        assert "\n" not in str(error)
        return str(error)


def unfollowed(path):
    """What is said of a family whose renaming is not followed, so that experts are not found."""
    from qsweep.models.spelling import Spelling
    from qsweep.quantizers.native.network import not_run_as_linear

    source = SourceModel(read_facts(path, "mini"), "cpu")
    with pytest.raises(IncompatibleTrial) as caught:
        not_run_as_linear(source, Spelling(), ["model.layers.0.self_attn.q_proj"])
    return str(caught.value)


def test_what_transformers_stacks_otherwise_is_rounded_all_the_same(tmp_path, pocket_dir):
    path = build("qwen3_moe", tmp_path / "model", pocket_dir, **SIZES | EXPERTS)
    assert unfollowed(path).endswith("does not follow; quant=rtn rounds it all the same")
    assert quantize(RTN(group_size=32), path, tmp_path / "rtn").size.bpw < 6


def test_rounding_is_not_named_where_it_needs_the_model_too(tmp_path, pocket_dir):
    extra = EXPERTS | {"layer_types": ["full_attention"] * 2}
    path = build("gpt_oss", tmp_path / "model", pocket_dir, **SIZES | extra)
    assert unfollowed(path).endswith("in a way that qsweep does not follow")


@pytest.mark.parametrize("stacked", [False, True])
def test_experts_of_a_class_of_their_own_are_told_by_what_would_be_needed(
    tmp_path, pocket_dir, stacked
):
    from qsweep.quantizers.native.graph import find_decoder
    from qsweep.quantizers.native.network import load_network

    path = custom_mixture(
        tmp_path / "model", pocket_dir, experts=4 if stacked else 96, stacked=stacked
    )
    if stacked:  # planning skips it already; who loads it all the same is told the class
        network = load_network(SourceModel(read_facts(path, "mini"), "cpu", True))
        with pytest.raises(IncompatibleTrial) as caught:
            find_decoder(network)
        message = str(caught.value)
        assert message.startswith(
            "model.layers.0.mlp.experts: PartlyExperts keeps experts in a way"
        )
    else:
        message = quantize(NativeGPTQ(group_size=32), path, tmp_path / "gptq", trusted=True)
        assert "mlp.experts." in message and "takes no part for every token" in message
    assert message.endswith(
        "those are quantized whose class has transformers' use_experts_implementation"
    )
    # One that has it is.
    marked = build("qwen3_moe", tmp_path / "marked", pocket_dir, **SIZES | EXPERTS)
    assert quantize(NativeGPTQ(group_size=32), marked, tmp_path / "out").size.bpw < 6


def test_experts_that_gptqmodel_left_are_taken_apart_by_ourselves(tmp_path, pocket_dir):
    from types import SimpleNamespace

    from qsweep.quantizers.gptqmodel.run import _require_experts

    path = build("qwen3_moe", tmp_path / "model", pocket_dir, **SIZES | EXPERTS)
    with pytest.raises(IncompatibleTrial, match="quant.backend=native takes them apart by itself"):
        _require_experts(SimpleNamespace(kept={}), path)
    artifact = quantize(NativeGPTQ(group_size=32), path, tmp_path / "gptq")
    _require_experts(SimpleNamespace(kept={}), artifact.path)


@pytest.mark.parametrize(
    "kind", ["granitemoe", "lfm2_moe", "minimax_m2", "ernie4_5_moe", "glm4_moe"]
)
def test_mixtures_that_gptqmodel_fails_on_are_quantized_by_ourselves(kind, tmp_path, pocket_dir):
    more = {
        "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 0},
        "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1},
        "glm4_moe": {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
        "minimax_m2": {"rotary_dim": 16},
    }
    path = build(kind, tmp_path / "model", pocket_dir, **SIZES | EXPERTS | more.get(kind, {}))
    assert quantize(NativeGPTQ(group_size=32), path, tmp_path / "gptq").size.bpw < 6


def test_the_calibration_text_that_is_missing_can_be_chosen(tmp_path, pocket_dir):
    path = build("llama", tmp_path / "model", pocket_dir, **SIZES)
    source = SourceModel(read_facts(path, "mini"), "cpu")
    with pytest.raises(ConfigError, match="choose one with calibration=NAME"):
        NativeGPTQ(group_size=32).quantize(source, None, tmp_path)
    assert quantize(NativeGPTQ(group_size=32), path, tmp_path / "out").size.bpw < 6


def test_rounding_without_tuning_is_another_quantizer():
    with pytest.raises(ConfigError, match="quant=rtn rounds to nearest"):
        AutoRound(iters=0)
    assert refusal(RTN(), facts_of(DENSE)) is None


# Messages that name a way, by who goes it: a test here, or one of another file.
RUNS = {
    "quant=rtn rounds it all the same": "test_what_transformers_stacks_otherwise_is_rounded_all_the_same",
    "use_experts_implementation": "test_experts_of_a_class_of_their_own_are_told_by_what_would_be_needed",
    "quant.backend=native takes them apart by itself": "test_experts_that_gptqmodel_left_are_taken_apart_by_ourselves",
    "cannot be compared; quantize with quant.backend=native": "test_halves_of_rows_that_alternate_are_refused_and_our_own_experts_are_not",
    "quant.backend=native quantizes it": "test_mixtures_that_gptqmodel_fails_on_are_quantized_by_ourselves",
    "quant=rtn rounds to nearest": "test_rounding_without_tuning_is_another_quantizer",
    "calibration=NAME": "test_the_calibration_text_that_is_missing_can_be_chosen",
    "write calibration=[A:0.7,B:0.3], or calibration=[A,B]": "test_the_blends_that_are_advised_are_taken",
    "names no text; choose some with calibration=[A,B]": "test_the_blends_that_are_advised_are_taken",
    "calibration.num_samples={} would do, or ": "test_the_number_that_is_advised_does_for_every_share",
    "calibration.packing=documents packs what is said without one": "test_a_model_without_a_chat_template_is_told_and_one_with_it_takes_conversations",
    "calibration.packing=documents packs what is there": "test_a_text_without_conversations_cannot_be_packed_as_such",
    "calibration.packing=documents packs them without it": "test_what_the_template_refuses_is_left_out_and_told",
    "is written by rtn, gptq and awq": "test_other_containers_that_gguf_names_are_written_by_one_of_those",
    "awq writes no GGUF; gptq and rtn make": "test_other_containers_that_gguf_names_are_written_by_one_of_those",
    "gptq, awq and rtn with quant.backend=native show it": "test_who_shows_an_expert_its_own_tokens_alone_says_so",
    "model.trust_remote_code=true runs it": "test_code_that_comes_with_a_model_runs_where_it_is_trusted",
    "give the unquantized model they were made from": "test_experts_that_are_quantized_without_a_word_of_it",
    "beyond float32; quant.gptq_output_hessian=false": "test_where_outputs_are_felt_beyond_float32_plain_gptq_goes_on",
    "at any damping; quant.gptq_output_hessian=false": "test_what_cannot_be_factorized_is_named_with_the_way_out",
    "share a scale; quant.gptq_output_hessian=false": "test_outputs_that_share_scales_are_refused",
}  # fmt: skip
# Ways out of the machine's, the hub's and other rooms' troubles; options in them exist and take the
# values named (tests/commands/test_advice.py).
ELSEWHERE = (
    *(
        "pip install",
        "env create",
        "model.path=DIR",
        "eval.",
        "device=cpu",
        "use device=",
        "cuda:0",
    ),
    *(
        "give device=cuda, or leave",
        "quant.path=",
        "quant.file=",
        "quant.imatrix=true",
        "quant.export=gguf",
        "quant=NAME",
    ),
    *("give the unquantized model", "corpus=", "eval="),
    *("--config-name", "quant=gptq bits=4", "quant=none, or with", "is the unquantized model"),
    *("relative to the unquantized model", "a pack is of the unquantized model", "leave one out"),
    *("take it out", "name another format or bits", "quant.env.create=true"),
    *("goes with rtn, gptq, awq and gguf", "not container={}"),
)
ADVISES = re.compile(
    r"(?:[;(,:]|\bor\b|\bset\b)[^;]*?\b(?:quant(?:\.\w+)*|container|format(?:\.\w+)?|model\.\w+|"
    r"eval(?:\.\w+)?|calibration(?:\.\w+)?|device|sym|desc_act)=[\w{\[]|unquantized model|"
    r"native (?:and|or) |gptq and rtn|gptq, awq and rtn|pip install|qsweep env|take a multiple|"
    r"for this model: |use_experts_implementation"
)


# What is said of other quantizers is gone here, whatever else stands in the message.
OF_QUANTIZERS = re.compile(
    r"quant=(?:rtn|gptq|awq)|quant\.backend=|native (?:and|or) |gptq and rtn|rtn, gptq and awq"
)
# Who shows how to type a sweep.
OTHER_ROOMS = ("commands/", "search/", "sweep/explain.py", "results/")


def test_every_message_that_names_a_way_is_tried():
    tests = "\n".join(f.read_text() for f in Path(__file__).parents[1].rglob("test_*.py"))
    for name in RUNS.values():
        assert f"def {name}(" in tests
    tried = [*(fragment for fragment, *_ in REFUSALS), *RUNS]
    said = [(place, text) for place, text in texts() if ADVISES.search(text) and " " in text]
    assert len(said) > 60
    for fragment in {*tried, *ELSEWHERE}:
        assert any(fragment in text for _, text in texts()), f"nobody says: {fragment}"
    missing = [
        (place, text)
        for place, text in said
        if not any(fragment in text for fragment in tried)
        if OF_QUANTIZERS.search(text) or not any(fragment in text for fragment in ELSEWHERE)
    ]
    assert [(place, text) for place, text in missing if not place.startswith(OTHER_ROOMS)] == []
    assert len(missing) < len(said) / 3
