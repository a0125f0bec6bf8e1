"""What every launcher must do, checked of whichever runs ``launch_targets``.

``job`` makes a job of one of these; ``run(jobs, **callbacks)`` is the launcher's.
"""

import time
from pathlib import Path

from helpers.machine import alive, wait_until
from qsweep.launch import Job


def job_of(folder: Path, function: str, payload=None, *, id=None, **options) -> Job:
    """A job of one of ``launch_targets``, which logs below a folder."""
    id = id or function
    return Job(
        id=id,
        name=f"name of {id}",
        target=f"launch_targets:{function}",
        payload=payload or {},
        log=folder / "logs" / f"{id}.log",
        **options,
    )


# A target, its payload, and what becomes of it.
ENDINGS = [
    ("fail", {}, "failed", "RuntimeError: the first line"),
    ("skip", {}, "skipped", "GGUF has no 7-bit type"),
    ("leave", {"code": 3}, "failed", "SystemExit: 3"),
    ("leave_hard", {"code": 0}, "failed", "exited with status 0 without a result"),
    ("leave_hard", {"code": 7}, "failed", "exited with status 7 without a result"),
    ("kill_itself", {"signal": 9}, "failed", "killed by signal 9 (SIGKILL); out of memory?"),
    ("kill_itself", {"signal": 15}, "failed", "killed by signal 15 (SIGTERM)"),
    ("segfault", {}, "failed", "killed by signal 11 (SIGSEGV)"),
    (
        "import_failure",
        {},
        "failed",
        "ModuleNotFoundError: No module named 'a_module_that_is_not_there'",
    ),
]


def check_result(result):
    """Of ``echo`` with this payload."""
    assert result.status == "finished" and result.reason is None
    assert 0 < result.seconds < 5
    assert 0.001 < result.peak_host_memory_gb < 1
    assert abs(result.started - time.time()) < 30


PAYLOAD = {"text": "ü\n", "number": 1.5, "none": None, "list": [1, [2]], "inf": float("inf")}


def check_ending(function, status, reason, result, log):
    """What one line says of an end, and the log."""
    assert (result.status, result.reason, result.result) == (status, reason, None)
    text = log.read_text()
    if reason.startswith(("killed", "exited")):
        assert text.endswith(f"qsweep: {reason}\n")
    if function == "segfault":
        assert "Fatal Python error: Segmentation fault" in text and "launch_targets.py" in text
    if function == "fail":
        assert "Traceback" in text and "the second line" in text
    if function == "skip":
        assert "Traceback" not in text


def check_progress(events, *, to_the_end=True):
    """Of a job that has sent these steps; a result may be faster than the last of them."""
    assert events[0].kind == "started" and events[-1].kind == "done"
    reports = [(event.step, event.share) for event in events if event.kind == "progress"]
    sent = [(f"step {n}", n / 5) for n in range(5)] + [("last", 1.0)]
    # Some may be overtaken by a later one before they are read.
    assert len(reports) >= 2 and reports == [report for report in sent if report in reports]
    assert not to_the_end or reports[-1] == ("last", 1.0)
    assert events[-1].result.status == "finished"


def check_unknown(run, job):
    """Targets, payloads and logs that cannot be fail alone."""
    odd = [
        job("no_such_function"),
        Job("module", "m", "no_such_module:x", {}, job("a").log, device="cpu"),
        job("echo", {"x": object()}, id="payload"),
        Job("log", "log", "launch_targets:echo", {}, Path("/proc/nowhere/x.log"), device="cpu"),
    ]
    results = run([*odd, job("echo")])
    assert results["no_such_function"].reason.startswith("AttributeError: module 'launch_targets'")
    assert "No module named 'no_such_module'" in results["module"].reason
    assert results["payload"].reason.startswith("its payload is not JSON: ")
    assert "/proc/nowhere" in results["log"].reason
    assert [result.status for result in results.values()] == ["failed"] * 4 + ["finished"]


def check_order(run, job):
    """Needs come first, and their failure is passed on."""
    done = []
    jobs = [
        job("echo", {"n": 1}, id="after", needs=("reference",)),
        job("echo", {}, id="reference"),
        job("fail", id="bad"),
        job("echo", id="after bad", needs=("reference", "bad")),
        job("echo", id="after that", needs=("after bad",)),
        job("skip", id="impossible"),
        job("echo", id="after impossible", needs=("impossible",)),
    ]
    results = run(jobs, on_done=lambda job, result: done.append(job.id))
    assert list(results) == [made.id for made in jobs]
    assert done.index("reference") < done.index("after")
    assert results["after"].result == {"n": 1}
    assert results["after bad"].status == results["after that"].status == "failed"
    assert (
        results["after bad"].reason
        == "needs name of bad, which failed: RuntimeError: the first line"
    )
    assert results["after bad"].seconds == 0
    assert results["after impossible"].status == "skipped"
    assert results["after impossible"].reason.endswith("was skipped: GGUF has no 7-bit type")


def pids_of(folder):
    """The processes of a job of ``have_children``, once they are all there."""
    assert wait_until(lambda: (folder / "pids").exists(), 60)
    return [int(pid) for pid in (folder / "pids").read_text().split()]


def all_gone(pids, seconds=5.0):
    """Whether none of some processes is left, within some time."""
    return wait_until(lambda: not any(map(alive, pids)), seconds)
