"""Searches by a formula: what is tried, dropped, remembered, shared and answered."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import namedtuple

import optuna
import psutil
import pytest
import search_lab
from search_lab import LARGE, SPACE, FormulaLab, make_search

from helpers.configs import composed
from helpers.typed import on_disk
from qsweep.base.errors import ConfigError, QsweepError
from qsweep.search.answer import answer, infeasible, knee, pareto_front
from qsweep.search.candidate import PlannedTrial
from qsweep.search.fidelity import (
    CompletedTrial,
    Estimate,
    first_windows_of,
    most_promising,
    proxy_of,
    why_hopeless,
)
from qsweep.search.objectives import (
    parse_constraint,
    parse_objective,
    spans,
)
from qsweep.search.proposals import make_sampler
from qsweep.search.settings import search_config
from qsweep.search.space import Mix, Parameter, Space, mix_key, mixed_bits
from qsweep.search.storage import open_storage
from qsweep.search.study import require_same_study

spans = on_disk(spans)


def memory():
    return optuna.storages.InMemoryStorage()


def grid(lab, objective="quality_per_gb"):
    """Every possible trial by its key, the best first."""
    found = {}
    for params in SPACE.combinations():
        if lab.plan(params):
            record = lab._run(params)
            metrics = record["measurements"][0]["metrics"] | record["artifact"]
            found[record["key"]] = metrics[objective]
    return sorted(found, key=lambda key: -found[key])


def ran(lab, fidelity):
    return [key for kind, key in lab.ran if kind == fidelity]


# --- objectives and constraints ----------------------------------------------------------------


def test_known_metrics_know_their_direction_and_others_need_one():
    assert str(parse_objective("quality_per_gb")) == "quality_per_gb up"
    assert str(parse_objective("size_gb")) == "size_gb down"
    assert parse_objective("mmlu up").direction == "maximize"
    with pytest.raises(ConfigError, match="did you mean 'quality_per_gb'"):
        parse_objective("quality_per_bg")
    with pytest.raises(ConfigError, match="up or down"):
        parse_objective("quality sideways")


@pytest.mark.parametrize(
    ("text", "value", "reference", "feasible"),
    [
        ("ppl_ratio <= 1.06", 1.06, None, True),
        ("ppl_ratio ≤ 1.06", 1.07, None, False),
        ("quality>=.5", 0.4, None, False),
        ("size_gb <= 0.5 of reference", 7.9, 16.0, True),
        ("size_gb <= 0.5 of reference", 8.1, 16.0, False),
        ("kld <= 1e-2", float("nan"), None, False),
    ],
)
def test_constraints(text, value, reference, feasible):
    assert (parse_constraint(text).excess(value, reference) <= 0) is feasible


@pytest.mark.parametrize("text", ["ppl_ratio", "ppl_ratio <= x", "<= 3", "ppl_ratio = 1"])
def test_what_is_no_constraint_says_how_to_write_one(text):
    with pytest.raises(ConfigError, match=r"ppl_ratio <= 1\.06"):
        parse_constraint(text)


def test_an_unknown_metric_in_a_constraint_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'ppl_ratio'"):
        parse_constraint("ppl_ratoi <= 1.06")


def test_options_of_the_search_are_checked():
    with pytest.raises(ConfigError, match="did you mean 'sampler'"):
        search_config({"samplr": "tpe"})
    with pytest.raises(ConfigError, match=r"search\.trials=0"):
        search_config({"trials": 0})
    with pytest.raises(ConfigError, match="did you mean 'n_startup_trials'"):
        make_sampler(search_config({"sampler_options": {"n_startup_trial": 3}}))


# --- what is why_hopeless --------------------------------------------------------------------------

GOALS = [parse_objective("size_gb"), parse_objective("quality")]


def estimate(size, low, high, fidelity="few"):
    span = (low, (low + high) / 2, high)
    return Estimate(fidelity, {"size_gb": (size, size, size), "quality": span})


def test_only_what_is_worse_at_its_optimistic_end_is_dropped():
    rival = CompletedTrial(7, estimate(2.0, 0.80, 0.90))
    assert "trial 7" in why_hopeless(estimate(2.0, 0.60, 0.79), [rival], GOALS, (), {})
    assert why_hopeless(estimate(2.0, 0.60, 0.81), [rival], GOALS, (), {}) is None
    # smaller, so it may be on the front however bad it is
    assert why_hopeless(estimate(1.9, 0.10, 0.20), [rival], GOALS, (), {}) is None


def test_a_constraint_out_of_reach_drops_and_one_within_the_interval_does_not():
    bound = parse_constraint("quality >= 0.5")
    assert "out of reach" in why_hopeless(estimate(1, 0.1, 0.4), [], GOALS, [bound], {})
    assert why_hopeless(estimate(1, 0.1, 0.6), [], GOALS, [bound], {}) is None


def test_nothing_is_dropped_where_nothing_is_known():
    record = FormulaLab()._run({"quant": "rtn", "bits": "4", "group_size": "32"})
    del record["measurements"][0]["metrics"]["ppl_ratio_low"]  # a single window has no interval
    unknown = Estimate("few", spans(record, ("quality", "size_gb")))
    assert (
        why_hopeless(unknown, [CompletedTrial(1, estimate(0.1, 0.9, 1.0))], GOALS, (), {}) is None
    )


def test_a_proxy_bounds_what_the_real_quantizer_can_reach():
    lab = FormulaLab()
    real = {"quant": "gptq", "bits": "3", "group_size": "64", "desc_act": "true"}
    proxy = proxy_of(real, {}, "gptq", "rtn")
    assert proxy == {"quant": "rtn", "bits": "3", "group_size": "64", "desc_act": "false"}
    found = spans(lab._run(proxy), ("quality", "quality_per_gb", "kld", "size_gb"), keeps=0.25)
    truth = lab._run(real)
    for metric, (low, _, high) in found.items():
        place = truth["artifact"] if metric == "size_gb" else truth["measurements"][0]["metrics"]
        assert low <= place[metric] <= high, metric
    assert proxy_of({"quant": "gguf"}, {}, "gguf", "rtn") is None


def test_all_of_the_few_windows_are_read_whatever_stops_a_whole_trial():
    asked = {"quant": "rtn", "eval.until": "'ratio ±1 %'"}
    few = first_windows_of(asked, 8, "few")
    found = composed(
        *(f"{name}={value}" for name, value in few.items() if name != "search.fidelity")
    )
    assert (found["eval"]["until"], found["eval"]["max_windows"]) == (None, 8)


def test_native_proxies_skip_the_propagation():
    assert proxy_of({"quant": "gptq", "bits": "3"}, {"backend": "gptqmodel"}, "gptq", "native") == {
        "quant": "gptq",
        "bits": "3",
        "quant.backend": "native",
        "++quant.sequential": "false",
    }
    assert proxy_of({"quant": "awq"}, {"backend": "native"}, "awq", "native") is None


def test_the_unknown_comes_first_then_what_the_fewest_dominate():
    order = most_promising(
        [estimate(2, 0.1, 0.2), None, estimate(1, 0.5, 0.9), estimate(3, 0.9, 1)], GOALS
    )
    assert order[0] == 1 and order[-1] == 0


# --- the loop ----------------------------------------------------------------------------------


def test_the_search_finds_the_best_of_the_grid_at_less_cost():
    whole, lab = FormulaLab(), FormulaLab()
    best = grid(whole)[0]
    search = make_search(lab, memory(), objective="quality_per_gb")
    search.run()
    result = answer(search.study.entries(), search.objectives, serving=True)
    assert result.best_per_gb.finding["record"] == best
    assert lab.cost_s < 0.65 * whole.cost_s
    full = ran(lab, "full")
    assert len(full) == len(set(full)) < 42 / 2
    assert all("group_size=100" not in key for _, key in lab.ran)


def test_several_objectives_find_the_whole_front():
    lab = FormulaLab()
    search = make_search(lab, memory())
    search.run()
    every = make_search(FormulaLab(), memory(), rungs=[])
    every.run()
    fronts = [
        [e.key for e in answer(s.study.entries(), s.objectives, serving=True).front]
        for s in (search, every)
    ]
    assert fronts[0] == fronts[1]
    assert len(fronts[0]) >= 4
    assert lab.cost_s < every.lab.cost_s


@pytest.mark.parametrize(
    "sampler", ["tpe", "random", "nsga2", pytest.param("gp", marks=pytest.mark.slow)]
)
def test_samplers_never_repeat_and_never_propose_the_impossible(sampler):
    lab = FormulaLab()
    search = make_search(
        lab, memory(), LARGE, sampler=sampler, trials=25, objective="quality_per_gb", rungs=[]
    )
    assert not search.enumerates
    search.run()
    full = ran(lab, "full")
    assert len(full) == len(set(full)) == 25
    assert all("group_size=100" not in key for key in full)


def test_a_sampler_on_rungs_learns_and_ends_by_its_budget():
    lab = FormulaLab()
    search = make_search(lab, memory(), LARGE, trials=30, objective="quality_per_gb")
    search.run()
    quantized = [e for e in search.study.entries() if e.estimate and e.estimate.fidelity == "few"]
    assert len(quantized) == 30
    best = answer(search.study.entries(), search.objectives, serving=True).best_per_gb
    assert best.finding["quality_per_gb"] > 0.9 * max(
        lab._run(params)["measurements"][0]["metrics"]["quality_per_gb"]
        for params in SPACE.combinations()
        if lab.plan(params)
    )


def test_known_good_points_come_first():
    lab = FormulaLab()
    good = {"quant": "rtn", "bits": "8", "group_size": "64"}
    search = make_search(lab, memory(), objective="quality_per_gb", rungs=[])
    search.run([good])
    assert ran(lab, "full")[0] == "bits=8 group_size=64 quant=rtn"


def test_a_failing_trial_is_told_and_the_others_go_on():
    lab = FormulaLab(failing=lambda o: o["quant"] == "awq" and "search.fidelity" not in o)
    search = make_search(lab, memory(), objective="quality_per_gb")
    search.run()
    failed = [e for e in search.study.entries() if e.state == "failed"]
    assert failed and all(e.reason == "the device is on fire" for e in failed)
    assert any(e.state == "complete" for e in search.study.entries())


def test_a_row_of_llama_cpps_own_run_counts_as_failed():
    class OwnRun(FormulaLab):
        def _run(self, overrides):
            record = super()._run(overrides)
            if overrides["quant"] == "awq":
                record["artifact"]["details"] = {"unexplained": "a tensor lies where nobody knows"}
                record["measurements"] = []
            return record

    search = make_search(OwnRun(), memory(), objective="quality_per_gb", rungs=[])
    search.run()
    failed = [e for e in search.study.entries() if e.state == "failed"]
    line = "llama.cpp's own run only: a tensor lies where nobody knows"
    assert failed and all(e.reason == line for e in failed)
    assert any(e.state == "complete" for e in search.study.entries())


def test_what_no_runtime_serves_is_neither_an_answer_nor_a_rival():
    search = make_search(FormulaLab(serves=False), memory(), objective="quality_per_gb")
    search.run()
    entries = search.study.entries()
    assert answer(entries, search.objectives, serving=True).best_per_gb is None
    assert answer(entries, search.objectives, serving=False).best_per_gb is not None
    assert all(e.state == "complete" for e in entries)


def test_an_empty_feasible_set_names_the_constraint():
    constraints = ["size_gb <= 100", "size_gb <= 0.01 of reference"]
    search = make_search(FormulaLab(), memory(), constraints=constraints, rungs=[])
    search.run()
    said = infeasible(search.study.entries(), search.constraints)
    assert "size_gb <= 0.01 of reference" in said
    assert "misses it by" in said
    dropped = make_search(FormulaLab(), memory(), constraints=["quality >= 1.5"])
    dropped.run()
    assert "quality >= 1.5" in infeasible(dropped.study.entries(), dropped.constraints)


def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path):
    storage = open_storage(None, tmp_path)
    lab = FormulaLab()

    class Stop(FormulaLab):
        def run(self, batch):
            if len(ran(self, "full")) == 3:
                raise KeyboardInterrupt
            return super().run(batch)

    first = Stop()
    with pytest.raises(KeyboardInterrupt):
        make_search(first, storage, objective="quality_per_gb").run()
    search = make_search(lab, open_storage(None, tmp_path), objective="quality_per_gb")
    assert sum(e.state == "complete" for e in search.study.entries()) == 3
    search.run()
    assert not set(ran(first, "full")) & set(ran(lab, "full"))
    assert not [e for e in search.study.entries() if e.state == "running"]


# --- mixes -------------------------------------------------------------------------------------

MIXED = Space(
    (
        Parameter("quant", ("gptq", "awq", "rtn")),
        Parameter("bits", ("2", "3", "3.5", "3.75", "4")),
        Parameter("group_size", ("64", "128", "100")),
    )
)


class MixingLab(FormulaLab):
    """Makes what layers are chosen from when it is asked for a mix; of awq there is none."""

    def __init__(self, bpw=3.4, **options):
        super().__init__(**options)
        self.bpw, self.asked = bpw, []

    def plan(self, overrides):
        if mixed_bits(overrides) is None:
            return super().plan(overrides)
        self.asked.append((len(ran(self, "full")), overrides))
        if overrides["quant"] == "awq":
            return None
        base = {"quant": overrides["quant"], "bits": "4", "group_size": "64"}
        mix = Mix("m", base, (f"*.down_proj=bits:{overrides['bits']}",))
        key = f"mix {mix_key(overrides)}"
        given = {**base, "quant.rules": "file"}
        return PlannedTrial(key, key, overrides["quant"], {}, given, mix)

    def _run(self, overrides):
        record = super()._run(overrides)
        if "quant.rules" in overrides:
            record["artifact"]["bpw"] = self.bpw
        return record


def mixes_of(search):
    return [e for e in search.study.entries() if mixed_bits(e.params) is not None]


@pytest.mark.parametrize("sampler", ["tpe", "random", "enumerated"])
def test_mixes_come_when_all_uniform_ones_are_done(sampler):
    lab = MixingLab()
    options = {} if sampler == "enumerated" else {"sampler": sampler, "enumerate_below": 1}
    search = make_search(lab, memory(), MIXED, rungs=[], **options)
    assert search.enumerates is (sampler == "enumerated") and not lab.asked
    search.run()
    uniform = sum(mixed_bits(e.params) is None for e in search.study.entries())
    assert uniform == 3 * 3 * 2
    assert {done for done, _ in lab.asked} >= {uniform}
    assert min(done for done, _ in lab.asked) == uniform
    found = mixes_of(search)
    assert sorted((e.params["quant"], e.params["bits"]) for e in found) == [
        *(("gptq", "3.5"), ("gptq", "3.75"), ("rtn", "3.5"), ("rtn", "3.75")),
    ]
    assert all(e.state == "complete" and e.number >= uniform for e in found)
    assert {e.mix.rules for e in found} == {("*.down_proj=bits:3.5",), ("*.down_proj=bits:3.75",)}
    # The study's distributions are those of the whole space throughout.
    choices = {t.distributions["bits"].choices for t in search.study.optuna.trials}
    assert choices == {MIXED.parameters[1].values}


@pytest.mark.parametrize("options", [{}, {"sampler": "tpe", "enumerate_below": 1}])
def test_no_mix_is_looked_at_once_the_trials_are_spent(options):
    lab = MixingLab()
    search = make_search(lab, memory(), MIXED, trials=1, rungs=[], **options)
    search.run([{"quant": "rtn", "bits": "3.5", "group_size": "64"}])
    assert lab.asked == [] and mixes_of(search) == []
    assert len(ran(lab, "full")) == 1


def test_a_mix_that_the_study_has_is_not_looked_at_again(tmp_path):
    make_search(MixingLab(), open_storage(None, tmp_path), MIXED).run()
    lab = MixingLab()
    search = make_search(lab, open_storage(None, tmp_path), MIXED)
    search.run()
    assert {params["quant"] for _, params in lab.asked} == {"awq"}
    assert all(e.mix is not None for e in mixes_of(search) if e.state == "complete")


@pytest.mark.parametrize("rungs", [[], ["few"]])
def test_a_mix_larger_than_asked_is_dropped_with_a_reason(rungs):
    search = make_search(MixingLab(bpw=3.6), memory(), MIXED, rungs=rungs)
    search.run()
    states = {(e.params["bits"], e.state) for e in mixes_of(search)}
    assert ("3.5", "dropped") in states and ("3.5", "complete") not in states
    reasons = {e.reason for e in mixes_of(search) if e.params["bits"] == "3.5"}
    assert "its artifact has 3.6 stored bits per weight, 3.5 are asked for" in reasons
    assert ("3.75", "complete") in states or rungs


# --- the study ---------------------------------------------------------------------------------


def test_a_study_that_searched_something_else_is_refused():
    storage = memory()
    make_search(FormulaLab(), storage, identity={"space": {"bits": "2,3"}, "protocol": 1})
    with pytest.raises(ConfigError, match=r"space\.bits = 2,3, now it is 2,4.*sweep=NEWNAME"):
        make_search(FormulaLab(), storage, identity={"space": {"bits": "2,4"}, "protocol": 1})
    with pytest.raises(ConfigError, match="protocol = 1, now it is 2"):
        require_same_study("x", {"protocol": 1}, {"protocol": 2})


def test_an_unreachable_storage_is_one_line_without_the_password(tmp_path):
    with pytest.raises(QsweepError) as caught:
        open_storage("postgresql+pg8000://me:secret@127.0.0.1:9/none", tmp_path)
    assert "cannot be reached" in str(caught.value)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="journal"):
        open_storage("redis-please", tmp_path)


@pytest.fixture(params=["sqlite", pytest.param("journal", marks=pytest.mark.slow), "postgresql"])
def storage_name(request):
    return request.getfixturevalue("postgresql") if request.param == "postgresql" else request.param


def start(storage, folder, seconds):
    command = [sys.executable, search_lab.__file__, storage, str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_share_a_study_and_survive_kill_9(storage_name, tmp_path):
    victim = start(storage_name, tmp_path, 0.02)
    first = victim.stdout.readline()
    processes = [start(storage_name, tmp_path, 0.02) for _ in range(2)]
    time.sleep(1)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    keys = [line for p in processes for line in p.communicate(timeout=120)[0].split("\n") if line]
    assert all(process.returncode == 0 for process in processes)
    storage = open_storage(None if storage_name == "sqlite" else storage_name, tmp_path)
    search = make_search(FormulaLab(), storage, objective="quality_per_gb")
    orphans = search.study.recover()
    assert len(orphans) <= 1
    search.run()
    entries = search.study.entries()
    assert not [e for e in entries if e.state == "running"]
    complete = [e.key for e in entries if e.state == "complete"]
    assert len(complete) == len(set(complete))
    assert len(keys) == len(set(keys)), "the two ran something twice"
    assert first.strip() in complete
    best = answer(entries, search.objectives, serving=True).best_per_gb
    assert best.finding["record"] == grid(FormulaLab())[0]


@pytest.mark.parametrize("storage_name", [None, "journal"])
def test_two_processes_may_recover_the_same_orphan_at_once(storage_name, tmp_path, monkeypatch):
    params = next(iter(SPACE.combinations()))
    dead, first, second = (
        make_search(FormulaLab(), open_storage(storage_name, tmp_path)).study for _ in range(3)
    )
    dead.owner = f"{socket.gethostname()}:999999999:1"
    dead.claim("key", "name", params, SPACE)
    seen = second.entries()
    assert [entry.number for entry in first.recover()] == [0]
    monkeypatch.setattr(second, "entries", lambda: seen)  # read before the first was done
    assert second.recover() == []
    monkeypatch.undo()
    assert [entry.state for entry in second.entries()] == ["failed"]


def test_sqlite_keeps_a_log_except_where_several_hosts_may_write(tmp_path, monkeypatch):
    def journal_mode(folder):
        folder.mkdir()
        open_storage(None, folder)
        with sqlite3.connect(folder / "study.db") as database:
            return database.execute("PRAGMA journal_mode").fetchone()[0]

    assert journal_mode(tmp_path / "here") == "wal"
    shared = namedtuple("Partition", "mountpoint fstype")(str(tmp_path), "nfs4")
    real = psutil.disk_partitions(all=True)
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [*real, shared])
    assert journal_mode(tmp_path / "shared") == "delete"


@pytest.mark.slow
def test_two_hundred_trials_do_not_slow_down(tmp_path):
    lab = FormulaLab()
    search = make_search(
        lab, open_storage(None, tmp_path), LARGE, trials=200, sampler="random", rungs=[]
    )
    times = []
    original = lab.run

    def run(batch):
        times.append(time.process_time())
        return original(batch)

    lab.run = run
    search.run()
    steps = [b - a for a, b in zip(times, times[1:], strict=False)]
    assert len(steps) >= 199
    early, late = sorted(steps[10:60])[25], sorted(steps[-50:])[25]
    assert late < 3 * early + 0.01


# --- the answer --------------------------------------------------------------------------------


def test_front_and_knee_by_hand():
    search = make_search(FormulaLab(), memory(), rungs=[])
    search.run()
    entries = [e for e in search.study.entries() if e.finding]
    points = {(0.2, 0.1): 0, (0.3, 0.8): 1, (0.6, 0.9): 2, (0.5, 0.7): 3, (1.0, 1.0): 4}
    for (size, value), place in points.items():
        entries[place].finding.update(size_gb=size, quality=value)
    front = pareto_front(entries[:5], GOALS)
    assert [(e.finding["size_gb"], e.finding["quality"]) for e in front] == [
        (0.2, 0.1),
        (0.3, 0.8),
        (0.6, 0.9),
        (1.0, 1.0),
    ]
    assert knee(front).finding["size_gb"] == 0.3
    assert knee(front[:2]) is None


def test_findings_are_plain_json():
    search = make_search(FormulaLab(), memory(), trials=3)
    search.run()
    done = [e.finding for e in search.study.entries() if e.finding]
    assert json.loads(json.dumps(done)) == done
