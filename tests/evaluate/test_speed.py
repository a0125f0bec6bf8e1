import contextlib
import mmap

import pytest
import torch

from qsweep.evaluate import footprint, speed
from qsweep.evaluate.serving import _spread
from qsweep.evaluate.speed import can_time, kld_native, measure_speed
from qsweep.formats.artifact import Artifact, Size
from qsweep.models.facts import read_facts
from qsweep.models.source import SourceModel
from qsweep.text.calibration import CalibrationTokens
from qsweep.text.windows import Windows

NOTHING = Size(0, 0, 0, 0, 0)
KEYS = {
    "prefill_tps",
    "decode_tps",
    "peak_memory_gb_speed",
    "load_s",
    "prefill_tokens",
    "decode_tokens",
    "speed_on_gpu",
}


@pytest.fixture(scope="module")
def gguf_artifact(tiny_model, conversions):
    pytest.importorskip("llama_cpp")
    from qsweep.base.errors import BackendUnavailable
    from qsweep.quantizers.gguf import GGUF

    source, out = tiny_model("llama"), conversions / "speed"
    out.mkdir()
    try:
        return GGUF(bits=8).quantize(SourceModel(read_facts(source, "llama"), "cpu"), None, out)
    except BackendUnavailable as error:
        pytest.skip(str(error))


def check(found, **expected):
    assert set(found) == KEYS
    assert all(isinstance(value, float) for value in found.values())
    assert found["prefill_tps"] > 0 and found["decode_tps"] > 0
    assert {key: found[key] for key in expected} == expected


def test_the_reference_on_transformers(tiny_model):
    source = tiny_model("llama")
    told = []
    found = measure_speed(
        Artifact(source, "hf", NOTHING), source, "cpu", lambda step, done: told.append((step, done))
    )
    # The context of 512 leaves room for the tokens that are generated.
    check(found, prefill_tokens=480.0, speed_on_gpu=0.0)
    assert 4 <= found["decode_tokens"] <= 32
    assert [step for step, _ in told] == ["speed"] * 3


def test_gguf_on_llama_cpp(gguf_artifact, tiny_model):
    found = measure_speed(
        gguf_artifact, tiny_model("llama"), "cpu", prefill_tokens=64, decode_tokens=8, repeats=1
    )
    check(found, prefill_tokens=64.0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_packed_weights_on_gptqmodels_kernels(method, tiny_model, tmp_path):
    pytest.importorskip("gptqmodel")
    from qsweep.quantizers.gptqmodel import AWQ
    from qsweep.quantizers.rtn import RTN

    source = tiny_model("llama")
    samples = torch.randint(0, 4096, (4, 64), generator=torch.Generator().manual_seed(0)).tolist()
    quantizer = {"gptq": RTN, "awq": AWQ}[method](bits=4, group_size=32)
    artifact = quantizer.quantize(
        SourceModel(read_facts(source, "llama"), "cpu"), CalibrationTokens(samples), tmp_path
    )
    assert artifact.format == method
    found = measure_speed(artifact, source, "cpu", prefill_tokens=32, decode_tokens=4, repeats=1)
    check(found, prefill_tokens=32.0, decode_tokens=4.0)


def test_only_vllm_serves_compressed_tensors_so_their_speed_is_not_measured(tmp_path):
    formats = ("hf", "gptq", "awq", "gguf", "compressed-tensors")
    assert [f for f in formats if not can_time(Artifact(tmp_path, f, NOTHING))] == [
        "compressed-tensors"
    ]


def test_the_median_and_the_warm_up(tiny_model, monkeypatch):
    """Times come from an engine whose clock we hold."""
    clock = iter(range(1000))
    seconds = {"now": 0.0}

    class SequenceRunner:
        def prefill(self, tokens):
            seconds["now"] += [100, 1, 9, 2][min(next(clock), 3)]

        def decode(self, count):
            seconds["now"] += count * 0.5

    monkeypatch.setattr(speed, "_engine", lambda *_: contextlib.nullcontext(SequenceRunner()))
    monkeypatch.setattr(speed, "_import_libraries", lambda *_: None)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: seconds["now"])
    source = tiny_model("llama")
    found = measure_speed(Artifact(source, "hf", NOTHING), source, "cpu", prefill_tokens=100)
    assert found["prefill_tps"] == 50  # the median of 1, 9 and 2 seconds; the 100 are warming up
    assert found["decode_tps"] == 2
    assert found["decode_tokens"] == 6  # as many as three seconds allow


def test_resident_memory_sees_what_came_and_went():
    memory = footprint.ResidentMemory()
    size = 64 << 20
    with mmap.mmap(-1, size) as area:
        for at in range(0, size, 4096):
            area[at] = 1
    assert size * 0.9 < memory.peak_bytes() < size * 1.5


def windows(count, context, first):
    ids = torch.randint(0, 4096, (count, context), generator=torch.Generator().manual_seed(0))
    lengths = torch.full((count,), context)
    lengths[-1] = context - 7
    return Windows(ids, torch.full((count,), first), lengths, "gptq", "none")


@pytest.mark.parametrize(("context", "first"), [(300, 1), (300, 257), (64, 33)])
def test_kld_native_scores_what_the_windows_say(context, first, gguf_artifact, tiny_model):
    from qsweep.formats.dense import load_dense

    source, sample = tiny_model("llama"), windows(3, context, first)
    found = kld_native(gguf_artifact, source, sample)
    assert found["native_tokens"] == sample.tokens_scored
    # The dense engine's divergence on the same tokens, less than llama.cpp's by its rounding.
    reference, measured = (
        load_dense(a, source, dtype=torch.float32, device="cpu")
        for a in (Artifact(source, "hf", NOTHING), gguf_artifact)
    )
    total = 0.0
    for ids, begin, length in zip(sample.ids, sample.first_scored, sample.lengths, strict=True):
        with torch.inference_mode():
            p = reference(ids[None]).logits[0, begin - 1 : length - 1].double().log_softmax(-1)
            q = measured(ids[None]).logits[0, begin - 1 : length - 1].double().log_softmax(-1)
        total += float((p.exp() * (p - q)).sum())
    expected = total / sample.tokens_scored
    assert expected < found["kld_native"] < expected + 1e-3
    assert 0 < found["kld_native_stderr"] < found["kld_native"]
    assert found["ppl_ratio_native"] == pytest.approx(1, abs=0.05)
    assert 0.5 < found["top1_agreement_native"] <= 1


def test_a_sample_is_spread_evenly():
    assert _spread(9, 3) == [1, 4, 7]
    assert _spread(2, 5) == [0, 1]
    assert _spread(100, 2) == [25, 75]


@pytest.mark.gpu
def test_the_reference_on_a_gpu(tiny_model):
    source = tiny_model("llama")
    found = measure_speed(Artifact(source, "hf", NOTHING), source, "cuda:0")
    check(found, prefill_tokens=480.0, speed_on_gpu=1.0)
    assert 0 < found["peak_memory_gb_speed"] < 1
