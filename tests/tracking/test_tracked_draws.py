"""A setting of several draws in MLflow: a run of its own beside those of its draws."""

from helpers.trackers import Outputs, empty_database, outputs, record  # noqa: F401
from helpers.typed import typed
from qsweep.results.draws import pooled
from qsweep.tracking.identity import fingerprint
from qsweep.tracking.records import TrackedSweeps


def draw(seed, seeds=(0, 1, 2)):
    made = record(f"k{seed}", ratio=1.05 + 0.01 * seed)
    made["config"] = {"calibration": {"seed": seed}, "seed": seed, "seeds": seeds and [*seeds]}
    made["measurements"] = made["measurements"][:1]
    metrics = made["measurements"][0]["metrics"]
    metrics |= {
        "ppl_ratio_low": metrics["ppl_ratio"] - 0.01,
        "ppl_ratio_high": metrics["ppl_ratio"] + 0.01,
    }
    return made


def test_the_setting_is_a_run_beside_its_draws(outputs: Outputs):  # noqa: F811
    said = outputs.run(*[draw(seed) for seed in range(3)])
    assert not any("error" in line for line in said), said
    runs = outputs.children()
    (key,) = set(runs) - {"k0", "k1", "k2"}
    run = runs[key]
    assert run.info.run_name == "pocket gptq 4-bit (mean of 3 draws)"
    assert run.data.tags["covers"] == "windows, draws" and run.data.tags["pools"] == "k0 k1 k2"
    assert 1.0599 < run.data.metrics["ppl_ratio"] < 1.06
    assert {runs[k].data.tags["covers"] for k in ("k0", "k1", "k2")} == {"windows"}
    assert len({run.info.run_name for run in runs.values()}) == 4
    assert outputs.parent().data.metrics["trials_finished"] == 3
    # once more changes nothing; a further draw changes the setting's run
    outputs.run(*[draw(seed) for seed in range(3)])
    assert set(outputs.children()) == set(runs)
    # read back, the draws make the setting, and are there once
    (sweep,) = TrackedSweeps(outputs.place.uri, "qsweep", outputs.root).sweeps(["demo"])
    assert sorted(r.key for r in sweep.records) == ["k0", "k1", "k2"] and not sweep.problems
    assert [r.key for r in pooled(sweep.records)] == [key]


def test_draws_that_were_logged_before_become_a_setting(outputs: Outputs):  # noqa: F811
    """As ``seeds=2`` after ``seed=0,1``: no trial is news, but what they are as one."""
    outputs.run(*[draw(seed, None) for seed in range(2)])
    assert set(outputs.children()) == {"k0", "k1"}
    outputs.run(*[draw(seed, [0, 1]) for seed in range(2)])
    (key,) = set(outputs.children()) - {"k0", "k1"}
    first = outputs.children()[key]
    # when and how its draws were looked at is no news of it
    again = [draw(seed, [0, 1]) | {"cached": True, "seconds": 1.0} for seed in range(2)]
    outputs.run(*again)
    assert outputs.children()[key].info.end_time == first.info.end_time
    assert fingerprint(pooled(typed(again))[0]) == first.data.tags["qsweep.record"]
    # of how many that were asked for is
    asked = pooled(typed([draw(seed, [0, 1, 2]) for seed in range(2)]))[0]
    assert asked.key == key and fingerprint(asked) != first.data.tags["qsweep.record"]
