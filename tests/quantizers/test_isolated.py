"""Quantizers in environments of their own: the handshake, the protocol, and what goes wrong."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.environments import require_environment
from qsweep.base.errors import BackendUnavailable, ConfigError, IncompatibleTrial, TrialFailed
from qsweep.formats.compressed_tensors import CONTAINER
from qsweep.formats.dense import load_dense
from qsweep.formats.numbers import FP8, NF4, NVFP4, W4A16, W8A8, Int
from qsweep.models.facts import read_facts
from qsweep.models.source import ModelFacts, SourceModel
from qsweep.quantizers.environments.choice import EnvChoice
from qsweep.quantizers.isolated import (
    AutoAWQ,
    AutoGPTQ,
    AutoRound,
    Custom,
    LLMCompressorAWQ,
    LLMCompressorGPTQ,
    LLMCompressorRTN,
)
from qsweep.quantizers.isolated.handover import both_spellings, differences, hand_over
from qsweep.quantizers.isolated.process import WORKERS
from qsweep.quantizers.isolated.run import Recipe, quantize
from qsweep.sweep.config import describe
from qsweep.sweep.config import quantizer as build_quantizer
from qsweep.text.calibration import CalibrationTokens

GENERATOR = torch.Generator().manual_seed(3)
CALIBRATION = CalibrationTokens(torch.randint(0, 4096, (4, 32), generator=GENERATOR).tolist())

# A quantizer of the fewest lines: it rounds to nearest in a library of its own, here transformers.
WORKER = """
import sys

import qsweep_worker, torch

# transformers imports these wherever it finds them, and takes seconds over them.
sys.modules.update(dict.fromkeys(("sklearn", "hqq", "torchao")))

def quantize(job):
    from transformers import AutoModelForCausalLM
    print("loading")
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=job.torch_dtype)
    {before}
    job.handshake(model)
    qsweep_worker.progress("round", 0.5)
    {after}
    from safetensors.torch import load_file, save_file
    tensors = load_file(job.options["ready"])
    save_file(tensors, job.out + "/model.safetensors", {{"format": "pt"}})
    return {{"settings": job.options["settings"]}}

qsweep_worker.run(quantize)
"""


@pytest.fixture(scope="module")
def ready(tmp_path_factory, pocket_dir):
    """A finished checkpoint, which the toy worker hands out as its own."""
    from qsweep.quantizers.rtn import RTN

    out = tmp_path_factory.mktemp("ready")
    model = SourceModel(read_facts(pocket_dir, "pocket"), "cpu")
    RTN(bits=4, group_size=128, sym=False).quantize(model, None, out)
    return out


@pytest.fixture
def work(tmp_path, pocket_dir, ready, monkeypatch):
    """``work(worker's source)`` runs it here and gives the artifact."""
    (tmp_path / "toy.yaml").write_text("library: torch\ninstall: [torch]\n")
    settings = json.loads((ready / "quantize_config.json").read_text())
    model = SourceModel(read_facts(pocket_dir, "pocket"), "cpu")
    made = iter(range(100))

    def run(source=WORKER, before="", after="", timeout_s=None, steps=None, **more):
        script = tmp_path / "worker.py"
        script.write_text(source.format(before=before, after=after) if source is WORKER else source)
        out = tmp_path / f"out{next(made)}"
        out.mkdir()
        recipe = Recipe(str(script), "toy", "gptq" if "gptq" in settings["quant_method"] else "awq")
        env = EnvChoice(
            name=str(tmp_path / "toy.yaml"),
            folder=tmp_path / "envs",
            python=Path(sys.executable),
            timeout_s=timeout_s,
        )
        options = {"ready": str(ready / "model.safetensors"), "settings": settings}
        report = (lambda step, done: steps.append((step, done))) if steps is not None else print
        try:
            return quantize(recipe, env, options, model, CALIBRATION, out, report, ())
        finally:
            assert not (out / "work").exists()

    return run


def fails(work, message, **more) -> Path:
    """The trial fails with one line, which ends with the path of the worker's log."""
    with pytest.raises(TrialFailed, match=message) as caught:
        work(**more)
    line = str(caught.value)
    assert "\n" not in line
    log = Path(line.rpartition("; log: ")[2])
    assert log.is_file()
    return log


def test_a_worker_writes_an_artifact_that_the_dense_engine_reads(work, ready, pocket_dir):
    steps = []
    # What it prints, and what others write to the descriptor of its progress, disturbs nothing.
    garbage = "import os; os.write(int(os.environ['QSWEEP_PROGRESS']), b'\\xff\\n[1]\\n{}\\n')"
    artifact = work(before=garbage + "; print('\\x00' * 1000)", steps=steps)
    assert artifact.details["handshake_kld"] < 1e-9
    assert ("round", 0.5) in steps
    assert (artifact.path / "tokenizer.json").read_bytes() == (
        pocket_dir / "tokenizer.json"
    ).read_bytes()
    config = json.loads((artifact.path / "config.json").read_text())
    assert "rope_theta" not in config
    assert artifact.size.linear_weights == 3145728
    load_dense(artifact, pocket_dir, dtype=torch.float32, device="cpu")


def test_another_model_is_noticed_and_nothing_is_quantized(work):
    other = "model.config.rms_norm_eps = 0.1\n    model.model.norm.variance_epsilon = 10.0"
    log = fails(
        work,
        r"toy reads another model than this one, so nothing was quantized: .* KL divergence of "
        r".*rms_norm_eps: 1e-06 here, 0.1 there",
        before=other,
        after="print('quantized')",
    )
    assert "loading" in log.read_text()
    assert "quantized" not in log.read_text()


def test_a_model_that_gives_no_numbers_agrees_with_nothing(tmp_path, monkeypatch):
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.syspath_prepend(str(WORKERS))
    import qsweep_worker

    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    )
    ids = torch.arange(8)[None]
    with torch.no_grad():
        logits = model(ids).logits[0]
    save_file({"input_ids": ids, "logits": logits}, tmp_path / "probe.safetensors")
    probe = str(tmp_path / "probe.safetensors")
    job = qsweep_worker.Job("", "", "cpu", "float32", {}, False, "", probe, 1e-5)
    job.handshake(model)
    assert job.agreement["kld"] < 1e-9
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(qsweep_worker.Mismatch):
        job.handshake(model)


def test_a_worker_that_skips_the_handshake_is_refused(work):
    source = "import qsweep_worker\nqsweep_worker.run(lambda job: {'settings': {}})\n"
    fails(work, "did not compare its logits: call job.handshake", source=source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("print('x' * 10**6, '{\"settings\": 1}')", "exited with status 0 without a result"),
        ("import os; os.kill(os.getpid(), 9)", r"killed by signal 9 .SIGKILL"),
        ("import os; os.kill(os.getpid(), 11)", "killed by signal 11 .SIGSEGV"),
        ("import nothing_of_that_name", "it last wrote: ModuleNotFoundError: No module named"),
        (
            "import json, sys; r = json.load(open(sys.argv[1])); open(r['result'], 'w').write('{')",
            "answer is not JSON",
        ),
        (
            "import json, sys; r = json.load(open(sys.argv[1])); open(r['result'], 'w').write('[]')",
            "answer lacks settings",
        ),
        (
            "import qsweep_worker\ndef f(job): raise ValueError('no such layer')\n"
            "qsweep_worker.run(f)",
            "worker: ValueError: no such layer",
        ),
    ],
)
def test_a_worker_that_fails(work, source, message):
    fails(work, message, source=source)


def test_time_out_ends_the_worker_and_all_that_it_started(work, tmp_path):
    note = tmp_path / "pid"
    source = (
        "import subprocess, time\n"
        f"p = subprocess.Popen(['sleep', '60']); open({str(note)!r}, 'w').write(str(p.pid))\n"
        "time.sleep(60)"
    )
    started = time.monotonic()
    fails(work, r"ended after 3 s .quant.env.timeout_s", source=source, timeout_s=3)
    assert time.monotonic() - started < 30
    time.sleep(0.2)
    pid = int(note.read_text())
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or ") Z " in state.read_text()


def test_a_worker_that_saves_nothing(work):
    source = (
        "import qsweep_worker\ndef f(job):\n    job.agreement = {'kld': 0.0}\n"
        "    return {'settings': {}}\nqsweep_worker.run(f)"
    )
    fails(work, "toy saved no weights", source=source)


def test_both_generations_find_their_spelling():
    plain = both_spellings({"dtype": "bfloat16", "rope_parameters": {"rope_theta": 5e5}})
    assert (plain["torch_dtype"], plain["rope_theta"], plain["rope_scaling"]) == (
        "bfloat16",
        5e5,
        None,
    )
    long = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}
    scaled = both_spellings({"rope_parameters": long})
    assert scaled["rope_scaling"] == {"rope_type": "llama3", "type": "llama3", "factor": 8.0}
    gemma = both_spellings(
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        }
    )
    assert (gemma["rope_theta"], gemma["rope_local_base_freq"]) == (1e6, 1e4)
    assert gemma["rope_scaling"]["factor"] == 8.0
    neox = both_spellings(
        {
            "model_type": "gpt_neox",
            "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25},
        }
    )
    assert (neox["rotary_pct"], neox["rotary_emb_base"]) == (0.25, 1e4)
    nested = both_spellings({"text_config": {"rope_parameters": {"rope_theta": 2e4}}})
    assert nested["text_config"]["rope_theta"] == 2e4
    # What 4 wrote is left as it is.
    assert both_spellings({"rope_theta": 3e4}) == {"rope_theta": 3e4}


def test_differences_name_both_values():
    assert differences({"a": 1, "b": 2, "c": [1]}, {"a": 1, "b": 3, "c": [2]}) == [
        "b: 2 here, 3 there"
    ]


def test_handed_over_files_are_links(tmp_path, pocket_dir):
    hand_over(pocket_dir, tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_symlink()
    assert not (tmp_path / "model" / "config.json").is_symlink()


def facts(path, model_type="llama", shape=(128, 128)):
    (path / "config.json").write_text("{}")
    return ModelFacts("m", path, model_type, {"model.layers.0.x": shape}, 1000, 512, 100)


def test_what_autoawq_cannot_do(tmp_path):
    for quantizer, message in (
        (AutoAWQ(bits=3), "autoawq writes 4 bits only, not 3"),
        (AutoAWQ(sym=True), "has zero points: sym=false"),
        (AutoAWQ(group_size=100), "group_size=100 does not divide"),
    ):
        with pytest.raises(IncompatibleTrial, match=message):
            quantizer.check(facts(tmp_path))
    with pytest.raises(IncompatibleTrial, match="does not know gemma3_text"):
        AutoAWQ().check(facts(tmp_path, "gemma3_text"))


def test_what_the_others_cannot_do(tmp_path):
    for quantizer, message in (
        (LLMCompressorGPTQ(desc_act=True), "needs a permutation at run time: desc_act=false"),
        (LLMCompressorAWQ(bits=3), "no runtime serves compressed-tensors of 3 bits"),
        (AutoRound(export="awq", bits=3), "exports AWQ at 4 bits only"),
        (AutoRound(sym=False), "loses zero points of 0"),
        (AutoRound(export="gguf", type="IQ4_XS"), "does not export IQ4_XS; it has Q2_K_S"),
        (AutoRound(export="gguf", bits=7), "no GGUF type of 7 bits; there are 2, 3, 4, 5, 6, 8"),
    ):
        with pytest.raises(IncompatibleTrial, match=message):
            quantizer.check(facts(tmp_path))
    with pytest.raises(ConfigError, match="quant=rtn rounds to nearest"):
        AutoRound(iters=0)
    with pytest.raises(ConfigError, match="a GGUF type; quant.export=gguf"):
        AutoRound(type="Q4_K_M")
    with pytest.raises(ConfigError, match="llama.cpp has no such type"):
        AutoRound(export="gguf", type="Q4_K_X")


def test_what_number_formats_llmcompressor_cannot_do(tmp_path):
    for quantizer, message in (
        (LLMCompressorRTN(format=NF4()), "llmcompressor's rtn has no format=nf4"),
        (LLMCompressorGPTQ(format=W8A8(smoothquant=0.5)), "has no format.smoothquant"),
        (
            LLMCompressorAWQ(format=Int("gptq")),
            "writes compressed-tensors checkpoints, not contain",
        ),
        (LLMCompressorRTN(format=W4A16()), "groups of 128 do not divide the 192 inputs of model"),
        (AutoAWQ(format=NVFP4()), "autoawq writes integers as awq checkpoints, not nvfp4"),
        (AutoRound(export="gguf", format=NVFP4()), "autoround writes integers as gptq checkpoints"),
    ):
        with pytest.raises(IncompatibleTrial, match=message):
            quantizer.check(facts(tmp_path, shape=(128, 192)))


def test_what_llmcompressors_worker_is_told(tmp_path):
    """Integers as ever; of a preset its name, and the layers that it cannot hold."""
    linears = {"a": (128, 256), "b": (256, 160), "c": (256, 128)}
    model = replace(facts(tmp_path), linears=linears)
    told = LLMCompressorRTN(format=W4A16()).worker_options(model)
    assert (told["method"], told["scheme"], told["ignore"]) == ("rtn", "W4A16", ["b"])
    assert LLMCompressorRTN(format=NVFP4()).recipe_used().own_dtype
    integers = LLMCompressorGPTQ(group_size=64, format=Int("compressed-tensors"))
    assert integers.worker_options(model) == {"method": "gptq", **integers.options()}
    assert integers == LLMCompressorGPTQ(group_size=64)
    assert not integers.recipe_used().own_dtype


def test_only_static_activations_need_text():
    for format_, needs in ((Int(), False), (W8A8(), False), (NVFP4(), True), (FP8(), True)):
        quantizer = LLMCompressorRTN(format=format_)
        assert (quantizer.uses_calibration, quantizer.recipe_used().calibrated) == (needs, needs)


def test_of_a_gguf_export_only_type_and_tuning_count():
    first = AutoRound(export="gguf", group_size=32, sym=True)
    second = AutoRound(export="gguf", group_size=128, type="q4_k_m")
    assert first.options() == second.options()
    assert describe(first) == "autoround Q4_K_M gguf"
    assert first.options() != AutoRound(export="gguf", bits=3).options()
    # Without tuning, its search for a type's scales is left.
    assert AutoRound(export="gguf", iters=0).options()["iters"] == 0


def test_a_quantizer_of_your_own_is_two_files(tmp_path):
    script, environment = tmp_path / "worker.py", tmp_path / "mine.yaml"
    environment.write_text("library: brick\ninstall: [brick==1.5]\n")
    script.write_text("")
    values = {
        "_target_": "qsweep.quantizers.isolated.Custom",
        "method": "mine",
        "worker": str(script),
        "writes": "gptq",
        "settings": {"bits": 4, "group_size": 32},
        "env": {"name": str(environment), "folder": str(tmp_path)},
    }
    mine = build_quantizer(values)
    assert describe(mine) == "mine 4-bit g32"
    with pytest.raises(BackendUnavailable, match=f"create {environment}"):
        mine.check(facts(tmp_path))
    before = mine.version()
    script.write_text("pass")
    assert mine.version() != before
    with pytest.raises(ConfigError, match="no such file"):
        build_quantizer(values | {"worker": str(tmp_path / "none.py")})
    with pytest.raises(ConfigError, match=r"quant.writes=gtpq: no container 'gtpq'.*gptq"):
        build_quantizer(values | {"writes": "gtpq"})
    with pytest.raises(ConfigError, match="quant.writes=gguf: a worker saves gptq, awq"):
        build_quantizer(values | {"writes": "gguf"})
    with pytest.raises(ConfigError, match="quant.env.name"):
        Custom("mine", script, "gptq")


def test_auto_gptq_is_skipped_on_a_cpu_before_anything_is_created(tmp_path):
    env = EnvChoice(folder=tmp_path / "envs", device="cpu", create=True)
    with pytest.raises(IncompatibleTrial, match="on CUDA only, and this trial runs on the CPU"):
        AutoGPTQ(env=env).check(facts(tmp_path))
    assert not (tmp_path / "envs").exists()
    with pytest.raises(ConfigError, match="damp_percent"):
        AutoGPTQ(damp_percent=0)


def test_a_missing_environment_skips_the_trial(tmp_path):
    env = EnvChoice(folder=tmp_path / "envs")
    with pytest.raises(BackendUnavailable, match="qsweep env create autoawq"):
        AutoAWQ(env=env).check(facts(tmp_path))


def test_the_place_of_an_environment_is_no_part_of_what_it_makes(tmp_path):
    here, there = AutoAWQ(env=EnvChoice(folder=tmp_path)), AutoAWQ(env=EnvChoice(create=True))
    assert (here.options(), here.version()) == (there.options(), there.version())


# What compressed-tensors itself makes of each layer, in float32.
DECOMPRESS = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
path = Path(sys.argv[1])
settings = json.loads((path / "config.json").read_text())["quantization_config"]
scheme = QuantizationConfig.model_validate(settings).config_groups["group_0"]
tensors = load_file(path / "model.safetensors")
layers = {n.rpartition(".")[0] for n in tensors if n.endswith(".weight_packed")}
out = {}
for layer in layers:
    own = {n.rpartition(".")[2]: t for n, t in tensors.items() if n.startswith(layer + ".weight")}
    own["weight_scale"] = own["weight_scale"].float()
    found = BaseCompressor.get_value_from_registry("pack-quantized").decompress(own, scheme)
    out[layer + ".weight"] = found["weight"].float().contiguous()
save_file(out, sys.argv[2])
"""


@pytest.fixture(scope="module")
def text(pocket_dir):
    """Real text of calibration and test: token ids [samples, tokens] each."""
    from transformers import AutoTokenizer

    from qsweep.text.corpora import calibration_samples, load_documents
    from qsweep.text.corpus import CorpusConfig

    tokenizer = AutoTokenizer.from_pretrained(pocket_dir)

    def ids(split, count, length):
        documents = load_documents(CorpusConfig("text", "python", split=split))
        return calibration_samples(documents, tokenizer, count, length, 0)

    return ids("calibration", 8, 64), torch.tensor(ids("test", 8, 256).samples)


class Comparison:
    """The embedded model quantized in another environment, as the dense engine reads it."""

    def __init__(self, quantizer, pocket_dir, out, text):
        from qsweep.formats.hf import reference_artifact
        from qsweep.quantizers.rtn import RTN

        self.source, (calibration, self.ids) = pocket_dir, text
        model = SourceModel(read_facts(pocket_dir, "pocket"), "cpu")
        quantizer.check(model.facts)
        (out / "rtn").mkdir()
        (out / "own").mkdir()
        self.artifact = quantizer.quantize(model, calibration, out / "own")
        nearest = RTN(bits=4, group_size=64, sym=quantizer.options().get("sym", False))
        self.reference = self.dense(reference_artifact(model.facts))
        self.rounded = self.kld(self.dense(nearest.quantize(model, None, out / "rtn")))

    def run(self, model):
        with torch.no_grad():
            return model(self.ids).logits.float().log_softmax(-1)

    def dense(self, artifact):
        return self.run(load_dense(artifact, self.source, dtype=torch.float32, device="cpu"))

    def kld(self, theirs, ours=None):
        ours = self.reference if ours is None else ours
        return (ours.exp() * (ours - theirs)).sum(-1).mean().item()


@pytest.mark.env
def test_autoawq_end_to_end(pocket_dir, tmp_path, text):
    """Quantized in its environment, read by the dense engine, and compared with a serving kernel."""
    quantizer = AutoAWQ(group_size=64, env=require_environment("autoawq"))
    found = Comparison(quantizer, pocket_dir, tmp_path, text)
    assert found.artifact.details["handshake_kld"] < 1e-5
    assert "transformers 4.51.3" in found.artifact.details["environment"]
    assert found.artifact.size.bpw == pytest.approx(4 + 20 / 64)
    dense = found.dense(found.artifact)
    assert 0 < found.kld(dense) < 0.9 * found.rounded
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    library = pytest.importorskip("gptqmodel")
    kernel = library.BACKEND.AWQ_TORCH
    path = str(found.artifact.path)
    served = library.GPTQModel.load(path, device="cpu", backend=kernel, dtype=torch.float16)
    assert found.kld(found.run(served.model), dense) < 1e-5


@pytest.mark.env
@pytest.mark.parametrize("export", ["gptq", "awq"])
def test_autoround_end_to_end(export, pocket_dir, tmp_path, text):
    """Both formats that it exports, read by the dense engine and by a serving kernel."""
    env = require_environment("autoround")
    quantizer = AutoRound(group_size=64, export=export, iters=20, env=env)
    found = Comparison(quantizer, pocket_dir, tmp_path, text)
    dense = found.dense(found.artifact)
    assert 0 < found.kld(dense) < found.rounded
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    library = pytest.importorskip("gptqmodel")
    kernel = library.BACKEND[f"{export.upper()}_TORCH"]
    path = str(found.artifact.path)
    served = library.GPTQModel.load(path, device="cpu", backend=kernel, dtype=torch.float16)
    assert found.kld(found.run(served.model), dense) < 1e-5


@pytest.mark.env
@pytest.mark.parametrize(("bits", "iters"), [(4, 20), (2, 20), (4, 0)])
def test_autoround_writes_gguf_end_to_end(bits, iters, pocket_dir, tmp_path, text):
    """Read by the dense engine and run by llama.cpp: both see the same model."""
    pytest.importorskip("llama_cpp")
    from qsweep.formats.gguf.dense import MODEL_FILE
    from qsweep.formats.gguf.native import NativeModel
    from qsweep.formats.gguf.reader import read_gguf

    env = require_environment("autoround")
    quantizer = AutoRound(bits=bits, export="gguf", iters=iters, env=env)
    found = Comparison(quantizer, pocket_dir, tmp_path, text)
    artifact = found.artifact
    dense = found.dense(artifact)
    path = artifact.path / MODEL_FILE
    with NativeModel(path, context=256, batch=64, gpu=None, threads=1) as model:
        rows = [
            torch.cat([torch.tensor(part) for _, part in model.logits(row.tolist())])
            for row in found.ids
        ]
    native = torch.stack(rows).float().log_softmax(-1)
    # It rounds activations to 8 bits, which is little beside what the weights lost.
    assert found.kld(native, dense) < 2e-3
    lost = found.kld(dense)
    assert lost > 10 * found.kld(native, dense)
    assert lost < (found.rounded if bits == 4 else 10 * found.rounded)
    assert artifact.format == "gguf" and "llama.cpp" in artifact.runtimes
    assert artifact.details["type"] == {4: "Q4_K_M", 2: "Q2_K_S"}[bits]
    assert artifact.details["handshake_kld"] < 1e-5
    assert (4.4 < artifact.size.bpw < 5.2) if bits == 4 else (2 < artifact.size.bpw < 3.2)
    # The pocket model's vocabulary is nobody's: only ours knows how its text is split.
    assert read_gguf(path).metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert not (artifact.path / "work").exists()


@pytest.mark.env
@pytest.mark.parametrize(
    "quantizer",
    [
        LLMCompressorGPTQ(group_size=64),
        LLMCompressorGPTQ(group_size=64, bits=8, sym=False, act_group_aware=False),
        LLMCompressorAWQ(group_size=64),
    ],
    ids=repr,
)
def test_llmcompressor_end_to_end(quantizer, pocket_dir, tmp_path, text):
    """Read by the dense engine, and compared with what the library itself makes of its files."""
    env = require_environment("llmcompressor")
    found = Comparison(replace(quantizer, env=env), pocket_dir, tmp_path, text)
    dense = found.dense(found.artifact)
    bits = quantizer.bits
    zeros = 0 if quantizer.options()["sym"] else bits
    shape = sum(128 for _ in read_facts(pocket_dir, "pocket").linears) / 3145728
    assert found.artifact.size.bpw == pytest.approx(bits + (16 + zeros) / 64 + shape)
    assert (
        0
        < found.kld(dense)
        < ({"gptq": 0.9, "awq": 1.1}[quantizer.method] * found.rounded if bits == 4 else 1e-3)
    )
    theirs = tmp_path / "theirs.safetensors"
    subprocess.run(
        [env.interpreter("llmcompressor"), "-I", "-c", DECOMPRESS, found.artifact.path, theirs],
        check=True,
        capture_output=True,
    )
    own = CONTAINER.dense_weights(found.artifact, pocket_dir, "cpu")
    for name, tensor in load_file(theirs).items():
        assert torch.equal(own[name][...], tensor), name
