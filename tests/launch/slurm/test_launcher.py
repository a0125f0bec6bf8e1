"""What launch=slurm refuses, plans and submits, as far as no Slurm is needed for it."""

from pathlib import Path

import pytest

from qsweep.base.databases import sqlite_url
from qsweep.base.errors import ConfigError
from qsweep.base.mounts import kind_of
from qsweep.base.schema import build
from qsweep.launch import Launcher
from qsweep.launch.slurm import SlurmLauncher, describe
from qsweep.launch.slurm.array import Array
from qsweep.launch.slurm.launcher import last_words, workers_folder


def test_it_is_a_launcher_whose_options_are_those_of_queue_and_allocation(tmp_path):
    options = {"workers": "4", "partition": "gpu", "lease_s": 5, "outputs_dir": tmp_path}
    made = build(SlurmLauncher, options, "launch")
    assert isinstance(made, Launcher)
    assert (made.workers, made.partition, made.lease_s) == (4, "gpu", 5.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, "launch.workers=0"),
        ({"start": 2}, "launch.start: no such option"),  # of workers on this machine
        ({"per": "trial"}, "launch.per=trial"),
        ({"lease_s": 0}, "launch.lease_s=0"),
        ({"on_interrupt": "stop"}, "launch.on_interrupt=stop"),
        ({"time": "soon"}, "launch.time='soon'"),
    ],
)
def test_what_is_wrong_is_one_line(options, words):
    with pytest.raises(ConfigError) as caught:
        build(SlurmLauncher, options, "launch")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_sqlite_on_what_several_machines_may_share_is_refused():
    # /proc is no disk of this host either.
    made = SlurmLauncher(queue=sqlite_url(Path("/proc/not/there/queue.db")))
    with pytest.raises(ConfigError, match=r"\(proc\).*launch.queue=postgresql://"):
        made.check()
    assert kind_of(Path("/proc/not/there")) == "proc"


def test_a_server_may_be_anywhere(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    made = SlurmLauncher(queue="postgresql://me@db.example.org/qsweep")
    with pytest.raises(ConfigError, match="no sbatch"):  # and not the file system
        made.check()


@pytest.mark.parametrize(
    ("options", "at_once"),
    [
        ({}, 1),
        ({"workers": 8}, 8),
        ({"workers": 8, "gpus_per_node": 4}, 32),
        ({"workers": 8, "gres": "gpu:a100:4"}, 32),
        ({"workers": 8, "gres": "lscratch:100,gpu:2(S:0-1)"}, 16),
        ({"workers": 8, "gres": "gpu:a100"}, 8),
        ({"workers": 8, "gres": "gpu,lscratch:100"}, 8),
        ({"workers": 8, "gres": "lscratch:100"}, 8),
        ({"workers": 8, "array_parallelism": 2}, 2),
        ({"workers": 8, "gpus_per_node": 4, "per": "job"}, 8),
        ({"workers": 8, "gpus_per_node": 4, "n_jobs": 8}, 64),
    ],
)
def test_it_plans_for_the_workers_that_will_come(options, at_once):
    planned = SlurmLauncher(mem_gb=2, **options).expected(["auto"])
    assert planned.jobs == at_once
    assert planned.memory_bytes == min(options.get("workers", 1), at_once) * 2 << 30


@pytest.mark.parametrize("asked", [{"gpus_per_node": 1}, {"gres": "gpu:a100:2"}])
def test_gpus_that_no_trial_would_use_are_refused(asked):
    made = SlurmLauncher(**asked)
    with pytest.raises(ConfigError, match="give device=cuda, or leave"):
        made.expected(["cpu", "cpu"])
    assert made.expected(["cuda", "cpu"]).jobs >= 1
    assert SlurmLauncher().expected(["cpu"]).jobs == 1


def test_a_worker_of_its_own_job_takes_no_other():
    url = "postgresql://me@db.example.org/qsweep"
    assert SlurmLauncher().worker_command("s", url)[-2:] == ["s", f"--queue={url}"]
    own = SlurmLauncher(per="job", n_jobs=2).worker_command("s", url)
    assert own[-2:] == ["--take=1", "--jobs=1"]


def test_a_password_is_on_no_command_line():
    url = "postgresql://me:secret@db.example.org/qsweep"
    made = SlurmLauncher()
    assert "secret" not in " ".join(made.worker_command("s", url))
    assert made.worker_environment(url) == {"QSWEEP_QUEUE": url}


def test_last_words_are_the_workers_own(tmp_path):
    assert last_words(tmp_path) is None
    (tmp_path / "7_0_0_log.out").write_text(
        "submitit INFO (2026-01-01 00:00:00,000) - Starting with JobEnvironment(...)\n"
        "ModuleNotFoundError: No module named 'qsweep'\n"
        "slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED ***\n"
        "srun: error: n1: task 0: Exited with exit code 1\n"
    )
    assert last_words(tmp_path) == "ModuleNotFoundError: No module named 'qsweep'"


def test_where_slurm_does_not_answer_its_jobs_are_named_all_the_same(tmp_path, monkeypatch):
    assert describe(tmp_path, "s") == []
    folder = workers_folder(tmp_path, "s")
    folder.mkdir(parents=True)
    (folder / "slurm.json").write_text('{"jobs": ["7", "9"]}')
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Array.recorded(folder).jobs == ("7", "9")
    assert describe(tmp_path, "s") == ["Slurm jobs 7, 9: squeue: No such file or directory"]
