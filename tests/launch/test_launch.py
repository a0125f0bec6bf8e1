"""Really killed, hanging and starving processes, and what the launcher makes of them."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from helpers.launch_cases import (
    ENDINGS,
    PAYLOAD,
    check_ending,
    check_order,
    check_progress,
    check_result,
    check_unknown,
    job_of,
)
from helpers.machine import alive, wait_until
from qsweep.base.errors import ConfigError
from qsweep.launch import Event
from qsweep.launch.gpus import parse_listing, parse_visible
from qsweep.launch.local import ForkServer, make_slots, run_jobs
from qsweep.launch.local import slots as slots_module
from qsweep.launch.local.slots import Placement, Slots, place_job, why_unplaceable
from qsweep.launch.reasons import explain, explain_exit, fatal_line

HERE = Path(__file__).parent
ONE = Slots(count=1)


@pytest.fixture(scope="module")
def server():
    sys.path.insert(0, str(HERE))
    with ForkServer(preload=()) as running:
        yield running
    sys.path.remove(str(HERE))


@pytest.fixture
def job(tmp_path):
    return partial(job_of, tmp_path)


@pytest.fixture
def run(server, job):
    def one(function, payload=None, *, slots=ONE, **options):
        made = job(function, payload, **options)
        return run_jobs([made], slots=slots, server=server)[made.id]

    return one


# What a job gets and gives


def test_result_comes_back_as_json(run):
    result = run("echo", PAYLOAD)
    check_result(result)
    assert result.result == PAYLOAD


def test_large_tensors_lie_in_huge_pages_unless_the_user_says_no(run, monkeypatch):
    switch = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not switch.exists() or "[never]" in switch.read_text():
        pytest.skip("this kernel has no huge pages to give")
    with_them = run("faults").result["faults"]
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    without = run("faults").result["faults"]
    if "[always]" in switch.read_text():
        pytest.skip("this kernel gives huge pages to all")
    # 64 MB in pages of 4 KB.
    assert without >= 2**14
    if with_them >= 2**14:
        pytest.skip("this machine has no huge page free")
    assert with_them < without / 4


def test_job_has_its_own_session_and_never_sees_the_callers_main(run, monkeypatch, tmp_path):
    monkeypatch.setenv("FROM_THE_CALLER", "today")
    monkeypatch.chdir(tmp_path)
    found = run("surroundings").result
    assert found["sid"] == found["pid"] != os.getpid()
    assert found["main"].endswith("launch/local/server.py")
    assert found["environment"]["FROM_THE_CALLER"] == "today"
    assert found["environment"]["CUDA_VISIBLE_DEVICES"] == ""
    assert found["environment"]["QSWEEP_DEVICE"] == "cpu"
    for name in ("OPENBLAS_NUM_THREADS", "PYTORCH_NVML_BASED_CUDA_CHECK"):
        assert found["environment"].get(name) == os.environ.get(name)
    assert found["cwd"] == str(tmp_path)


def test_large_payload_and_result_pass(run):
    assert len(run("big", {"bytes": 3_000_000, "ballast": "y" * 3_000_000}).result["text"]) == 3e6


def test_output_of_every_kind_goes_to_the_log(run, job, capfd):
    log = job("speak").log
    log.parent.mkdir()
    log.write_text("an older run\n")
    assert run("speak").status == "finished"
    text = log.read_text()
    for line in ("python out", "python err", "descriptor out", "shell err", "mind the gap"):
        assert line in text
    assert "an older run" not in text
    assert capfd.readouterr() == ("", "")


def test_progress_arrives_in_order(server, job):
    events: list[Event] = []
    made = job("steps", {"steps": 5, "pause": 0.05})
    run_jobs([made], slots=ONE, on_event=events.append, server=server)
    check_progress(events)


def test_a_flood_of_progress_does_not_block_the_job(server, job):
    def slow(event):
        time.sleep(0.3)

    results = run_jobs([job("flood")], slots=ONE, on_event=slow, server=server)
    assert results["flood"].result == {"done": True}
    # Each of 5,000 reports would take the reader 0.3 s.
    assert results["flood"].seconds < 10


# How a job may end


@pytest.mark.parametrize(("function", "payload", "status", "reason"), ENDINGS)
def test_one_line_says_what_killed_it(run, job, function, payload, status, reason):
    check_ending(function, status, reason, run(function, payload), job(function).log)


def test_results_that_are_not_json_are_named(run):
    assert "launch_targets:not_json returned what is not JSON" in run("not_json").reason
    assert run("not_a_dict").reason.endswith("returned list instead of a dict")


def test_unknown_targets_and_payloads_fail_alone(server, job):
    check_unknown(partial(run_jobs, slots=ONE, server=server), job)


@pytest.mark.parametrize("how", ["python", "torch", "crumbs"])
def test_out_of_memory_is_named(run, how):
    reason = run("beyond_the_limit", {"how": how}).reason
    assert reason.startswith("out of memory")


def test_peak_memory_is_the_jobs_own(run):
    small = run("echo").peak_host_memory_gb
    large = run("hold_memory", {"bytes": 300_000_000}).peak_host_memory_gb
    assert large - small == pytest.approx(0.3, abs=0.03)
    assert run("echo").peak_host_memory_gb < small + 0.03


def test_time_out_kills_what_cannot_be_asked(run, tmp_path):
    pid_file = tmp_path / "pid"
    started = time.monotonic()
    result = run("hang_in_c", {"pid_file": str(pid_file)}, timeout_s=0.5)
    assert result.status == "failed" and result.reason == "timed out after 0.5 s"
    assert time.monotonic() - started < 3
    assert not alive(int(pid_file.read_text()))


# What a job leaves behind


@pytest.mark.parametrize("end", ["result", "time-out"])
def test_nothing_of_a_job_outlives_it(run, tmp_path, end):
    limit = {"timeout_s": 1.5} if end == "time-out" else {}
    seconds = 60 if end == "time-out" else 0
    result = run("have_children", {"folder": str(tmp_path), "seconds": seconds}, **limit)
    assert result.status == ("failed" if end == "time-out" else "finished")
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 6
    assert wait_until(lambda: not any(map(alive, pids)))


def test_a_living_jobs_children_survive_another_jobs_end(server, job, tmp_path):
    long = job("have_children", {"folder": str(tmp_path), "seconds": 1.5})
    seen = []

    def look(done, _):
        if done.id == "sleep":
            pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
            seen.extend([pid for pid in pids if alive(pid)])

    short = job("sleep", {"seconds": 0.8})
    run_jobs([long, short], slots=Slots(count=2), on_done=look, server=server)
    assert len(seen) == 6


MAIN = """
import signal, sys, time
from pathlib import Path
from qsweep.launch import Job
from qsweep.launch.local import ForkServer, Slots, run_jobs
print("imported", flush=True)
# What a script's shell starts in the background is told to ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
folder = Path(sys.argv[1])
def record(job, result):
    (folder / f"{{job.id}}.done").write_text(result.status)
if __name__ == "__main__":
    jobs = [
        Job("first", "first", "launch_targets:echo", {{}}, folder / "first.log"),
        Job("second", "second", "launch_targets:have_children",
            {{"folder": str(folder), "seconds": 60}}, folder / "second.log"),
    ]
    server = ForkServer(preload=())
    server.start()
    (folder / "server").write_text(str(server.pid))
    try:
        run_jobs(jobs, slots=Slots(count={slots}), on_done=record, server=server)
    except KeyboardInterrupt:
        (folder / "interrupted").touch()
        sys.exit(130)
"""


@pytest.fixture
def whole_tree(tmp_path):
    """A launching process with a job that has descendants of every kind: it and their pids."""
    (tmp_path / "main.py").write_text(MAIN.format(slots=2))
    path = os.pathsep.join([str(HERE.parents[1] / "src"), str(HERE)])
    environment = os.environ | {"PYTHONPATH": path}
    main = subprocess.Popen(
        [sys.executable, "main.py", str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert wait_until(lambda: (tmp_path / "pids").exists(), 20)
    assert wait_until(lambda: (tmp_path / "first.done").exists(), 5)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    pids.append(int((tmp_path / "server").read_text()))
    assert all(map(alive, pids))
    yield main, pids
    if main.poll() is None:
        main.kill()
    main.wait()


def test_killing_the_launching_process_ends_everything(whole_tree):
    main, pids = whole_tree
    main.kill()
    assert wait_until(lambda: not any(map(alive, pids)), 2.0)


def test_killing_the_launching_process_and_its_group_ends_everything(whole_tree):
    main, pids = whole_tree
    os.killpg(main.pid, signal.SIGKILL)
    assert wait_until(lambda: not any(map(alive, pids)), 2.0)


def test_terminating_the_launching_process_ends_everything(whole_tree):
    main, pids = whole_tree
    main.terminate()
    assert wait_until(lambda: not any(map(alive, pids)), 2.0)


def test_interrupt_keeps_what_is_done_and_kills_the_rest(whole_tree, tmp_path):
    main, pids = whole_tree
    main.send_signal(signal.SIGINT)
    assert main.wait(5) == 130
    assert main.stdout.read().decode().splitlines() == ["imported"]  # once, and no traceback
    assert (tmp_path / "interrupted").exists()
    assert (tmp_path / "first.done").read_text() == "finished"
    assert not (tmp_path / "second.done").exists()
    assert wait_until(lambda: not any(map(alive, pids)), 2.0)


def test_an_interrupt_that_wakes_no_system_call_is_noticed(job, server):
    # As where it comes a moment before the wait begins: Python knows of it, the kernel's wait does
    # not. A signal to another thread leaves things so every time.
    def interrupt():
        time.sleep(0.5)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    started = time.monotonic()
    try:
        with ForkServer(preload=()) as own, pytest.raises(KeyboardInterrupt):
            own.start()
            threading.Thread(target=interrupt).start()
            run_jobs([job("sleep", {"seconds": 8})], slots=ONE, server=own)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 6


def test_death_while_importing_ends_the_server(tmp_path):
    (tmp_path / "slow_import.py").write_text("import time\ntime.sleep(30)\n")
    code = (
        "import time; from qsweep.launch.local import ForkServer\n"
        "s = ForkServer(preload=('slow_import',)); s.start(); print(s.pid, flush=True)\n"
        "time.sleep(30)"
    )
    environment = os.environ | {"PYTHONPATH": f"{HERE.parents[1] / 'src'}{os.pathsep}{tmp_path}"}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    ) as main:
        pid = int(main.stdout.readline())
        time.sleep(0.5)
        assert alive(pid)
        main.kill()
        assert wait_until(lambda: not alive(pid), 2.0)


# The fork server's own death


def test_server_killed_under_a_job_is_started_again(job, tmp_path, server):
    flag = tmp_path / "flag"
    events = []
    with ForkServer(preload=()) as own:
        jobs = [job("kill_server_once", {"flag": str(flag)}), job("echo", {"x": 1})]
        results = run_jobs(jobs, slots=ONE, on_event=events.append, server=own)
    assert results["kill_server_once"].result == {"attempt": 2}
    assert results["echo"].result == {"x": 1}
    assert [event.kind for event in events if event.kind == "restarted"] == ["restarted"]


def test_a_job_that_always_kills_the_server_fails_alone(job, tmp_path, server):
    flag = tmp_path / "flag"
    with ForkServer(preload=()) as own:
        bad = job("kill_server_once", {"flag": str(flag), "always": True})
        results = run_jobs([bad, job("echo", {"x": 1})], slots=ONE, server=own)
    reason = results["kill_server_once"].reason
    assert reason.startswith("the process that starts jobs died: killed by signal 9 (SIGKILL)")
    assert results["echo"].status == "finished"


def test_server_killed_from_outside_leaves_nothing(job, tmp_path, server):
    with ForkServer(preload=()) as own:
        made = job("have_children", {"folder": str(tmp_path), "seconds": 1.0})
        pids: list[int] = []

        def strike(event):
            if event.kind == "started" and not pids:
                assert wait_until(lambda: (tmp_path / "pids").exists())
                pids.extend(int(pid) for pid in (tmp_path / "pids").read_text().split())
                for name in ("pids", "forked"):
                    (tmp_path / name).unlink()
                os.kill(own.pid, signal.SIGKILL)

        results = run_jobs([made], slots=ONE, on_event=strike, server=own)
        assert results[made.id].status == "finished"  # at the second attempt
        assert wait_until(lambda: not any(map(alive, pids)))


def test_server_that_cannot_start_fails_every_job(job, tmp_path, server):
    (tmp_path / "deadly_import.py").write_text("import os\nprint('last words')\nos._exit(9)\n")
    sys.path.insert(0, str(tmp_path))
    try:
        with ForkServer(preload=("deadly_import",)) as own:
            results = run_jobs([job("echo"), job("skip")], slots=ONE, server=own)
    finally:
        sys.path.remove(str(tmp_path))
    for result in results.values():
        assert result.status == "failed"
        assert result.reason.startswith("the process that starts jobs died: exited with status 9")


@pytest.mark.parametrize(
    ("death", "words"),
    [
        ("os.kill(os.getpid(), 9)", "killed by signal 9 (SIGKILL); out of memory?"),
        ("raise Stop('no licence')", "exited with status 1 without a result; Stop: no licence"),
        ("os.abort()", "killed by signal 6 (SIGABRT)"),
    ],
)
def test_a_warning_is_not_taken_for_what_killed_the_server(job, tmp_path, server, death, words):
    (tmp_path / "warning_import.py").write_text(
        "import os, warnings\nclass Stop(BaseException):\n    __module__ = 'builtins'\n"
        f"warnings.warn('pynvml is deprecated', FutureWarning)\n{death}\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        with ForkServer(preload=("warning_import",)) as own:
            results = run_jobs([job("echo")], slots=ONE, server=own)
    finally:
        sys.path.remove(str(tmp_path))
    assert results["echo"].reason == f"the process that starts jobs died: {words}"


WARNING = "/x/cuda.py:61: FutureWarning: pynvml is deprecated\n  import pynvml\n"
TRACEBACK = (
    "Traceback (most recent call last):\n  File 'a.py', line 3, in <module>\n    f()\n"
    "ModuleNotFoundError: No module named 'x'\n"
)


@pytest.mark.parametrize(
    ("output", "status", "words"),
    [
        ("", 1, ""),
        (WARNING, 1, ""),
        (WARNING + TRACEBACK, 1, "ModuleNotFoundError: No module named 'x'"),
        (TRACEBACK + WARNING, 1, ""),
        (WARNING + TRACEBACK, -9, ""),
        ("Exception ignored in: <f>\n" + TRACEBACK, 1, ""),
        ("cannot import torch: no such file\n", -11, ""),
        ("Fatal Python error: Segmentation fault\n\nThread 0x1:\n  File x\n", -11,
         "Fatal Python error: Segmentation fault"),
        ("terminate called after throwing an instance of 'E'\n  what():  boom\n", -6, "boom"),
        ("python: error while loading shared libraries: libx.so: gone\n" + WARNING, 127,
         "python: error while loading shared libraries: libx.so: gone"),
        ("ValueError: http://me:s3cret@h\n", 1, ""),
        (TRACEBACK.replace("No module", "http://me:s3cret@h"), 1,
         "ModuleNotFoundError: http://***@h named 'x'"),
    ],
)  # fmt: skip
def test_last_words(output, status, words):
    assert fatal_line(output, status) == words


def test_a_preload_that_is_missing_is_left_to_the_jobs(job, server):
    with ForkServer(preload=("no_such_library",)) as own:
        results = run_jobs([job("echo")], slots=ONE, server=own)
    assert results["echo"].status == "finished"


# Order


def test_needs_come_first_and_their_failure_is_passed_on(server, job):
    check_order(partial(run_jobs, slots=ONE, server=server), job)


def test_jobs_that_cannot_be_ordered_are_refused(server, job):
    a, b = job("echo", id="a", needs=("b",)), job("echo", id="b", needs=("a",))
    with pytest.raises(ValueError, match="circle: a, b"):
        run_jobs([a, b], slots=ONE, server=server)
    with pytest.raises(ValueError, match="unknown jobs: nobody"):
        run_jobs([job("echo", needs=("nobody",))], slots=ONE, server=server)
    with pytest.raises(ValueError, match="same id"):
        run_jobs([job("echo"), job("echo")], slots=ONE, server=server)


def test_no_jobs_start_no_server():
    own = ForkServer()
    assert run_jobs([], slots=ONE, server=own) == {}
    assert own.pid is None


def test_slots_run_at_once_and_divide_the_threads(server, job):
    jobs = [job("sleep", {"seconds": 0.6}, id=f"sleep {n}") for n in range(3)]
    jobs.append(job("surroundings"))
    started = time.monotonic()
    results = run_jobs(jobs, slots=Slots(count=4, threads=3), server=server)
    assert time.monotonic() - started < 3 * 0.6 + 3
    begun = [result.started for result in results.values()]
    assert max(begun[:3]) - min(begun[:3]) < 0.6
    assert results["surroundings"].result["environment"]["OMP_NUM_THREADS"] == "3"


def test_an_error_of_the_caller_kills_the_jobs(job, tmp_path, server):
    pid_file = tmp_path / "pid"

    def burst(job, result):
        assert wait_until(lambda: pid_file.exists() and pid_file.read_text())
        raise OSError("no space left on device")

    jobs = [job("sleep", {"seconds": 60, "pid_file": str(pid_file)}), job("echo")]
    own = ForkServer(preload=())
    with pytest.raises(OSError, match="no space"):
        run_jobs(jobs, slots=Slots(count=2), on_done=burst, server=own)
    assert not alive(int(pid_file.read_text())) and own.pid is None


def test_nothing_grows_from_job_to_job(server, job):
    def descriptors():
        gc.collect()  # what tests before this one left in cycles is closed at some time of its own
        return len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{server.pid}/fd"))

    run_jobs([job("echo")], slots=ONE, server=server)
    before = descriptors()
    jobs = [job("echo" if n % 2 else "fail", id=str(n)) for n in range(20)]
    run_jobs(jobs, slots=Slots(count=2), server=server)
    assert descriptors() == before


@pytest.mark.slow
def test_overhead_with_the_real_libraries(job, server):
    with ForkServer() as own:
        run_jobs([job("echo")], slots=ONE, server=own)
        tasks = os.listdir(f"/proc/{own.pid}/task")
        names = [Path(f"/proc/{own.pid}/task/{t}/comm").read_text().strip() for t in tasks]
        assert [name for name in names if name != "jemalloc_bg_thd"] == names[:1]
        jobs = [job("echo", id=str(n)) for n in range(10)]
        started = time.monotonic()
        results = run_jobs(jobs, slots=ONE, server=own)
        each = (time.monotonic() - started) / len(jobs)
        found = run_jobs([job("surroundings")], slots=ONE, server=own)["surroundings"].result
        torch_jobs = [job("multiply", id="a"), job("multiply", id="b")]
        alone = run_jobs(torch_jobs, slots=ONE, server=own)["b"].result
        two = run_jobs(torch_jobs, slots=Slots(2, threads=1), server=own)["b"].result
    print(json.dumps({"overhead_s": each}))
    assert all(result.status == "finished" for result in results.values())
    assert found["cuda"] is False
    assert alone["sum"] == two["sum"] == 512.0**3
    assert two["threads"] == 1 <= alone["threads"]
    assert each < 0.3


# Devices


def test_visible_gpus_are_read_like_cuda_reads_them():
    assert parse_visible("") == parse_visible("-1") == parse_visible("NoDevFiles") == []
    assert parse_visible("2,0") == ["2", "0"]
    assert parse_visible("0,-1,1") == ["0"]
    assert parse_visible("GPU-8f1, MIG-77a") == ["GPU-8f1", "MIG-77a"]


def test_listings_of_nvidia_smi():
    plain = "GPU 0: NVIDIA H100 (UUID: GPU-aa)\nGPU 1: NVIDIA H100 (UUID: GPU-bb)\n"
    assert parse_listing(plain) == ["0", "1"]
    sliced = (
        "GPU 0: NVIDIA H100 (UUID: GPU-aa)\n  MIG 1g.10gb     Device  0: (UUID: MIG-11)\n"
        "  MIG 1g.10gb     Device  1: (UUID: MIG-22)\n"
    )
    assert parse_listing(sliced) == ["MIG-11", "MIG-22"]
    assert parse_listing("No devices found.\n") == []


def test_auto_is_one_job_per_gpu_and_one_on_the_cpu(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(slots_module.os, "sched_getaffinity", lambda _: set(range(8)))
    assert make_slots("auto", ["auto"], gpus=()) == Slots(1)
    assert make_slots(3, ["cpu"]) == Slots(3, threads=2)
    assert make_slots("auto", ["auto"], gpus="0123") == Slots(4, tuple("0123"), 1, 2)
    assert make_slots(6, ["auto"], gpus="0123") == Slots(6, tuple("0123"), 2, 1)
    assert make_slots("auto", ["cuda:1"], gpus="0123").count == 1
    assert make_slots("auto", ["all"], gpus="0123").count == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert make_slots(2, ["cpu"]).threads == 2
    for bad in (0, -1, True, "many", 1.5):
        with pytest.raises(ConfigError, match="n_jobs="):
            make_slots(bad, ["cpu"])
    with pytest.raises(ConfigError, match="device=gpu"):
        make_slots(1, ["gpu"])


def test_jobs_are_placed_on_free_gpus_only():
    slots = Slots(2, ("4", "7"))
    first = place_job(slots, "auto", [])
    second = place_job(slots, "cuda", [first])
    assert [first, second] == [Placement(("4",), "cuda:0"), Placement(("7",), "cuda:0")]
    assert place_job(slots, "auto", [first, second]) is None
    assert place_job(slots, "cuda:1", [first]) == second
    assert place_job(slots, "cuda:1", [second]) is None
    assert place_job(slots, "cpu", [first]) == Placement((), "cpu")
    assert place_job(slots, "all", []) == Placement(("4", "7"), "cuda")
    assert place_job(slots, "all", [first]) is None
    assert place_job(slots, "auto", [place_job(slots, "all", [])]) is None
    assert second.environment == {"CUDA_VISIBLE_DEVICES": "7", "QSWEEP_DEVICE": "cuda:0"}
    shared = Slots(4, ("4", "7"), per_gpu=2)
    assert place_job(shared, "auto", [first, second, first]) == second


def test_devices_that_are_not_there_skip_the_job(server, job):
    results = run_jobs([job("echo", device="cuda:1")], slots=Slots(1), server=server)
    assert results["echo"].status == "skipped"
    assert results["echo"].reason == "device=cuda:1: no CUDA GPU is visible"
    assert why_unplaceable(Slots(1, ("0",)), "cuda:1").startswith("device=cuda:1: only 1 GPU(s)")
    assert why_unplaceable(Slots(1, ("0",)), "auto") is why_unplaceable(Slots(1), "auto") is None


def test_pinned_gpu_reaches_the_job_under_its_own_name(run):
    found = run("surroundings", slots=Slots(1, ("4", "7")), device="cuda:1").result["environment"]
    assert (found["CUDA_VISIBLE_DEVICES"], found["QSWEEP_DEVICE"]) == ("7", "cuda:0")


# Reasons


def test_known_errors_are_called_by_their_name():
    class OutOfMemoryError(RuntimeError):
        pass

    class AcceleratorError(RuntimeError):
        pass

    gpu = explain(OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert gpu.startswith("out of GPU memory (OutOfMemoryError: CUDA out of memory.")
    assert explain(AcceleratorError("CUDA error: device-side assert triggered\nmore")) == (
        "CUDA error (AcceleratorError: CUDA error: device-side assert triggered)"
    )
    assert explain(MemoryError()) == "out of memory (MemoryError)"
    assert explain(ConfigError("plain words")) == "plain words"
    assert explain(KeyError("x")) == "KeyError: 'x'"
    assert len(explain(ValueError("x" * 9999))) < 330


def test_ends_without_words_are_explained(tmp_path):
    log = tmp_path / "log"
    log.write_text("terminate called\n  what():  std::bad_alloc\n")
    assert explain_exit(-6, kernel_oom=False, log=log) == "out of memory"
    assert explain_exit(-6, kernel_oom=False) == "killed by signal 6 (SIGABRT)"
    assert explain_exit(-9, kernel_oom=True) == (
        "out of memory (killed by the kernel: signal 9, SIGKILL)"
    )
    assert explain_exit(-40, kernel_oom=False) == "killed by signal 40 (unnamed)"
