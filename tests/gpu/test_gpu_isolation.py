"""Trials that die on a GPU: named, their memory free, and the next one runs."""

import sys
from pathlib import Path

import pytest

from qsweep.launch import Job
from qsweep.launch.gpus import visible_gpus
from qsweep.launch.local import ForkServer, make_slots, run_jobs
from qsweep.launch.local.slots import Slots

pytestmark = pytest.mark.gpu

# What other processes on the same GPU may take or give back meanwhile.
SLACK = 256 << 20


@pytest.fixture(scope="module")
def server(cuda):
    # With everything preloaded that trials get: none of it may have touched CUDA.
    here = str(Path(__file__).parent)
    sys.path.insert(0, here)
    with ForkServer() as running:
        yield running
    sys.path.remove(here)


@pytest.fixture
def run(server, tmp_path):
    def run(function, payload=None, **options):
        job = Job(
            id=function,
            name=function,
            target=f"gpu_targets:{function}",
            payload=payload or {},
            log=tmp_path / f"{function}.log",
            device="cuda",
            **options,
        )
        return run_jobs([job], slots=make_slots(1, ["cuda"]), server=server)[function]

    return run


def test_a_forked_job_has_cuda_to_itself(run):
    done = run("free_memory")
    assert done.status == "finished", done.reason
    assert done.result["touched"] is False
    assert done.result["total"] == 256**3


@pytest.mark.parametrize(
    ("function", "options", "reason"),
    [
        ("take_all", {}, "out of GPU memory"),
        ("read_what_is_not_there", {}, "CUDA error"),
        ("index_out_of_range", {}, "CUDA error"),
        ("die_in_a_kernel", {}, "killed by signal 9"),
        ("hang_in_a_kernel", {"timeout_s": 15.0}, "15"),
    ],
)
def test_whatever_kills_a_trial_is_named_and_its_memory_is_free(run, function, options, reason):
    before = run("free_memory").result["free"]
    died = run(function, **options)
    assert died.status == "failed"
    assert reason in died.reason
    after = run("free_memory")
    assert after.status == "finished", after.reason
    assert after.result["total"] == 256**3
    assert after.result["free"] > before - SLACK


def test_two_trials_share_a_gpu(server, tmp_path):
    folder = tmp_path / "there"
    folder.mkdir()
    jobs = [
        Job(
            id=name,
            name=name,
            target="gpu_targets:meet",
            payload={"folder": str(folder), "name": name},
            log=tmp_path / f"{name}.log",
            device="cuda",
        )
        for name in ("one", "two")
    ]
    first = visible_gpus()[:1]
    slots = Slots(count=2, gpus=tuple(first), per_gpu=2)
    done = run_jobs(jobs, slots=slots, server=server)
    assert [r.status for r in done.values()] == ["finished"] * 2, [r.reason for r in done.values()]
    assert {r.result["sum"] for r in done.values()} == {2.0 * (1 << 26)}
    assert {r.result["visible"] for r in done.values()} == set(first)


def test_peak_memory_is_the_allocators(run):
    size = 300_000_000
    done = run("peaks", {"bytes": size})
    assert done.status == "finished", done.reason
    # The allocator rounds to 512 bytes, and large blocks to 2 MiB.
    assert size / 1e9 <= done.result["peak"] <= (size + (4 << 20)) / 1e9
    assert done.result["small"] <= done.result["again"] <= done.result["small"] + 0.01
    assert done.result["again"] == pytest.approx(done.result["allocator"])
