"""A real Ray cluster of three nodes, and what dies in it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from helpers.launch_cases import (
    ENDINGS,
    PAYLOAD,
    all_gone,
    check_ending,
    check_order,
    check_progress,
    check_result,
    check_unknown,
    job_of,
    pids_of,
)
from helpers.machine import alive, wait_until
from helpers.ray_cluster import RayCluster
from helpers.sweeps import command, qsweep, rows
from qsweep.base.errors import ConfigError
from qsweep.launch import Job
from qsweep.launch.local.slots import cores
from qsweep.launch.ray import RayLauncher
from qsweep.launch.ray import run as run_module
from qsweep.launch.tree import children, stat_fields

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
HERE = Path(__file__).parents[1]
NODES = {
    "head": {"cpus": 1},
    "a": {"cpus": 2, "gpus": 2},
    "b": {"cpus": 2},
}


def start(cluster, name):
    # Node b does not see what the others have in this folder.
    private = cluster.folder / "private"
    private.mkdir(exist_ok=True)
    hide = f'mount -t tmpfs none {private} && exec "$@"'
    wrapper = ("unshare", "--mount", "sh", "-c", hide, "sh") if name == "b" else ()
    cluster.start(name, labels={"kind": name}, wrapper=wrapper, **NODES[name])


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray", reason='pip install "qsweep[ray]"')
    if os.getuid() or not shutil.which("unshare"):
        pytest.skip("a node with a file system of its own needs root and unshare")
    made = RayCluster()
    try:
        for name in NODES:
            start(made, name)
        # A head that is gone is given up after a minute; here sooner.
        impatient = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
        with mock.patch.dict(os.environ, made.environment | impatient):
            yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def make(cluster):
    """A launcher whose nodes import nothing before the first job."""
    made = []

    def launcher(**options):
        one = RayLauncher(**{"address": cluster.address, "num_cpus": 1} | options)
        one._preload = ()
        made.append(one)
        return one

    yield launcher
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def launcher(make):
    return make()


@pytest.fixture
def job(tmp_path):
    return partial(job_of, tmp_path, device="cpu")


# What every launcher does


def test_capacity_is_what_the_nodes_have_room_for(launcher):
    launcher.prepare()
    every, on_gpus = launcher.capacity(["cpu"]), launcher.capacity(["auto"])
    assert (every.jobs, on_gpus.jobs) == (5, 2)
    assert 1e8 < on_gpus.memory_bytes < every.memory_bytes < 1e13
    with pytest.raises(ConfigError, match="device=gpu"):
        launcher.capacity(["gpu"])


def test_jobs_end_as_they_do_on_this_machine(launcher, job, capfd):
    jobs = [job(f, p, id=f"{f} {n}") for n, (f, p, *_) in enumerate(ENDINGS)]
    jobs += [job("echo", PAYLOAD), job("speak"), job("big", {"bytes": 3_000_000})]
    jobs.append(job("steps", {"steps": 5, "pause": 1.0}))
    events = []
    results = launcher.run(jobs, on_event=events.append)
    for one, (function, _, status, reason) in zip(jobs, ENDINGS, strict=False):
        check_ending(function, status, reason, results[one.id], one.log)
    check_result(results["echo"])
    assert results["echo"].result == PAYLOAD
    assert len(results["big"].result["text"]) == 3_000_000
    check_progress([event for event in events if event.job.id == "steps"], to_the_end=False)
    text = job("speak").log.read_text()
    for line in ("python out", "python err", "descriptor out", "shell err", "mind the gap"):
        assert line in text
    assert capfd.readouterr() == ("", "")


def test_needs_and_what_cannot_run(launcher, job):
    check_order(launcher.run, job)
    check_unknown(launcher.run, job)


def test_a_job_has_the_gpus_that_ray_gives_it_and_its_share_of_the_cores(make, job):
    one, every = make(num_cpus="auto"), make(num_gpus=0.5)
    devices = ("auto", "cpu", "cuda", "all", "cuda:1")
    found = one.run([job("surroundings", id=device, device=device) for device in devices])
    seen = {
        name: [
            result.result["environment"].get(variable)
            for variable in ("QSWEEP_DEVICE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
        ]
        for name, result in found.items()
        if result.status == "finished"
    }
    assert seen.pop("cpu") == ["cpu", "", "1"]
    assert seen.pop("all") == ["cuda", "0,1", "2"]
    for values in seen.values():
        assert values in (["cuda:0", "0", "1"], ["cuda:0", "1", "1"])
    assert list(seen) == ["auto", "cuda"]
    assert found["cuda:1"].status == "skipped" and "use device=cuda" in found["cuda:1"].reason
    environment = found["cpu"].result["environment"]
    assert not [name for name in environment if name.startswith("RAY_")]
    assert every.capacity(["auto"]).jobs == 2  # two cores, for all that GPUs are divided
    assert make(num_cpus=0.5, num_gpus=0.5).capacity(["auto"]).jobs == 4


def test_jobs_follow_what_they_need(make, job, cluster):
    # Ray itself prefers the head, where this process is, as long as that has room.
    jobs = [job("server", {"seconds": 1}, id=id) for id in ("on the head", "elsewhere")]
    needs = ("elsewhere", "on the head")
    results = make().run([*jobs, job("server", id="follows", needs=needs)])
    nodes = {id: cluster.node_of(result.result["server"]) for id, result in results.items()}
    assert nodes["elsewhere"] != nodes["on the head"]
    assert nodes["follows"] == nodes["elsewhere"]


def test_the_log_comes_back_from_where_it_cannot_be_seen(make, cluster, job):
    folder = cluster.folder / "private" / "logs"
    jobs = [
        Job(name, name, f"launch_targets:{name}", {}, folder / f"{name}.log", device="cpu")
        for name in ("speak", "fail")
    ]
    results = make(labels={"kind": "b"}).run(jobs)
    assert [result.status for result in results.values()] == ["finished", "failed"]
    assert "shell err" in (folder / "speak.log").read_text()
    assert "Traceback" in (folder / "fail.log").read_text()


def test_overhead(make, job):
    launcher = make(n_jobs=2)
    for n in (10, 50):
        began = time.monotonic()
        results = launcher.run([job("echo", {"n": n}, id=str(n)) for n in range(n)])
        each = (time.monotonic() - began) / n
    assert all(result.status == "finished" for result in results.values())
    print(f"{each:.3f} s for each job")
    assert each < 0.3


def test_from_outside_through_rays_client(make, job, cluster, tmp_path):
    if cluster.client_port is None:
        pytest.skip('pip install "ray[client]"')
    launcher = make(address=f"ray://127.0.0.1:{cluster.client_port}")
    assert launcher.capacity(["cpu"]).jobs == 5
    events = []
    jobs = [job("echo", PAYLOAD), job("fail"), job("steps", {"steps": 5, "pause": 0.3})]
    results = launcher.run([*jobs, job("server", needs=("echo",))], on_event=events.append)
    assert results["echo"].result == PAYLOAD and results["server"].status == "finished"
    assert results["fail"].reason == "RuntimeError: the first line"
    check_progress([event for event in events if event.job.id == "steps"], to_the_end=False)
    made = job("have_children", {"folder": str(tmp_path), "seconds": 1.5})

    def strike(pids):
        os.kill(parent_of(parent_of(pids[-1])), signal.SIGKILL)

    results, again, pids = while_it_runs(launcher, made, tmp_path, strike)
    assert results[made.id].status == "finished" and len(again) == 1
    assert all_gone(pids)


# Faults


def parent_of(pid):
    return int(stat_fields(pid)[1])


def while_it_runs(launcher, made, folder, strike, after=()):
    """Run a job of ``have_children``; strike when its first attempt has all of its processes."""
    events, first = [], []

    def act():
        first.extend(pids_of(folder))
        (folder / "seen").write_text(" ".join(map(str, first)))
        for name in ("pids", "forked"):
            (folder / name).unlink()
        strike(first)

    thread = threading.Thread(target=act)
    thread.start()
    results = launcher.run([made, *after], on_event=events.append)
    thread.join()
    return results, [e.step for e in events if e.kind == "restarted"], first


def test_a_killed_job_and_one_that_timed_out_leave_nothing(launcher, job, tmp_path):
    made = job("have_children", {"folder": str(tmp_path), "seconds": 60})
    results, again, pids = while_it_runs(
        launcher, made, tmp_path, lambda pids: os.kill(pids[-1], signal.SIGKILL)
    )
    assert results[made.id].reason == "killed by signal 9 (SIGKILL); out of memory?"
    assert again == [] and len(pids) == 6 and all_gone(pids)
    made = job("have_children", made.payload, timeout_s=1.5)
    results, again, pids = while_it_runs(launcher, made, tmp_path, lambda pids: None)
    assert results[made.id].reason == "timed out after 1.5 s"
    assert again == [] and all_gone(pids)


def test_a_job_whose_ray_worker_was_killed_runs_again(launcher, job, tmp_path):
    made = job("have_children", {"folder": str(tmp_path), "seconds": 1.5})

    def strike(pids):
        os.kill(parent_of(parent_of(pids[-1])), signal.SIGKILL)

    results, again, pids = while_it_runs(launcher, made, tmp_path, strike)
    assert results[made.id].status == "finished"
    assert len(again) == 1 and again[0].startswith("its Ray worker died (")
    assert all_gone(pids)


def test_a_job_that_always_kills_its_ray_worker_fails_alone(make, job):
    results = make(max_attempts=2).run([job("kill_grandparent"), job("echo")])
    reason = results["kill_grandparent"].reason
    assert reason.startswith("its Ray worker died (") and reason.endswith("), in 2 attempts")
    assert job("kill_grandparent").log.read_text().endswith(f"qsweep: {reason}\n")
    assert results["echo"].status == "finished"


def test_a_job_whose_driver_was_killed_runs_again(launcher, job, tmp_path):
    made = job("have_children", {"folder": str(tmp_path), "seconds": 1.5})
    results, again, pids = while_it_runs(
        launcher, made, tmp_path, lambda pids: os.kill(launcher._driver.pid, signal.SIGKILL)
    )
    assert results[made.id].status == "finished"
    assert again == ["the Ray driver died: killed by signal 9 (SIGKILL); out of memory?"]
    assert all_gone(pids)


def test_an_interrupt_ends_the_jobs_within_seconds(make, job, tmp_path):
    launcher, struck = make(), []

    def strike(pids):
        struck.append(time.monotonic())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    made = job("have_children", {"folder": str(tmp_path), "seconds": 60})
    try:
        with pytest.raises(KeyboardInterrupt):
            while_it_runs(launcher, made, tmp_path, strike)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - struck[0] < 4
    pids = [int(pid) for pid in (tmp_path / "seen").read_text().split()]
    assert all_gone(pids, 4.0) and launcher._driver.pid is None


def test_other_versions_are_refused_node_by_node(make, job, monkeypatch):
    monkeypatch.setattr(run_module, "versions", lambda: {"qsweep": "9", "Python": "3.0"})
    events = []
    results = make().run([job("echo")], on_event=events.append)
    assert results["echo"].status == "failed"
    reason = results["echo"].reason
    assert reason.startswith("no node of the Ray cluster can run it: node ")
    assert "is not used: qsweep " in reason and " there, 9 here; Python 3." in reason
    assert len([event for event in events if event.kind == "restarted"]) == 3


def test_a_cluster_that_is_not_there_is_told_within_seconds():
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"^launch.address=127.0.0.1:1: ConnectionRefused"):
        RayLauncher(address="127.0.0.1:1").capacity(["cpu"])
    assert time.monotonic() - began < 20


def test_what_no_node_has_is_told_before_anything_runs(make, job):
    with pytest.raises(ConfigError, match="launch=ray: no node of the Ray cluster has 64 CPUs"):
        make(num_cpus=64).capacity(["cpu"])
    result = make(resources={"disk": 1}).run([job("echo")])["echo"]
    assert result.reason == "no node of the Ray cluster has 1 CPUs, 1 of disk"


# Whole commands

MAIN = """
import sys
from pathlib import Path
from qsweep.launch import Job
from qsweep.launch.ray import RayLauncher
folder = Path(sys.argv[2])
with RayLauncher(address=sys.argv[1]) as launcher:
    launcher._preload = ()
    launcher.prepare()
    (folder / "driver").write_text(str(launcher._driver.pid))
    payload = {"folder": str(folder), "seconds": 60}
    launcher.run([Job("c", "c", "launch_targets:have_children", payload, folder / "c.log",
                      device="cpu")])
"""


@pytest.mark.parametrize("killed", ["main", "main and driver"])
def test_killing_the_launching_process_ends_everything(cluster, tmp_path, killed):
    main = subprocess.Popen(
        [sys.executable, "-c", MAIN, cluster.address, str(tmp_path)], start_new_session=True
    )
    try:
        pids = pids_of(tmp_path)
        pids += [parent_of(pids[-1]), driver := int((tmp_path / "driver").read_text())]
        assert all(map(alive, pids))
    finally:
        main.kill()
        if killed != "main":
            os.kill(driver, signal.SIGKILL)
        main.wait()
    assert all_gone(pids, 8)


def measured(outputs):
    """All that is in a table but places, times, memory, and how a run that went on is labelled."""
    differs = re.compile(r"artifact|log|label|model_path|.*_s|peak_.*memory_gb")
    found = [{n: v for n, v in row.items() if not differs.fullmatch(n)} for row in rows(outputs)]
    assert len(found) == 8 and len(found[0]) > 90  # four trials on two corpora
    return found


def test_a_sweep_measures_the_same_and_goes_on_after_it_was_killed(cluster, tmp_path):
    arguments = ["-m", "quant=rtn", "bits=2,4,8", "n_jobs=1"]
    on_ray = ["launch=ray", f"launch.address={cluster.address}", f"launch.num_cpus={cores()}"]
    outputs = tmp_path / "ray"
    with (tmp_path / "out").open("wb") as out:
        main = subprocess.Popen(
            command(outputs, *arguments, *on_ray), stderr=out, start_new_session=True
        )
    try:
        finished = wait_until(lambda: b"finished" in (tmp_path / "out").read_bytes(), 200, 0.2)
        assert finished, (tmp_path / "out").read_text()
    finally:
        main.kill()
        main.wait()
    again = qsweep(outputs, *arguments, *on_ray)
    assert again.returncode == 0, again.stderr
    local = qsweep(tmp_path / "local", *arguments, env={"OMP_NUM_THREADS": str(cores())})
    assert local.returncode == 0, local.stderr
    assert measured(outputs) == measured(tmp_path / "local")
    assert not [path for path in outputs.rglob("session_*")]


def test_two_clusters_of_their_own_at_once(job, tmp_path, monkeypatch):
    # The folder for temporary files may have a long name; those of sockets must be short.
    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("FROM_THE_CALLER", "today")
    before = set(children())
    pair = [RayLauncher(num_cpus=1) for _ in range(2)]
    try:
        for one in pair:
            one._preload = ()
            one.prepare()
        folders = [Path(one._driver._folder.name) for one in pair]
        for n, one in enumerate(pair):
            assert one.capacity(["cpu"]).jobs == cores()
            made = [job("surroundings", id=f"s{n}"), job("speak", id=f"t{n}")]
            found = one.run(made)[f"s{n}"].result
            assert found["environment"]["FROM_THE_CALLER"] == "today"
            assert found["cwd"] == os.getcwd()
            assert "python out" in made[1].log.read_text()
    finally:
        for one in pair:
            one.close()
    assert set(children()) == before
    assert not any(folder.exists() for folder in folders)


# At the end, since of the cluster less and less is left


def test_a_job_whose_node_died_runs_again_on_another(make, job, cluster, tmp_path):
    made = job("have_children", {"folder": str(tmp_path), "seconds": 1.5})
    others = [job("echo", {"n": n}, id=str(n), needs=(made.id,)) for n in range(3)]
    results, again, pids = while_it_runs(
        make(labels={"kind": "!head"}),
        made,
        tmp_path,
        lambda pids: cluster.kill(cluster.node_of(pids[-1])),
        others,
    )
    assert [result.status for result in results.values()] == ["finished"] * 4
    assert len(again) == 1 and "died" in again[0]
    assert len(pids_of(tmp_path)) == 6  # of the second attempt
    assert all_gone(pids)


def test_a_head_that_died_fails_what_is_left_in_one_line(make, job, cluster, tmp_path):
    made = job("have_children", {"folder": str(tmp_path), "seconds": 60})
    results, again, pids = while_it_runs(
        make(), made, tmp_path, lambda _: cluster.kill("head"), [job("echo", needs=(made.id,))]
    )
    assert [result.status for result in results.values()] == ["failed"] * 2
    assert all("\n" not in result.reason for result in results.values())
    assert all_gone(pids, 15)
