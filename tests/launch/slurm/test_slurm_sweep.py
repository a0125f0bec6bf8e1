"""A whole sweep on a cluster of two nodes: the same figures as at home, and what Ctrl-C does."""

import json
import signal
import subprocess
import time

import pytest

from helpers import sweeps
from helpers.slurm import Slurm, cluster, slurm, until  # noqa: F401
from qsweep.commands.main import main
from qsweep.launch.slurm import describe
from qsweep.launch.slurm.array import Array
from qsweep.launch.slurm.launcher import workers_folder

pytestmark = pytest.mark.cluster
pytest.importorskip("submitit")

SWEEP = ["-m", "quant=rtn,gptq", "bits=4,8", "eval.presets=[paper]", "n_jobs=1"]
ON_SLURM = ["launch=slurm", "launch.workers=2", "launch.time=20", "launch.cpus_per_task=2"]
# When, where and with how much memory, and not what was measured.
_PASSING = ("quantize_s", "evaluate_s", "shared_s", "peak_memory_gb", "peak_host_memory_gb")
_PLACES = ("artifact", "log")


def figures(outputs):
    """The rows of a sweep without what differs from one run to the next."""
    kept = []
    for row in sweeps.rows(outputs):
        places = {name: row[name].replace(str(outputs), "") for name in _PLACES}
        kept.append({k: v for k, v in row.items() if k not in _PASSING} | places)
    return sorted(kept, key=json.dumps)


def hashes(outputs):
    """What the store holds of artifacts: by key, the hashes of their files."""
    manifests = (outputs / "store" / "artifacts").rglob("manifest.json")
    return {
        manifest.parent.name: {
            name: stamp["sha256"]
            for name, stamp in json.loads(manifest.read_text())["files"].items()
        }
        for manifest in manifests
    }


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
def test_two_nodes_measure_what_one_process_tree_does(tmp_path, slurm, where, request):  # noqa: F811
    options = []
    if where == "postgresql":
        options = [f"launch.queue={request.getfixturevalue('postgresql')}"]
    home, away = tmp_path / "home", tmp_path / "away"
    done = sweeps.qsweep(home, *SWEEP)
    assert done.returncode == 0, done.stderr
    done = sweeps.qsweep(away, *SWEEP, *ON_SLURM, *options)
    assert done.returncode == 0, done.stderr
    assert "submitted, Slurm job" in done.stderr
    assert len(figures(home)) == len(figures(away)) >= 4
    assert figures(home) == figures(away)
    assert hashes(home) == hashes(away) != {}
    until(lambda: not slurm.jobs(), 30, "the end of the workers")
    array = Array.recorded(workers_folder(away, "t"))
    assert describe(away, "t") == [f"{array}: 2 completed (n1, n2)"]


@pytest.fixture
def started(tmp_path, slurm: Slurm):  # noqa: F811
    """Start a sweep in a process of its own; what is left of it is ended."""
    processes = []

    def start(*options):
        command = sweeps.command(tmp_path / "outputs", *SWEEP, *ON_SLURM, *options)
        with (tmp_path / "said.txt").open("w") as said:
            process = subprocess.Popen(command, cwd=sweeps.ROOT, stdout=said, stderr=said)
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def running(slurm):  # noqa: F811
    return [id for id, state, *_ in slurm.jobs() if state == "RUNNING"]


@pytest.mark.parametrize("choice", ["cancel", "leave"])
def test_ctrl_c_cancels_the_workers_or_leaves_them(started, slurm, tmp_path, choice, capsys):  # noqa: F811
    outputs = tmp_path / "outputs"
    head = started(f"launch.on_interrupt={choice}")
    until(lambda: len(running(slurm)) == 2, 120, "the workers")
    logs = workers_folder(outputs, "t")
    until(lambda: any("started " in f.read_text() for f in logs.glob("*_log.out")), 120, "a job")
    head.send_signal(signal.SIGINT)
    assert head.wait(30) == 130
    said = (tmp_path / "said.txt").read_text()
    assert "Traceback" not in said
    if choice == "cancel":
        assert "withdrawn from the queue" in said
    else:
        assert "the same command collects the results" in said
        time.sleep(1)
        assert len(running(slurm)) == 2
        assert main(["status", "t", f"--outputs={outputs}"]) == 0
        told = capsys.readouterr().out
        assert "2 running" in told and "Slurm job" in told and "no worker is there" not in told
    again = started(f"launch.on_interrupt={choice}")  # at once: workers may still be ending
    assert again.wait(240) == 0, (tmp_path / "said.txt").read_text()
    submitted = "submitted, Slurm job" in (tmp_path / "said.txt").read_text()
    assert submitted == (choice == "cancel")
    assert {row["status"] for row in sweeps.rows(outputs)} == {"finished"}


def test_a_partition_that_does_not_exist_is_one_line(tmp_path, slurm):  # noqa: F811
    done = sweeps.qsweep(tmp_path, "quant=rtn", "bits=4", *ON_SLURM, "launch.partition=nowhere")
    assert done.returncode in (1, 2)
    said = [line for line in done.stderr.splitlines() if "sbatch says" in line]
    assert len(said) == 1 and "invalid partition specified: nowhere" in said[0]
    assert "Traceback" not in done.stderr
