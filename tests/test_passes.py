"""Trials whose artifacts are made together: planned in memory, then run as whole sweeps."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qsweep.config import trial_config
from qsweep.passes import Passes
from qsweep.plan import find_setting, make_plan
from qsweep.quantizers import SharedPass
from qsweep.quantizers.gptqmodel import GPTQ
from qsweep.quantizers.native import NativeAWQ, NativeGPTQ
from qsweep.quantizers.rtn import RTN
from qsweep.store import Store

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).parent
GB = 10**9
SMALL = ["eval.max_windows=2", "eval.divergence=false", "corpus=[python_docs]", "tracking=none"]
SMALL += ["calibration.num_samples=2", "calibration.max_seq_len=64", "n_jobs=1", "device=cpu"]


def command(outputs, *arguments, sweep="t"):
    line = [sys.executable, "-m", "qsweep", "-m", "quant.backend=native", *arguments, *SMALL]
    return [*line, f"sweep={sweep}", f"outputs_dir={outputs}"]


ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(HERE)])}


def sweep(outputs, *arguments, **options):
    return subprocess.run(
        command(outputs, *arguments, **options),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=280,
        env=ENVIRONMENT,
    )


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
    from qsweep.environment import environment

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
    assert not isinstance(RTN(), SharedPass)


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
    halves, concerned = passes.split(whole.id)
    assert [len(half.plans) for half in halves] == [2, 3]
    assert concerned == {p.artifact_key for p in plans}
    assert passes.needs(plans[0]) == (halves[0].id,)
    passes.split(halves[0].id)
    assert passes.needs(plans[0]) == ()
    ((pair,), _) = passes.split(halves[1].id)
    assert len(pair.plans) == 2
    assert passes.split("no such pass") == ([], frozenset())


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
            command(tmp_path, "quant=gptq", bits, "group_size=64", sweep=name),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=ENVIRONMENT,
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
