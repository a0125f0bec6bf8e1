"""Runs beside that of the weights alone: what they are keyed by, measured once, recorded, told."""

import dataclasses
from pathlib import Path

import pytest
import torch

from helpers.compressed import changed, compress
from helpers.configs import composed
from helpers.reference_packs import make_pack, measure_against
from qsweep.base.errors import TrialFailed
from qsweep.base.progress import silent
from qsweep.base.store import Store
from qsweep.formats.activations import Rounding
from qsweep.quantizers.protocol import quantizes_activations
from qsweep.quantizers.rtn import RTN
from qsweep.results.checks import check
from qsweep.results.columns.table import SERVED
from qsweep.results.markdown import results_markdown
from qsweep.results.record_file import content_of, record_of
from qsweep.sweep.config import trial_config
from qsweep.sweep.found import identified
from qsweep.sweep.plan import make_plan
from qsweep.sweep.recording import finished_record
from qsweep.sweep.setting import find_setting
from qsweep.sweep.trial import run_trial

FIGURES = {column.name for column in SERVED if "activations" in column.name}


@pytest.fixture(scope="module")
def made(tmp_path_factory, pocket_dir):
    """The embedded model with 8-bit activations, and the same with static scales that saturate."""
    root = tmp_path_factory.mktemp("served")
    paths = {
        name: compress(pocket_dir, root / name, {scheme: ["Linear"]}, ignore=["lm_head"])
        for name, scheme in {"dynamic": "W8A8", "weights": "W8A16", "static": "FP8"}.items()
    }

    def narrower(tensors):
        for name in [name for name in tensors if name.endswith("input_scale")]:
            tensors[name] = torch.tensor([1.0 / 448])

    paths["saturated"] = changed(paths["static"], root / "saturated", narrower)
    return paths


@pytest.fixture(scope="module")
def world(tmp_path_factory, pocket_dir):
    root = tmp_path_factory.mktemp("store")
    store = Store(root / "store")
    text = root / "text.txt"
    text.write_text("A sentence that is measured, and another one.\n" * 400)
    small = ["corpus=file", "eval.context=64", "eval.max_windows=3", "device=cpu"]
    small += ["eval.noise_floor=false"]

    def make(*overrides, path=None, **changes):
        given = ["quant=artifact", f"quant.path={path}"] if path else []
        trial = trial_config(composed(*small, f"corpus.path={text}", *given, *overrides))
        trial = identified(trial, store) if path else trial
        return store, make_plan(
            dataclasses.replace(trial, **changes), find_setting(trial, pocket_dir, store)
        )

    return make


@dataclasses.dataclass(frozen=True)
class WithActivations(RTN):
    """Rounding whose artifacts are served with quantized activations."""

    quantizes_activations = True


def test_what_is_planned_follows_from_what_is_stated(world, made):
    _, plain = world("quant=rtn")
    quant = plain.trial.quant
    _, served = world("quant=rtn", quant=WithActivations(quant.bits, quant.group_size))
    assert quantizes_activations(served.trial.quant) and not quantizes_activations(quant)
    (alone,), (both,) = plain.measurements, served.measurements
    # The measurement of the weights is the one that it would be without.
    assert alone.identity == both.identity and alone.keys == (alone.key,)
    (run,) = both.served
    assert run.identity == {**both.identity, "served": {"activations": 1}}
    assert both.keys == (both.key, run.key) and run.before == both.key
    assert plain.key != served.key
    assert plain.reference().key == served.reference().key
    assert not served.reference().measurements[0].served
    for name, runs in {"dynamic": 1, "static": 1, "weights": 0}.items():
        _, plan = world(path=made[name])
        assert len(plan.measurements[0].served) == runs


def test_a_trial_tells_what_activations_add_to_its_weights(world, made):
    store, plan = world(path=made["dynamic"])
    run_trial(plan, store, silent)
    record = finished_record(plan, store)
    (measurement,) = record.measurements
    metrics = measurement.metrics
    assert metrics.keys() >= FIGURES
    added = metrics["kld_activations"] - metrics["kld"]
    assert metrics["kld_activations_added"] == pytest.approx(added, rel=1e-4)
    assert metrics["kld_activations_added_low"] < added < metrics["kld_activations_added_high"]
    assert metrics["ppl_ratio_activations"] != metrics["ppl_ratio"]
    (run,) = measurement.served
    assert (run.name, run.serving, run.refused) == ("activations", {"activations": 1}, None)
    assert run.facts["activations"]["layers"] > 0
    assert record.evaluate_s == pytest.approx(
        sum(
            store.find("measurements", key).content["evaluate_s"]
            for key in plan.measurements[0].keys
        )
    )
    assert record_of(content_of(record)) == record
    text = results_markdown("sweep", [record])
    assert "KLD act." in text and "+KLD act." in text and "ratio act." in text


def test_what_is_there_stays_and_the_run_alone_is_made_again(world, made, monkeypatch):
    store, plan = world(path=made["dynamic"])
    run_trial(plan, store, silent)
    (step,) = plan.measurements
    alone, (run,) = store.find("measurements", step.key), step.served
    first = finished_record(plan, store).measurements[0]
    store.remove("measurements", run.key)
    assert finished_record(plan, store) is None
    run_trial(plan, store, silent)
    assert store.find("measurements", step.key).content == alone.content
    assert finished_record(plan, store).measurements[0].metrics == first.metrics
    # Then nothing is run at all.
    monkeypatch.setattr("qsweep.sweep.trial.load", None)
    run_trial(plan, store, silent)


def test_a_scale_of_all_tokens_is_measured_window_by_window(world, made, monkeypatch):
    monkeypatch.setattr(Rounding, "needs_all_tokens", True)
    store, plan = world("eval.divergence=false", path=made["dynamic"])
    run_trial(plan, store, silent)
    (step,) = plan.measurements
    batches = [store.find("measurements", key).content["facts"]["batch"] for key in step.keys]
    assert batches[0] > batches[1] == 1
    # Without divergence there is the ratio alone.
    found = finished_record(plan, store).measurements[0].metrics.keys() & FIGURES
    assert found == {f"ppl_ratio_activations{end}" for end in ("", "_low", "_high")}


def test_what_saturates_is_told_with_the_layer_that_does_most(world, made):
    store, plan = world(path=made["saturated"])
    run_trial(plan, store, silent)
    record = finished_record(plan, store)
    facts = record.measurements[0].served[0].facts["activations"]
    assert 0.001 < facts["saturated"] < facts["saturated_most"]
    (line,) = [line for line in check([record]) if "saturat" in line]
    assert facts["saturated_layer"] in line and "static scale" in line


def test_what_cannot_be_simulated_is_told_and_the_weights_are_measured(world, made, tmp_path):
    def alone(settings):
        (group,) = settings["config_groups"].values()
        other = {**group, "weights": None, "targets": ["re:.*norm"], "format": None}
        settings["config_groups"]["others"] = other

    store, plan = world(path=changed(made["dynamic"], tmp_path / "odd", config=alone))
    run_trial(plan, store, silent)
    record = finished_record(plan, store)
    (measurement,) = record.measurements
    assert measurement.metrics["kld"] > 0 and not measurement.metrics.keys() & FIGURES
    assert "activations alone of re:.*norm" in measurement.served[0].refused
    assert any("not measured: config_groups quantizes" in line for line in check([record]))


def test_a_scale_that_is_none_fails_the_trial_and_names_the_layer(world, made, tmp_path):
    name = "model.layers.1.mlp.up_proj.input_scale"
    broken = {name: torch.tensor([float("nan")])}
    path = changed(made["static"], tmp_path / "nan", lambda tensors: tensors.update(broken))
    store, plan = world(path=path)
    with pytest.raises(
        TrialFailed, match=r"^model\.layers\.1\.mlp\.up_proj: its input_scale is nan"
    ):
        run_trial(plan, store, silent)
    missing = changed(made["static"], tmp_path / "missing", lambda tensors: tensors.pop(name))
    store, plan = world(path=missing)
    line = r"missing: model\.layers\.1\.mlp\.up_proj has no input_scale"
    with pytest.raises(Exception, match=line) as caught:
        run_trial(plan, store, silent)
    assert "\n" not in str(caught.value)


def test_a_reference_pack_is_enough(world, made, tmp_path):
    store, plan = world(path=made["dynamic"])
    run_trial(plan, store, silent)
    text = Path(plan.trial.corpora[0].path)
    make_pack(plan.setting.facts.path, text, tmp_path / "pack", "eval.noise_floor=false")
    elsewhere = Store(tmp_path / "elsewhere")
    against = measure_against(tmp_path / "pack", made["dynamic"], elsewhere)
    here, there = (
        finished_record(*of).measurements[0] for of in ((plan, store), (against, elsewhere))
    )
    assert there.metrics.keys() == here.metrics.keys()
    for name in FIGURES:
        assert there.metrics[name] == pytest.approx(here.metrics[name], rel=1e-4, abs=1e-7)
    assert not against.reference().measurements[0].served
