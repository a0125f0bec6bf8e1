"""A reference pack in place of its model: the same figures, and one line where it cannot serve."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.reference_packs import (
    configuration,
    make_pack,
    measure_against,
    packed_trial,
    text_file,
)
from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.keys import key_of
from qsweep.base.store import Store
from qsweep.evaluate.packs.header import open_pack
from qsweep.sweep.config import trial_config
from qsweep.sweep.packed import packed_artifact, require_same_tokenizer
from qsweep.sweep.packing import cut_to_tokens
from qsweep.sweep.plan import make_plan
from qsweep.sweep.recording import finished_record
from qsweep.sweep.setting import find_setting
from qsweep.text.tokenizer_fingerprint import TOKENIZER_FILES


@pytest.fixture(scope="module")
def made(tmp_path_factory, pocket_dir):
    """The embedded model's pack on two presets, with the plan and the summary of its making."""
    folder = tmp_path_factory.mktemp("made")
    text = text_file(folder)
    out = folder / "pocket.pack"
    plan, summary = make_pack(pocket_dir, text, out, "eval.presets=[paper,strided]")
    return out, plan, summary


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, pocket_dir):
    """A copy of the model that is an artifact on another machine, and a store there."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(pocket_dir, folder / "artifact")
    return folder / "artifact", Store(folder / "store")


def test_the_model_itself_measured_against_its_pack_is_exactly_that(made, elsewhere, pocket_dir):
    pack, there, _ = made
    artifact, store = elsewhere
    plan = measure_against(pack, artifact, store)
    record = finished_record(plan, store)
    reference = finished_record(plan.reference(), store)
    assert [m.preset for m in record.measurements] == ["paper", "strided"]
    own = finished_record(there, Store(pack.with_suffix(".store")))
    for found, base, measured in zip(
        record.measurements, reference.measurements, own.measurements, strict=True
    ):
        assert found.metrics["kld"] == 0 and found.metrics["top1_agreement"] == 1
        assert found.metrics["ppl_ratio"] == 1 and found.metrics["ppl"] == base.metrics["ppl"]
        assert base.metrics == measured.metrics and base.facts == measured.facts
        assert base.metrics["kld_floor_batch"] < 1e-6
        assert found.facts["reference"].startswith(
            f"pack {open_pack(pack).signature[:16]} (float32"
        )
    assert reference.artifact.size_gb == own.artifact.size_gb
    assert record.model == "pocket" and record.model_hash == own.model_hash
    # a directory of the model is nowhere among what was used
    assert str(pocket_dir) not in json.dumps(
        [plan.trial.resolved, str(plan.setting.facts), record.artifact.path]
    )


def test_keys_of_packs_are_never_those_of_what_was_measured_here(made, elsewhere, pocket_dir):
    pack, there, _ = made
    artifact, store = elsewhere
    trial = packed_trial(pack, artifact, store)
    plan = make_plan(trial, find_setting(trial, pack, store))
    signature = open_pack(pack).signature
    for step, own in zip(plan.reference().measurements, there.measurements, strict=True):
        assert step.identity == {**own.identity, "pack": signature}
        assert step.reference == {**own.reference, "pack": signature}
    for step in plan.measurements:
        assert step.identity["pack"] == signature and step.identity["dtype"] == "float32"
        assert step.key not in {own.key for own in there.measurements}


def test_what_is_gone_from_the_store_comes_from_the_pack_again(made, elsewhere):
    pack, *_ = made
    artifact, store = elsewhere
    plan = measure_against(pack, artifact, store)
    first = finished_record(plan, store)
    base = plan.reference()
    store.remove("references", key_of(plan.measurements[0].reference))
    store.remove("measurements", base.measurements[1].key)
    for step in plan.measurements:
        store.remove("measurements", step.key)
    (store.path("packs", key_of(plan.setting.pack.identity)) / "windows.tensors").unlink()
    again = finished_record(measure_against(pack, artifact, store), store)
    assert [m.metrics for m in again.measurements] == [m.metrics for m in first.measurements]


@pytest.mark.parametrize("architecture", ["gemma3_text", "gpt_neox", "mamba"])
def test_what_an_architecture_does_around_its_head_is_packed(architecture, tiny_model, tmp_path):
    model = tiny_model(architecture)
    pack = tmp_path / "tiny.pack"
    make_pack(model, text_file(tmp_path), pack, "eval.noise_floor=false")
    artifact = tmp_path / "artifact"
    shutil.copytree(model, artifact)
    store = Store(tmp_path / "store")
    record = finished_record(measure_against(pack, artifact, store), store)
    assert record.measurements[0].metrics["kld"] == 0
    assert record.model == model.name


def test_the_file_is_as_large_as_paper_says(made):
    pack, plan, summary = made
    facts = plan.setting.facts
    # Scored: 63 of each of paper's three windows of 64; strided ones score 63 + 2 * 32.
    tokens = 3 * 63 + 63 + 2 * 32
    assert summary.tokens == tokens
    assert summary.states_bytes == tokens * 256 * 4
    assert summary.head_bytes == facts.vocab_size * 256 * 2  # stored in bfloat16
    probes = 2 * 4 * facts.vocab_size * 4
    windows = 6 * (64 * 4 + 2 * 8)
    files = sum((facts.path / name).stat().st_size for name in TOKENIZER_FILES
                if (facts.path / name).is_file())  # fmt: skip
    data = summary.states_bytes + summary.head_bytes + probes + windows + tokens * 12 + files
    header = int.from_bytes(pack.read_bytes()[:8], "little")
    assert summary.file_bytes == pack.stat().st_size == data + header + 8
    assert header < 40_000


def test_one_with_fewer_tokens_has_the_first_windows_of_each_text(tmp_path, pocket_dir):
    text = text_file(tmp_path)
    config = configuration(
        *("quant=none", "corpus=file", f"corpus.path={text}", f"model.path={pocket_dir}"),
        *("eval.context=64", "eval.presets=[paper,strided]", "device=cpu"),
    )
    cut = cut_to_tokens(config, 100, Store(tmp_path / "store"))
    assert [(c["eval"]["presets"], c["eval"]["max_windows"]) for c in cut] == [
        (["paper"], 2),
        (["strided"], 3),
    ]
    assert all(c.written["eval"] == c["eval"] for c in cut)


_ANOTHER_PROCESS = """
import sys, torch
from pathlib import Path
from helpers.reference_packs import packed_trial
from qsweep.base.store import Store
from qsweep.evaluate import measure
from qsweep.sweep.plan import make_plan
from qsweep.sweep.setting import find_setting
from qsweep.base.progress import silent
from qsweep.sweep.artifacts import obtain_artifact
from qsweep.sweep.trial import find_reference, load, windows_of

pack, artifact, folder, threads, batch = sys.argv[1:]
torch.set_num_threads(int(threads))
store = Store(Path(folder))
trial = packed_trial(Path(pack), Path(artifact), store)
plan = make_plan(trial, find_setting(trial, Path(pack), store))
step = plan.measurements[0]
model = load(plan, obtain_artifact(plan, store, silent))
found = measure(
    model, windows_of(plan, step, store), find_reference(plan, step, store), batch=int(batch)
)
print(float(found.arrays["token_kld"].double().abs().mean()), found.metrics["ppl"])
"""


@pytest.mark.slow
def test_other_processes_batches_and_threads_give_the_same_to_the_noise_floor(
    made, elsewhere, tmp_path
):
    pack, *_ = made
    artifact, _ = elsewhere
    found = []
    for threads, batch in ((1, 1), (2, 2)):
        done = subprocess.run(
            [sys.executable, "-c", _ANOTHER_PROCESS, pack, artifact, tmp_path / f"s{threads}",
             str(threads), str(batch)],
            capture_output=True, text=True, timeout=240,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]),
                 "OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append([float(number) for number in done.stdout.split()[-2:]])
    packed = open_pack(pack).header.measurements[0]
    for divergence, ppl in found:
        # the floor is this machine's at another batch size; that of float32 is rounding alone
        assert divergence <= max(2 * packed.noise_floor, 1e-9)
        assert ppl == pytest.approx(packed.content["metrics"]["ppl"], rel=1e-6)


def test_a_narrower_head_is_refused_with_both_numbers_or_lost_in_the_noise(tmp_path, pocket_dir):
    text, store = text_file(tmp_path), tmp_path / "store"
    pack = tmp_path / "p.pack"
    for head in ("fp8", "int8"):
        with pytest.raises(QsweepError, match=rf"--head={head}: adds \d.*e-\d+ .*floor of \d") as e:
            make_pack(pocket_dir, text, pack, store=store, head=head)
        assert "\n" not in str(e.value) and not pack.exists()
    # in bfloat16 the reference itself is only so exact
    plan, _ = make_pack(pocket_dir, text, pack, "eval.dtype=bfloat16", store=store)
    exact = pack.stat().st_size
    floor = open_pack(pack).header.measurements[0].noise_floor
    try:
        _, summary = make_pack(
            pocket_dir, text, pack, "eval.dtype=bfloat16", store=store, head="int8"
        )
    except QsweepError as error:
        pytest.skip(f"this processor's bfloat16 is as exact as that: {error}")
    header = open_pack(pack).header
    rows = plan.setting.facts.vocab_size
    assert 0 < header.added <= floor and header.head == "int8"
    assert summary.head_bytes == rows * (256 + 4)
    assert exact - summary.file_bytes == pytest.approx(rows * 252, abs=300)  # and the header
    artifact = tmp_path / "artifact"
    shutil.copytree(pocket_dir, artifact)
    there = Store(tmp_path / "there")
    record = finished_record(measure_against(pack, artifact, there, "eval.dtype=bfloat16"), there)
    assert 0 < record.measurements[0].metrics["kld"] <= floor


def test_another_tokenizer_is_refused_before_anything_is_measured(made, elsewhere, tmp_path):
    pack, *_ = made
    artifact, _ = elsewhere
    for number, (change, words) in enumerate(
        (
            (_swap_two_pieces, "not the same ones under the same ids"),
            (_swap_two_merges, "other merges"),
        )
    ):
        other = tmp_path / f"other{number}"
        shutil.copytree(artifact, other)
        file = other / "tokenizer.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
        store = Store(tmp_path / f"store{number}")
        with pytest.raises(ConfigError, match=words) as caught:
            measure_against(pack, other, store)
        assert str(other) in str(caught.value) and "\n" not in str(caught.value)
        trial = packed_trial(pack, other, store)
        assert finished_record(make_plan(trial, find_setting(trial, pack, store)), store) is None


def test_added_tokens_refuse_what_is_quantized_alone(made, elsewhere, tmp_path):
    pack = open_pack(made[0])
    other = shutil.copytree(elsewhere[0], tmp_path / "other")
    file = other / "tokenizer.json"
    content = json.loads(file.read_text())
    _add_a_piece(content)
    file.write_text(json.dumps(content))
    base = packed_artifact(pack, other)
    require_same_tokenizer(pack, replace(base, format="hf"))
    with pytest.raises(ConfigError, match="4097 pieces instead of 4096"):
        require_same_tokenizer(pack, replace(base, format="gptq"))
    # A word of the model's own that is another by now is no addition.
    _swap_two_pieces(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="not the same ones under the same ids"):
        require_same_tokenizer(pack, replace(base, format="hf"))


def test_a_tokenizer_that_cannot_be_read_is_one_line(made, elsewhere, tmp_path):
    pack = open_pack(made[0])
    other, proof = shutil.copytree(elsewhere[0], tmp_path / "other"), tmp_path / "proof"
    artifact = replace(packed_artifact(pack, other), format="gptq")
    (other / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="other: its tokenizer cannot be read") as caught:
        require_same_tokenizer(pack, artifact)
    assert "\n" not in str(caught.value)
    # Nor is a class of its own ever run.
    (other / "own.py").write_text(f"open({str(proof)!r}, 'w')")
    stated = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (other / "tokenizer_config.json").write_text(json.dumps(stated))
    with pytest.raises(ConfigError, match="other: its tokenizer cannot be read") as caught:
        require_same_tokenizer(pack, artifact)
    assert "\n" not in str(caught.value) and not proof.exists()


def _swap_two_pieces(content):
    vocab = content["model"]["vocab"]
    names = sorted(vocab, key=vocab.get)
    one, other = names[-1], names[-2]
    vocab[one], vocab[other] = vocab[other], vocab[one]


def _add_a_piece(content):
    content["added_tokens"].append(
        {"id": 4096, "content": "<|more|>", "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False, "special": True}
    )  # fmt: skip


def _swap_two_merges(content):
    merges = content["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]


def test_what_a_pack_does_not_have_is_one_line(made, elsewhere, tmp_path):
    pack, *_ = made
    artifact, store = elsewhere
    other = tmp_path / "text.txt"
    other.write_text("Something else. " * 500)
    for overrides, words in (
        (["corpus=python_docs"], "has no corpus=python_docs; there are text.txt"),
        (["eval.presets=[llamacpp]"], "has no eval.presets=llamacpp; there are paper, strided"),
        (["eval.max_windows=2"], r"was measured with eval.max_windows=3, which .*=2 cannot change"),
        (["eval.tasks=[embedded]"], "eval.tasks needs the model itself"),
        (["eval.speed=true"], "eval.speed needs the model itself"),
        (["corpus=file", f"corpus.path={other}"], "text.txt is another text than this one"),
    ):
        trial = packed_trial(pack, artifact, store, *overrides)
        with pytest.raises(ConfigError, match=words) as caught:
            find_setting(trial, pack, store)
        assert "\n" not in str(caught.value) and "model.pack=" in str(caught.value)
    for quant in ("gptq", "rtn", "gguf"):
        trial = trial_config(configuration(f"+model.pack={pack}", f"quant={quant}", "device=cpu"))
        with pytest.raises(ConfigError, match="has no weights to quantize"):
            find_setting(trial, pack, store)
    with pytest.raises(ConfigError, match="takes the place of model.path"):
        packed_trial(pack, artifact, store, f"model.path={artifact}")


def test_the_same_text_under_another_path_and_a_part_of_the_presets_will_do(
    made, elsewhere, tmp_path
):
    pack, *_ = made
    artifact, store = elsewhere
    text = text_file(tmp_path)
    chosen = ("corpus=file", f"corpus.path={text}", "eval.presets=[strided]", "eval.max_windows=3")
    trial = packed_trial(pack, artifact, store, *chosen)
    plan = make_plan(trial, find_setting(trial, pack, store))
    whole = packed_trial(pack, artifact, store)
    assert plan.measurements[0].key == (
        make_plan(whole, find_setting(whole, pack, store)).measurements[1].key
    )
