"""Trials whose artifacts are made together: planned in memory, then run as whole sweeps."""

import csv
import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from helpers.sweeps import run_here
from qsweep.base.errors import QsweepError
from qsweep.base.keys import key_of
from qsweep.base.store import Store
from qsweep.formats import numbers
from qsweep.formats.artifact import Artifact, Size
from qsweep.quantizers import importance
from qsweep.quantizers.gptqmodel import GPTQ
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ
from qsweep.quantizers.protocol import SharedPass
from qsweep.quantizers.rtn import RTN
from qsweep.sweep import artifacts as making
from qsweep.sweep import shared_calibration as passes
from qsweep.sweep.artifacts import obtain_artifact
from qsweep.sweep.config import trial_config
from qsweep.sweep.plan import make_plan
from qsweep.sweep.setting import find_setting
from qsweep.sweep.shared_calibration import Passes

ROOT = Path(__file__).resolve().parents[2]
GB = 10**9
SMALL = ["eval.max_windows=2", "eval.divergence=false", "corpus=[python_docs]", "tracking=none"]
SMALL += ["calibration.num_samples=2", "calibration.max_seq_len=64", "n_jobs=1", "device=cpu"]


def command(outputs, *arguments, sweep="t"):
    line = ["-m", "quant.backend=native", *arguments, *SMALL]
    return [*line, f"sweep={sweep}", f"outputs_dir={outputs}"]


def sweep(outputs, *arguments, **options):
    return run_here(command(outputs, *arguments, **options))


def rows(outputs, sweep="t"):
    with (outputs / "sweeps" / sweep / "results.csv").open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["method"] != "none"]


def weights(row):
    file = Path(row["artifact"]) / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def identity(row):
    return json.loads((Path(row["artifact"]) / "manifest.json").read_text())["identity"]


# Planning


@pytest.fixture
def plan(tmp_path, pocket_dir):
    from qsweep.base.environment import environment

    environment()
    store = Store(tmp_path / "store")

    def make(quant, *, seed=0, max_windows=2, store=store):
        resolved = {
            "model": {"name": "pocket", "path": str(pocket_dir)},
            "quant": quant,
            "calibration": {"name": "python", "source": "python", "split": "calibration"}
            | {"num_samples": 2, "max_seq_len": 64, "seed": seed},
            "corpus": {"python_docs": {"source": "python", "split": "test"}},
            "eval": {"max_windows": max_windows, "divergence": False},
            "device": "cpu",
        }
        trial = trial_config(resolved)
        return make_plan(trial, find_setting(trial, pocket_dir, store))

    make.store = store
    return make


def native(bits, method="GPTQ", **options):
    return {"_target_": f"qsweep.quantizers.native.Native{method}", "bits": bits, **options}


def sizes(plans, store, **options):
    return sorted(len(one.plans) for one in Passes(plans, store, **options))


def test_who_can_be_made_together():
    assert isinstance(NativeGPTQ(), SharedPass)
    assert isinstance(NativeAWQ(), SharedPass)
    assert not isinstance(GPTQ(), SharedPass)
    # Rounding takes part where inputs have to be looked at.
    assert RTN().pass_name is None
    assert RTN(format=numbers.FP8()).pass_name == NativeGPTQ().pass_name


def test_methods_and_widths_share_a_pass_and_other_calibrations_do_not(plan):
    plans = [plan(native(bits, m)) for bits in (3, 4) for m in ("GPTQ", "AWQ")]
    plans += [plan(native(bits), seed=1) for bits in (3, 4, 8)]
    plans += [plan({"_target_": "qsweep.quantizers.rtn.RTN", "bits": b}) for b in (3, 4)]
    assert sizes(plans, plan.store, memory=100 * GB) == [3, 4]
    passes = Passes(plans, plan.store, memory=100 * GB)
    assert passes.needs(plans[0]) == passes.needs(plans[1]) != passes.needs(plans[-3])
    assert passes.needs(plans[-1]) == ()


def test_one_artifact_measured_twice_is_made_once_and_needs_no_pass(plan):
    twice = [plan(native(4), max_windows=n) for n in (1, 2)]
    assert twice[0].key != twice[1].key
    assert sizes(twice, plan.store) == []


def test_what_the_store_holds_is_left_out(plan):
    plans = [plan(native(bits)) for bits in (2, 3, 4)]
    plan.store.build("artifacts", plans[0].artifact, lambda out: {})
    (one,) = Passes(plans, plan.store)
    assert [p.trial.quant.bits for p in one.plans] == [3, 4]
    plan.store.build("artifacts", plans[1].artifact, lambda out: {})
    assert sizes(plans, plan.store) == []


def test_groups_fit_into_memory(plan):
    plans = [plan(native(bits, group_size=g)) for bits in (2, 3, 4, 8) for g in (32, 64)]
    assert sizes(plans, plan.store, memory=100 * GB) == [8]
    itself, added = plans[0].trial.quant.pass_bytes(plans[0].setting.facts, 128)
    assert itself > 2 * GB > added > 0
    # 70 % of this hold the pass and 3.5 of its configurations.
    needed = [p.trial.quant.pass_bytes(p.setting.facts, 128)[1] for p in plans]
    memory = int((itself + sum(needed) / 2) / 0.7) + 1000
    assert sizes(plans, plan.store, memory=memory) == [4, 4]
    # Too little for anything: pairs are tried all the same.
    assert sizes(plans, plan.store, memory=GB) == [2, 2, 2, 2]
    # Two at once have half of it each.
    assert len(sizes(plans, plan.store, memory=memory, slots=2)) > 2


def test_a_pass_that_died_is_split_down_to_pairs(plan):
    plans = [plan(native(bits, group_size=g)) for bits in (2, 3, 4) for g in (32, 64)][:5]
    passes = Passes(plans, plan.store)
    (whole,) = passes
    assert all(passes.needs(p) == (whole.id,) for p in plans)
    halves = passes.split(whole.id)
    assert [len(half.plans) for half in halves] == [2, 3]
    assert passes.needs(plans[0]) == (halves[0].id,)
    passes.split(halves[0].id)
    assert passes.needs(plans[0]) == ()
    (pair,) = passes.split(halves[1].id)
    assert len(pair.plans) == 2
    assert passes.split("no such pass") == []


def gguf(bits, **options):
    return {"_target_": "qsweep.quantizers.gguf.GGUF", "bits": bits, **options}


def test_whoever_wants_an_importance_matrix_waits_for_the_pass_that_measures_it(plan):
    plans = [plan(native(bits)) for bits in (3, 4, 8)]
    weighted = [plan(gguf(bits, imatrix=True)) for bits in (3, 4)]
    others = [plan(gguf(4)), plan(gguf(8, imatrix=True)), plan(gguf(4, imatrix=True), seed=1)]
    others += [plan({"_target_": "qsweep.quantizers.gptqmodel.GPTQ", "bits": 4})]
    assert weighted[0].importance == plans[0].importance != others[2].importance
    assert not others[0].uses_importance
    assert not others[1].uses_importance  # Q8_0 ignores it
    passes = Passes(plans + weighted + others, plan.store, memory=100 * GB)
    (one,) = passes
    assert one.waiting == {p.artifact_key for p in weighted} and len(one.plans) == 3
    assert one.name == "pocket one pass for 3 configurations and an importance matrix"
    assert [passes.needs(p) for p in weighted] == [(one.id,)] * 2
    assert [passes.needs(p) for p in others] == [()] * 4
    # Nobody to wait for, and nobody who waits.
    assert not list(Passes(weighted, plan.store))
    assert not any(one.waiting for one in Passes(plans + others, plan.store))


def test_what_is_known_or_not_needed_any_more_is_not_measured(plan):
    plans = [plan(native(bits)) for bits in (3, 4)]
    weighted = [plan(gguf(bits, imatrix=True)) for bits in (3, 4)]
    for one in weighted:
        plan.store.build("artifacts", one.artifact, lambda out: {})
    (without,) = Passes(plans + weighted, plan.store)
    assert not without.waiting
    plan.store.remove("artifacts", weighted[0].artifact_key)
    passes = Passes(plans + weighted, plan.store)
    (one,) = passes
    # Who has its artifact already, and is only to be measured, does not wait.
    assert [passes.needs(p) for p in weighted] == [(one.id,), ()]
    plan.store.build("importances", weighted[0].importance, lambda out: {})
    (without,) = Passes(plans + weighted, plan.store)
    assert not without.waiting and not without.serves(weighted[0])


def test_one_part_measures_the_importance_matrix_also_after_a_split(plan):
    plans = [plan(native(bits, group_size=g)) for bits in (2, 3, 4) for g in (32, 64)]
    weighted = plan(gguf(4, imatrix=True))
    passes = Passes([*plans, weighted], plan.store, memory=GB)
    assert [bool(one.waiting) for one in passes] == [True, False, False]
    first = next(iter(passes))
    assert passes.needs(weighted) == (first.id,)
    assert passes.split(first.id) == []
    assert passes.needs(weighted) == ()
    passes = Passes([*plans, weighted], plan.store, memory=100 * GB)
    (whole,) = passes
    halves = passes.split(whole.id)
    assert [bool(half.waiting) for half in halves] == [True, False]
    assert passes.needs(weighted) == (halves[0].id,)


def on(plan, device):
    return replace(plan, setting=replace(plan.setting, device=device))


def test_a_pass_on_another_device_is_not_waited_for(plan):
    plans = [on(plan(native(bits)), "cuda:0") for bits in (3, 4)]
    plans += [plan(native(bits, "AWQ")) for bits in (3, 4)]
    passes = Passes([*plans, plan(gguf(4, imatrix=True))], plan.store, memory=100 * GB)
    first, second = passes
    assert first.plans[0].setting.device == "cuda:0"
    assert not first.waiting and second.waiting
    passes = Passes([*plans[:2], plan(gguf(4, imatrix=True))], plan.store, memory=100 * GB)
    assert not any(one.waiting for one in passes)


def test_an_importance_matrix_belongs_to_model_text_and_version(plan, monkeypatch):
    from qsweep.sweep import plan as planning

    one = plan(gguf(4, imatrix=True))
    assert one.importance == plan(gguf(3, imatrix=True)).importance
    assert one.importance != plan(gguf(4, imatrix=True), seed=1).importance
    setting = replace(one.setting, model_hash="another")
    assert planning.make_plan(one.trial, setting).importance != one.importance
    assert plan({"_target_": "qsweep.quantizers.rtn.RTN", "bits": 4}).importance is None
    plain, before = plan(gguf(4)), one.importance
    monkeypatch.setattr(planning, "importance_version", lambda facts: "next")
    later = plan(gguf(4, imatrix=True))
    assert later.importance != before and later.artifact_key != one.artifact_key
    assert plan(gguf(4)).artifact_key == plain.artifact_key
    assert "importance" not in plan(native(4)).artifact


# Passes in this process


@dataclass(frozen=True)
class Weighted:
    """A quantizer that writes down the importance matrix that it is given."""

    name: str = "a"

    method: ClassVar[str] = "weighted"
    backend: ClassVar[str] = "test"
    uses_calibration: ClassVar[bool] = True
    uses_importance: ClassVar[bool] = True

    def options(self):
        return {"name": self.name}

    def version(self):
        return "1"

    def check(self, model):
        pass

    def quantize(self, model, calibration, out, progress=None):
        importance.save(calibration.importance, out)
        return Artifact(out, "hf", Size(1, 1, 1, 1, 1))


def weighted_plan(plan, name="a"):
    return plan({"_target_": f"{__name__}.Weighted", "name": name})


def obtained(plan, store):
    artifact = obtain_artifact(plan, store, lambda *_: None)
    return artifact, importance.load(artifact.path)


def run_pass(plans, store, *, wanted):
    payload = {
        "configs": {plan.key: plan.trial.resolved for plan in plans},
        "store": store.address,
        "model": str(plans[0].setting.facts.path),
        "importance": wanted,
    }
    passes.run(payload, lambda *_: None)


def test_the_first_who_wants_an_importance_matrix_measures_it_for_all(plan, monkeypatch):
    first, second = (weighted_plan(plan, name) for name in "ab")
    _, matrix = obtained(first, plan.store)
    assert matrix.keys() == first.setting.facts.linears.keys()
    monkeypatch.setattr(making, "measure_importance", lambda *_: pytest.fail("measured again"))
    artifact, again = obtained(second, plan.store)
    assert all(torch.equal(values, again[name]) for name, values in matrix.items())
    entry = plan.store.find("artifacts", second.artifact_key)
    known = plan.store.find("importances", key_of(second.importance))
    assert entry.content["shared_s"] == known.content["shared_s"] > 0
    assert 0 < entry.content["quantize_s"] < known.content["shared_s"]
    assert artifact.details["shared_s"] == known.content["shared_s"]


def test_a_damaged_importance_matrix_is_measured_again(plan):
    one = weighted_plan(plan)
    _, matrix = obtained(one, plan.store)
    plan.store.remove("artifacts", one.artifact_key)
    file = plan.store.path("importances", key_of(one.importance)) / importance.FILE
    file.write_bytes(file.read_bytes()[:100])
    _, again = obtained(one, plan.store)
    assert all(torch.equal(values, again[name]) for name, values in matrix.items())


@pytest.mark.parametrize(("method", "wanted"), [("AWQ", False), ("GPTQ", True)])
def test_a_pass_leaves_the_matrix_that_a_trial_would_measure(
    plan, tmp_path, monkeypatch, method, wanted
):
    one = weighted_plan(plan)
    _, alone = obtained(one, plan.store)
    store = Store(tmp_path / "other")
    run_pass([plan(native(bits, method, group_size=64)) for bits in (3, 4)], store, wanted=wanted)
    monkeypatch.setattr(making, "measure_importance", lambda *_: pytest.fail("measured again"))
    _, matrix = obtained(one, store)
    assert matrix.keys() == alone.keys()
    assert all(torch.equal(values, matrix[name]) for name, values in alone.items())


def test_a_matrix_that_cannot_be_kept_costs_no_artifact(plan, monkeypatch):
    def full(*_):
        raise QsweepError("no space left on the disk")

    monkeypatch.setattr(passes, "keep_importance", full)
    plans = [plan(native(bits, "AWQ", group_size=64)) for bits in (3, 4)]
    with pytest.raises(QsweepError, match="no space"):
        run_pass(plans, plan.store, wanted=False)
    assert all(plan.store.find("artifacts", one.artifact_key) for one in plans)


# Whole sweeps


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("together")
    result = sweep(outputs, "quant=gptq,awq", "bits=3,4", "group_size=64")
    assert result.returncode == 0, result.stdout + result.stderr
    return outputs, result


def test_a_pass_is_a_job_with_a_log_and_its_times_are_told(together):
    outputs, result = together
    lines = result.stderr.splitlines()
    assert any(
        line.startswith("pocket one pass for 4 configurations  finished") for line in lines
    ), result.stderr
    assert "[5/5]" in result.stderr
    assert len(list((outputs / "sweeps" / "t" / "logs").glob("pass-*.log"))) == 1
    found = rows(outputs)
    assert len(found) == 4
    assert len({row["shared_s"] for row in found}) == 1
    assert all(float(row["quantize_s"]) > 0 < float(row["shared_s"]) for row in found)


def test_company_changes_neither_bits_nor_key(together, tmp_path):
    outputs, _ = together
    result = sweep(tmp_path, "quant=gptq", "bits=3", "group_size=64")
    assert result.returncode == 0 and "one pass" not in result.stderr
    (alone,) = rows(tmp_path)
    (company,) = (r for r in rows(outputs) if (r["method"], r["bits"]) == ("gptq", "3"))
    assert alone["key"] == company["key"]
    assert identity(alone) == identity(company)
    assert weights(alone) == weights(company)


@pytest.mark.slow
def test_only_what_is_missing_is_made_again(together):
    outputs, _ = together
    before = {row["key"]: weights(row) for row in rows(outputs)}
    kept, *lost = rows(outputs)
    for row in lost:
        (Path(row["artifact"]) / "model.safetensors").unlink()
    age = (Path(kept["artifact"]) / "manifest.json").stat().st_mtime_ns
    result = sweep(outputs, "quant=gptq,awq", "bits=3,4", "group_size=64")
    assert result.returncode == 0, result.stderr
    assert "one pass for 3 configurations  finished" in result.stderr
    assert (Path(kept["artifact"]) / "manifest.json").stat().st_mtime_ns == age
    assert {row["key"]: weights(row) for row in rows(outputs)} == before


def test_a_bad_configuration_takes_no_other_along(tmp_path):
    poison = "quant.backends.native=pass_targets.Poisoned"
    result = sweep(tmp_path, "quant=gptq", "bits=2,3,4,8", "group_size=64", poison)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "one pass for 4 configurations  failed" in result.stderr
    assert result.stderr.count("tried again in parts") == 2
    assert "one pass for 2 configurations  finished" in result.stderr
    found = {row["bits"]: row for row in rows(tmp_path)}
    assert {bits: row["status"] for bits, row in found.items()} == {
        "2": "failed",
        "3": "failed",
        "4": "finished",
        "8": "finished",
    }
    assert "SIGKILL" in found["2"]["reason"]
    assert found["3"]["reason"] == "model.layers.0.mlp.up_proj: its inputs are not finite"


@pytest.mark.slow
def test_two_sweeps_at_once_make_each_artifact_once(tmp_path):
    grids = {"a": "bits=3,4", "b": "bits=4,8"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "qsweep"]
            + command(tmp_path, "quant=gptq", bits, "group_size=64", sweep=name),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        for name, bits in grids.items()
    ]
    for process in processes:
        output, _ = process.communicate(timeout=280)
        assert process.returncode == 0, output
    first, second = ({row["bits"]: row for row in rows(tmp_path, name)} for name in grids)
    assert first["4"]["artifact"] == second["4"]["artifact"]
    assert first["4"]["quantize_s"] == second["4"]["quantize_s"]
    assert len(list((tmp_path / "store" / "artifacts").iterdir())) == 3


# Importance matrices

MIXED = """
defaults: [config, _self_]
hydra:
  mode: MULTIRUN
  sweeper:
    params: {quant: "gptq,gguf", bits: "3,4"}
    when:
      quant=gguf: {quant.imatrix: "true"}
      quant=gptq: {quant.backends.native: BACKEND}
"""


def mixed_sweep(outputs, folder, *arguments, backend="qsweep.quantizers.native.NativeGPTQ"):
    (folder / "mixed.yaml").write_text(MIXED.replace("BACKEND", backend))
    line = ["--config-dir", str(folder), "--config-name=mixed", "group_size=64"]
    return run_here([*line, *arguments, *SMALL, "sweep=t", f"outputs_dir={outputs}"])


def files(outputs):
    """The hash of each GGUF trial's file, and the importance matrices that there are."""
    matrices = [p.read_bytes() for p in outputs.glob("store/importances/*/*.safetensors")]
    made = {
        row["bits"]: hashlib.sha256((Path(row["artifact"]) / "model.gguf").read_bytes()).hexdigest()
        for row in rows(outputs)
        if row["method"] == "gguf"
    }
    return made, matrices


@pytest.fixture
def llama_cpp():
    pytest.importorskip("llama_cpp")
    from qsweep.base.errors import BackendUnavailable
    from qsweep.formats.gguf.converter import converter_dir

    try:
        converter_dir()
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_gguf_trials_take_the_importance_matrix_of_the_pass(llama_cpp, tmp_path):
    result = mixed_sweep(tmp_path / "mixed", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "one pass for 2 configurations and an importance matrix  finished" in result.stderr
    assert len({row["shared_s"] for row in rows(tmp_path / "mixed")}) == 1
    # Alone they measure it, once, and come to the same bits.
    result = mixed_sweep(tmp_path / "alone", tmp_path, "quant=gguf")
    assert result.returncode == 0 and "one pass" not in result.stderr, result.stderr
    alone, (matrix,) = files(tmp_path / "alone")
    assert alone.keys() == {"3", "4"}
    assert files(tmp_path / "mixed") == (alone, [matrix])


@pytest.mark.slow
def test_gguf_trials_measure_it_where_the_pass_died(llama_cpp, tmp_path):
    result = mixed_sweep(tmp_path, tmp_path, "bits=2,3", backend="pass_targets.Poisoned")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "and an importance matrix  failed" in result.stderr
    assert "tried again in parts" in result.stderr
    statuses = {(row["method"], row["bits"]): row["status"] for row in rows(tmp_path)}
    assert statuses == {
        ("gptq", "2"): "failed",
        ("gptq", "3"): "failed",
        ("gguf", "2"): "finished",
        ("gguf", "3"): "finished",
    }
    _, matrices = files(tmp_path)
    assert len(matrices) == 1
