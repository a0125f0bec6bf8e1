"""Records in a real MLflow: sqlite, a real server in the slow test, really killed processes."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qsweep
from helpers.machine import forked
from helpers.trackers import (
    ENDED,
    Outputs,
    client_of,
    record,
    start_server,
    wait_until,
)
from helpers.typed import on_disk, typed
from qsweep.base.errors import ConfigError
from qsweep.commands import sync
from qsweep.tracking import SweepFolder, TrackingConfig, ui_line
from qsweep.tracking.identity import fingerprint
from qsweep.tracking.mlflow import MLflowTracker
from qsweep.tracking.mlflow.client import Client
from qsweep.tracking.mlflow.journal import Journal, TrackingTarget, logger_lock, ui_page
from qsweep.tracking.mlflow.runs import metric_prefix, sweep_run, trial_run
from qsweep.tracking.mlflow.sweeplog import SweepLog, sync_sweep
from qsweep.tracking.settings import public_uri, resolved_uri

fingerprint, sweep_run, trial_run = map(on_disk, (fingerprint, sweep_run, trial_run))


def python(*arguments: str) -> subprocess.CompletedProcess:
    """Another process with this one's qsweep."""
    path = os.pathsep.join(
        [str(Path(qsweep.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        timeout=120,
    )


@pytest.fixture
def dead_uri() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


# what a record becomes


def test_a_record_becomes_a_run_with_stable_names():
    run = trial_run(record(reason=None))
    metrics = {point.name: point.value for point in run.metrics}
    assert metrics["ppl"] == metrics["python_docs/ppl"] == 18.0 * 1.07
    assert metrics["python_docs/strided/ppl"] == pytest.approx(0.9 * 18.0 * 1.07)
    assert metrics["python_code/ppl"] == pytest.approx(0.5 * 18.0 * 1.07)
    assert {"size_gb", "bpw", "quantize_s", "evaluate_s", "peak_memory_gb"} <= metrics.keys()
    assert run.params["bits"] == "4"
    assert run.params["model"] == "pocket"
    assert run.params["model.name"] == "pocket"
    assert run.params["python_docs/windows"] == "41"
    assert run.tags["verdict"] == "usually"
    assert run.tags["mlflow.source.git.commit"] == "0123abcd"
    assert run.status == "FINISHED"
    assert run.ended_ms - run.started_ms == 33000


def test_an_option_that_the_method_ignores_is_not_shown_as_if_it_counted():
    assert "desc_act" not in trial_run(record()).params


def test_statuses():
    assert trial_run(record(status="failed")).status == "FAILED"
    skipped = trial_run(record(status="skipped"))
    assert skipped.status == "KILLED"
    assert skipped.tags["status"] == "skipped"
    assert skipped.tags["reason"] == "out of memory"
    assert metric_prefix("c4", "paper") == "c4/"
    assert metric_prefix("c4", "llamacpp") == "c4/llamacpp/"


def test_what_is_no_number_becomes_a_tag():
    content = record()
    content["measurements"][0]["metrics"] |= {"ppl": math.inf, "kld": math.nan}
    run = trial_run(content)
    assert all(math.isfinite(point.value) for point in run.metrics)
    assert "ppl=inf" in run.tags["nonfinite_metrics"]
    assert "kld=nan" in run.tags["nonfinite_metrics"]


def test_long_params_are_cut_and_say_so():
    run = trial_run(record(config={"note": "x" * 10_000}))
    assert len(run.params["note"]) <= 500
    assert "10000 characters, all in config.yaml" in run.params["note"]
    assert "x" * 10_000 in run.texts["config.yaml"].replace("\n", "")


def test_names_are_what_mlflow_takes():
    run = trial_run(record(config={"a b": {"c/../d": 1, "e%": 2}}))
    assert {"a b.c/d", "a b.e_"} <= run.params.keys()


def test_looking_again_is_no_news_but_failing_again_is():
    first = record()
    again = record(cached=True, ended=None, seconds=None, command="other", environment={})
    assert fingerprint(first) == fingerprint(again)
    assert fingerprint(first) != fingerprint(record(quantize_s=13.0))
    later = {"ended": "2026-01-03T00:00:00+00:00"}
    assert fingerprint(record(status="failed")) != fingerprint(record(status="failed", **later))


def test_the_parent_has_curves_by_bits_and_the_exit_codes_status(tmp_path: Path):
    three, four = record("k3", bits=3, ratio=1.3), record("k4", bits=4)
    worse = record("k5", bits=4, ratio=1.2)
    for metric in (worse["measurements"][0]["metrics"],):
        metric["quality_per_gb"] = 1.0
    run = sweep_run("demo", "c", [three, four, worse], tmp_path, complete=True)
    curve = [(p.step, p.value) for p in run.metrics if p.name == "by_bits/pocket gptq/ppl_ratio"]
    assert sorted(curve) == [(3, 1.3), (4, 1.07)]
    assert run.status == "FINISHED"
    assert "| trial" in run.tags["mlflow.note.content"]
    failed = [*[three], record("k6", status="failed")]
    assert sweep_run("demo", "c", failed, tmp_path, complete=True).status == "FAILED"
    assert sweep_run("demo", "c", [three], tmp_path, complete=False).status == "KILLED"
    assert sweep_run("demo", "c", [], tmp_path, complete=True).status == "FAILED"


def test_a_long_description_is_cut_at_a_section(tmp_path: Path):
    many = [record(f"k{i}", bits=4) for i in range(60)]
    note = sweep_run("demo", "c", many, tmp_path, complete=True).tags["mlflow.note.content"]
    assert len(note) <= 5000
    assert "60 finished" in note
    assert note.endswith("(more in results.md)")


# which tracker


def test_uris_are_absolute_and_hide_passwords(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolved_uri(None, Path("out")) == f"sqlite:///{tmp_path}/out/mlflow.db"
    assert resolved_uri("sqlite:///x.db", Path("out")) == f"sqlite:///{tmp_path}/x.db"
    secret = "postgresql://me:s3cret@host/db"
    assert public_uri(secret) == "postgresql://me:***@host/db"
    assert TrackingTarget(secret, "e").label == "postgresql://me:***@host/db (e)"
    assert public_uri("http://[bad") == "http://[bad"
    assert ui_line(TrackingConfig(), tmp_path / "outputs") == (
        "mlflow ui --backend-store-uri sqlite:///outputs/mlflow.db"
    )
    assert ui_line(TrackingConfig(uri="http://host:5000"), tmp_path) == "http://host:5000"
    assert ui_line(TrackingConfig(enabled=False), tmp_path) is None


@pytest.mark.parametrize("uri", ["mlruns", "/abs/mlruns", "file:///abs/mlruns"])
def test_plain_folders_are_refused_before_anything_runs(uri):
    with pytest.raises(ConfigError, match="plain folders"):
        TrackingConfig(uri=uri)


def test_a_password_stays_off_the_disk(tmp_path: Path, capsys):
    place = TrackingTarget("http://me:s3cret@127.0.0.1:1", "qsweep")
    (tmp_path / "sweeps" / "demo" / "trials").mkdir(parents=True)
    Journal(tmp_path / "sweeps" / "demo", place).open(complete=True)
    assert "s3cret" not in (tmp_path / "sweeps" / "demo" / "tracking.json").read_text()
    assert sync.main(["--outputs", str(tmp_path)]) == 1
    assert "--uri" in capsys.readouterr().err


# a sweep in a real store


def test_a_sweep_is_a_parent_with_a_child_per_trial(outputs: Outputs, tmp_path: Path):
    log = tmp_path / "trial.log"
    log.write_text("chatter")
    measured = tmp_path / "measured"
    measured.mkdir()
    (measured / "windows.json").write_text("[1, 2]")
    done = record("k1", log=str(log))
    done["measurements"][0]["file"] = str(measured)
    said = outputs.run(done, record("k2", "failed", bits=8), record("k3", "skipped", bits=7))
    assert said == []
    parent, children = outputs.parent(), outputs.children()
    assert {key: run.info.status for key, run in children.items()} == {
        "k1": "FINISHED",
        "k2": "FAILED",
        "k3": "KILLED",
    }
    for child in children.values():
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    run = children["k1"]
    assert run.info.run_name == "pocket gptq 4-bit"
    assert run.data.metrics["ppl"] == 18.0 * 1.07
    assert run.data.params["group_size"] == "128"
    assert run.info.end_time - run.info.start_time == 33000
    kept = Path(run.info.artifact_uri.removeprefix("file://"))
    names = {str(p.relative_to(kept)) for p in kept.rglob("*") if p.is_file()}
    assert names == {
        "config.yaml",
        "environment.json",
        "record.json",
        "trial.log",
        "measurements/python_docs-paper/windows.json",
    }
    assert not any(p.is_symlink() for p in kept.rglob("*"))
    assert parent.info.status == "FAILED"
    assert parent.data.metrics["best_quality_per_gb"] == 100.0
    assert parent.data.metrics["trials_skipped"] == 1
    assert parent.data.tags["best_trial"] == "pocket gptq 4-bit"
    parents = Path(parent.info.artifact_uri.removeprefix("file://"))
    assert {"results.csv", "results.md"} <= {p.name for p in parents.iterdir()}
    # nothing falls where the command was given, and the artifacts lie beside the database
    assert parents.is_relative_to(tmp_path / "mlruns")
    assert {p.name for p in tmp_path.iterdir()} == {
        "mlflow.db",
        "mlruns",
        "sweeps",
        "trial.log",
        "measured",
    }


def test_runs_are_found_by_tag(outputs: Outputs):
    outputs.run(record("k1"), record("k3", "skipped", bits=7))
    client = client_of(outputs.place.uri)
    experiment = client.get_experiment_by_name("qsweep").experiment_id
    for query, number in (
        ("tags.`qsweep.key` = 'k1'", 1),
        ("tags.status = 'skipped'", 1),
        ("tags.verdict = 'usually' and tags.method = 'gptq' and tags.bits = '4'", 1),
        ("tags.sweep = 'demo'", 3),
        ("attributes.status = 'FINISHED' and tags.status = 'finished' and metrics.ppl < 20", 1),
    ):
        assert len(client.search_runs([experiment], query)) == number, query


def test_going_on_logs_nothing_twice_and_does_not_even_import_mlflow(outputs: Outputs):
    first, second = record("k1"), record("k2", bits=3)
    outputs.run(first, second)
    before = {run.info.run_id: run.info.end_time for run in outputs.runs()}
    code = f"""
import json, sys
from pathlib import Path
from qsweep.results.record_file import record_of
from qsweep.tracking import SweepFolder
from qsweep.tracking.mlflow import MLflowTracker
root = Path({str(outputs.root)!r})
tracker = MLflowTracker()
tracker.start(SweepFolder("demo", "c", root / "sweeps" / "demo", root))
records = [record_of(dict(json.loads(p.read_text()), cached=True, ended=None))
           for p in sorted((root / "sweeps/demo/trials").glob("*.json"))]
for record in records:
    tracker.log(record)
tracker.finish(records)
print("mlflow" in sys.modules)
"""
    done = python("-c", code)
    assert (done.stdout.strip(), done.stderr) == ("False", "")
    assert {run.info.run_id: run.info.end_time for run in outputs.runs()} == before
    outputs.run(first, second, record("k3", bits=8))
    assert len(outputs.runs()) == 4
    assert outputs.parent().info.status == "FINISHED"
    assert outputs.parent().data.metrics["trials_finished"] == 3


def test_a_changed_record_goes_into_the_same_run(outputs: Outputs):
    outputs.run(record("k1", "failed"))
    [failed] = outputs.children().values()
    changed = record("k1", ratio=1.02, backend="other", ended=ENDED)
    outputs.run(changed)
    [run] = outputs.children().values()
    assert run.info.run_id == failed.info.run_id
    assert run.info.status == "FINISHED"
    assert run.data.tags["status"] == "finished"
    assert run.data.params["backend"] == "gptqmodel"
    assert "backend: gptqmodel -> other" in run.data.tags["changed_params"]
    # a figure that became smaller wins although its trial ended at the same moment
    outputs.run(record("k1", ratio=1.01, backend="other", ended=ENDED))
    [run] = outputs.children().values()
    assert run.data.metrics["ppl_ratio"] == 1.01


def test_runs_of_one_name_are_told_apart_at_the_end(outputs: Outputs):
    def drawn(key: str, seed: int):
        return record(key, config={"calibration": {"name": "python_docs", "seed": seed}})

    assert outputs.run(drawn("k1", 1), drawn("k2", 2)) == []
    names = {key: run.info.run_name for key, run in outputs.children().items()}
    assert names == {"k1": "pocket gptq 4-bit seed=1", "k2": "pocket gptq 4-bit seed=2"}
    tags = outputs.parent().data.tags
    assert tags["best_trial"] == "none" and "no winner" in tags["answer"]
    assert "best_quality_per_gb" not in outputs.parent().data.metrics


def test_nothing_is_logged_where_tracking_is_off(tmp_path: Path):
    tracker = MLflowTracker(enabled=False)
    tracker.start(SweepFolder("demo", "c", tmp_path, tmp_path))
    tracker.log(typed(record()))
    tracker.finish([typed(record())])
    assert list(tmp_path.iterdir()) == []


def test_the_users_own_tracker_is_left_alone(outputs: Outputs, monkeypatch, dead_uri: str):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead_uri)
    assert outputs.run(record()) == []
    assert len(outputs.runs()) == 2


def test_an_experiment_says_what_kind_it_is_and_keeps_what_somebody_chose(outputs: Outputs):
    client = client_of(outputs.place.uri)

    def tags(name: str) -> dict:
        return client.get_experiment_by_name(name).tags

    outputs.run(record())
    assert tags("qsweep")["mlflow.experimentKind"] == "custom_model_development"
    for name, before in (("plain", {}), ("chosen", {"mlflow.experimentKind": "regression"})):
        client.create_experiment(name, tags=before)
        Outputs(outputs.root, None, f"in-{name}", name).run(record())
    assert tags("plain")["mlflow.experimentKind"] == "custom_model_development"
    assert tags("chosen")["mlflow.experimentKind"] == "regression"


def test_the_view_is_there_while_the_sweep_still_runs(outputs: Outputs):
    outputs.write(record())
    log = SweepLog(outputs.directory, outputs.place, outputs.root)
    log.log_missing([typed(record())])
    log.close()
    page = ui_page(outputs.config, outputs.directory, outputs.root)
    assert page and page.startswith("http://127.0.0.1:5000/#/experiments/1/runs?viewStateShareKey=")
    experiment = client_of(outputs.place.uri).get_experiment_by_name("qsweep")
    columns = json.loads(experiment.tags["mlflow.sharedViewState.qsweep"])["selectedColumns"]
    assert "metrics.`ppl_ratio`" in columns


def test_an_interrupted_sweep_is_shown_as_such(outputs: Outputs):
    outputs.run(record(), interrupted=True)
    assert outputs.parent().info.status == "KILLED"
    outputs.run(record())
    assert outputs.parent().info.status == "FINISHED"


# what goes wrong


def test_an_unreachable_tracker_costs_one_line_and_loses_nothing(
    outputs: Outputs, dead_uri: str, capsys
):
    away = Outputs(outputs.root, dead_uri)
    began = time.monotonic()
    said = away.run(record("k1"), record("k2", bits=3))
    assert time.monotonic() - began < 20
    assert 1 <= len(said) <= 2
    assert f"{dead_uri}: connection refused" in said[0]
    assert "qsweep sync" in said[-1]
    assert sync.main(["--outputs", str(outputs.root)]) == 1
    assert "connection refused" in capsys.readouterr().err
    elsewhere = ["--outputs", str(outputs.root), "--uri", outputs.place.uri, "demo"]
    assert sync.main(elsewhere) == 0
    assert capsys.readouterr().out == "demo: 2 trials logged\n"
    assert sync.main(elsewhere) == 0
    assert capsys.readouterr().out == "nothing to do: everything is logged\n"
    assert len(outputs.runs()) == 3
    assert outputs.parent().info.status == "FINISHED"


def test_a_missing_database_driver_is_named(outputs: Outputs):
    secret = Outputs(outputs.root, "postgresql+nosuchdriver://me:s3cret@127.0.0.1:1/db")
    said = secret.run(record("k1"))
    assert said
    assert not any("s3cret" in line or "\n" in line for line in said)


def test_the_next_run_of_any_sweep_logs_what_an_earlier_one_could_not(outputs: Outputs):
    earlier = Outputs(outputs.root, None, name="earlier")
    earlier.write(record("k1", sweep="earlier"))
    Journal(earlier.directory, earlier.place).open(complete=True)
    outputs.run(record("k1"))
    named = sorted(run.info.run_name for run in outputs.runs() if "qsweep.sweep" in run.data.tags)
    assert named == ["demo", "earlier"]
    assert len(outputs.runs()) == 4


@pytest.mark.parametrize(
    "moment",
    ["Client._log_batches", "Client._log_artifacts", "Journal.mark"],
)
def test_kill_9_in_the_middle_of_logging_doubles_nothing(outputs: Outputs, moment: str):
    outputs.write(record("k1"), record("k2", bits=3))
    owner, _, name = moment.partition(".")

    def log():
        where = {"Client": Client, "Journal": Journal}[owner]
        setattr(where, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        sync_sweep(outputs.directory, outputs.place, outputs.root)

    (process := forked(log)).join(120)
    assert process.exitcode == -signal.SIGKILL
    assert len(outputs.runs()) == 2
    assert sync_sweep(outputs.directory, outputs.place, outputs.root) == 2
    assert len(outputs.runs()) == 3
    assert outputs.children()["k1"].info.status == "FINISHED"
    client = client_of(outputs.place.uri)
    history = client.get_metric_history(outputs.children()["k1"].info.run_id, "ppl")
    assert len(history) == 1


def test_a_sweep_deleted_in_the_ui_is_logged_anew_when_it_goes_on(outputs: Outputs):
    outputs.run(record("k1"), record("k2", bits=3))
    client = client_of(outputs.place.uri)
    for run in outputs.runs():
        client.delete_run(run.info.run_id)
    outputs.run(record("k1"), record("k2", bits=3))
    assert outputs.runs() == []  # nothing new: what was deleted on purpose stays deleted
    outputs.run(record("k1"), record("k2", bits=3), record("k3", bits=8))
    assert outputs.children().keys() == {"k1", "k2", "k3"}
    assert outputs.parent().data.metrics["trials_finished"] == 3


def test_a_database_that_is_gone_counts_as_empty(outputs: Outputs):
    content = record("k1")
    outputs.run(content)
    (outputs.root / "mlflow.db").unlink()
    log = SweepLog(outputs.directory, outputs.place, outputs.root)
    assert not log.is_logged(typed(content))
    log.close()


def test_a_run_deleted_in_the_ui_is_not_written_to(outputs: Outputs):
    outputs.run(record("k1"))
    old = outputs.children()["k1"].info.run_id
    client_of(outputs.place.uri).delete_run(old)
    outputs.run(record("k1"))
    assert outputs.children() == {}  # deleted on purpose: it stays deleted
    outputs.run(record("k1", ratio=1.01))
    assert outputs.children()["k1"].info.run_id != old


def test_a_deleted_experiment_is_one_clear_line(outputs: Outputs):
    outputs.run(record("k1"))
    client = client_of(outputs.place.uri)
    client.delete_experiment(client.get_experiment_by_name("qsweep").experiment_id)
    said = outputs.run(record("k2"))
    assert any("experiment 'qsweep' is deleted" in line for line in said)


def test_one_process_logs_a_sweep_at_a_time(outputs: Outputs, capsys):
    outputs.write(record("k1"))
    Journal(outputs.directory, outputs.place).open(complete=True)
    with logger_lock(outputs.directory):
        assert sync.main(["--outputs", str(outputs.root)]) == 1
        assert f"is being logged by {os.getpid()} on" in capsys.readouterr().err
    assert sync.main(["--outputs", str(outputs.root)]) == 0


def test_a_half_written_record_keeps_no_other_out(outputs: Outputs):
    outputs.write(record("k1"))
    (outputs.directory / "trials" / "k2.json").write_text('{"key": "k2", "sta')
    (outputs.directory / "trials" / "k3.json").write_text("[1]")
    assert sync_sweep(outputs.directory, outputs.place, outputs.root) == 1


def test_a_record_that_the_tracker_refuses_keeps_no_other_out(outputs: Outputs, capsys):
    bad = record("k0", name="x\x00y" * 400)
    bad["measurements"][0]["metrics"] |= {"a" * 300: 1.0}
    bad["status"] = "finished"
    outputs.write(bad, record("k1"))
    Journal(outputs.directory, outputs.place).open(complete=True)
    sync.main(["--outputs", str(outputs.root)])
    assert "k1" in outputs.children()


def test_sync_without_anything_to_do(tmp_path: Path, capsys):
    assert sync.main(["--outputs", str(tmp_path)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    (tmp_path / "sweeps" / "mine" / "trials").mkdir(parents=True)
    assert sync.main(["--outputs", str(tmp_path), "mien"]) == 2
    assert "no sweep 'mien'" in capsys.readouterr().err


def test_sync_answers_quickly_when_all_is_logged(outputs: Outputs):
    outputs.run(record("k1"))
    began = time.monotonic()
    done = python("-m", "qsweep.sync", "--outputs", str(outputs.root))
    assert (done.returncode, done.stdout) == (0, "nothing to do: everything is logged\n")
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_a_server_that_dies_in_mid_sweep_loses_nothing(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    server = start_server(tmp_path, port)
    try:
        outputs = Outputs(tmp_path / "outputs", uri)
        outputs.write()
        said: list[str] = []
        tracker = outputs.start(said)
        first = record("k1")
        outputs.write(first)
        tracker.log(typed(first))
        wait_until(lambda: outputs.children().get("k1") and is_marked(outputs, "k1"))
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        records = [first, record("k2", bits=3), record("k3", "failed", bits=8)]
        for content in records[1:]:
            outputs.write(content)
            tracker.log(typed(content))
        began = time.monotonic()
        tracker.finish(typed(records))
        assert time.monotonic() - began < 40
        assert "connection refused" in said[0]
        assert sync.main(["--outputs", str(outputs.root)]) == 1
        server = start_server(tmp_path, port)
        capsys.readouterr()
        assert sync.main(["--outputs", str(outputs.root)]) == 0
        assert capsys.readouterr().out == "demo: 2 trials logged\n"
        assert {k: r.info.status for k, r in outputs.children().items()} == {
            "k1": "FINISHED",
            "k2": "FINISHED",
            "k3": "FAILED",
        }
        assert outputs.parent().info.status == "FAILED"
        names = client_of(uri).list_artifacts(outputs.children()["k2"].info.run_id)
        assert "config.yaml" in {item.path for item in names}
        assert len(outputs.runs()) == 4
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def is_marked(outputs: Outputs, key: str) -> bool:
    content = json.loads((outputs.directory / "tracking.json").read_text())
    return any(key in log["runs"] for log in content["logs"].values())
