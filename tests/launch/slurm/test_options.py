"""What a worker asks Slurm for: how it is spelled, what is refused, and what sbatch is given."""

import pytest

from qsweep.base.errors import ConfigError
from qsweep.base.schema import build
from qsweep.launch.slurm.options import Allocation, minutes, parameters


def sbatch_lines(tmp_path, asked, workers=3):
    """The lines for sbatch that submitit makes of options; needs no Slurm."""
    slurm = pytest.importorskip("submitit.slurm.slurm")
    given = parameters(asked, "night", workers)
    renamed = slurm.SlurmExecutor._equivalence_dict()
    plain = {renamed.get(name, name.removeprefix("slurm_")): value for name, value in given.items()}
    if "mem" in plain:
        plain["mem"] = slurm._convert_mem(plain["mem"])
    text = slurm._make_sbatch_string("worker", tmp_path, map_count=workers, **plain)
    return text.splitlines()


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (90, 90),
        ("90", 90),
        ("1:30:00", 90),
        ("00:30:01", 31),
        ("45:00", 45),
        ("2-0", 2880),
        ("1-12:30", 2190),
        ("1-00:00:01", 1441),
        ("5000", 5000),
    ],
)
def test_times_are_spelled_as_slurm_spells_them(time, expected):
    assert minutes(time) == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"time": 14400}, "every time with colons in quotes"),  # what YAML makes of 4:00:00
        ({"time": "an hour"}, "is no time"),
        ({"time": "1:2:3:4"}, "is no time"),
        ({"time": 0}, "shortest is a minute"),
        ({"time": 1}, "signal_delay_s=90: seconds before the end of launch.time=1"),
        ({"signal_delay_s": -1}, "at least 0"),
        ({"cpus_per_task": 0}, "launch.cpus_per_task=0: must be more than 0"),
        ({"mem_gb": -4}, "launch.mem_gb=-4"),
        ({"array_parallelism": 0}, "launch.array_parallelism=0"),
        ({"additional_parameters": {"partition": "x"}}, "launch.partition"),
        ({"additional_parameters": {"--cpus_per_task": 2}}, "launch.cpus_per_task"),
        ({"additional_parameters": {"no-requeue": True}}, "launch.requeue"),
        ({"partitions": "x"}, "launch.partitions: no such option; did you mean 'partition'?"),
        ({"setup": "module load cuda"}, "launch.setup"),
    ],
)
def test_what_slurm_could_make_no_sense_of_is_refused_in_one_line(options, words):
    with pytest.raises(ConfigError) as caught:
        build(Allocation, options, "launch")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_option_reaches_sbatch(tmp_path):
    asked = Allocation(
        partition="a,b",
        account="me",
        qos="low",
        gres="gpu:a100:1",
        gpus_per_node=2,
        cpus_per_task=8,
        mem_gb=1.5,
        time="1-12:30",
        constraint="a100|h100",
        exclude="n[3-4]",
        setup=["module load cuda", "export A=1"],
        array_parallelism=2,
        signal_delay_s=120,
        additional_parameters={"mail-user": "me@example.org", "exclusive": True},
    )
    lines = sbatch_lines(tmp_path, asked)
    told = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert told >= {
        "partition=a,b",
        "account=me",
        "qos=low",
        "gres=gpu:a100:1",
        "gpus-per-node=2",
        "cpus-per-task=8",
        "mem=1536MB",
        "time=2190",
        "constraint='a100|h100'",
        "exclude='n[3-4]'",
        "array=0-2%2",
        "signal=USR2@120",
        "mail-user=me@example.org",
        "exclusive",
        "requeue",
        "job-name=night",
    }
    assert lines.index("module load cuda") < lines.index("export A=1") < len(lines) - 3
    srun = next(line for line in lines if line.startswith("srun"))
    assert "--cpus-per-task=8" in srun  # which srun does not take over from sbatch


def test_further_options_come_last_however_they_are_spelled(tmp_path):
    more = {"job-name": "mine", "--mail_user": "me@example.org", "reservation": None}
    lines = sbatch_lines(tmp_path, Allocation(additional_parameters=more))
    told = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")]
    assert "mail-user=me@example.org" in told
    assert [line for line in told if line.startswith("job-name")] == ["job-name=mine"]
    assert not any("reservation" in line for line in told)


def test_names_of_digits_are_names(tmp_path):
    made = build(Allocation, {"account": 4711, "partition": 2, "exclude": 7}, "launch")
    assert (made.account, made.partition, made.exclude, made.qos) == ("4711", "2", "7", None)


def test_what_is_not_given_is_left_to_the_cluster(tmp_path):
    lines = sbatch_lines(tmp_path, Allocation(requeue=False), workers=2)
    told = " ".join(line for line in lines if line.startswith("#SBATCH"))
    for name in ("partition", "account", "qos", "gres", "gpus", "cpus", "mem", "constraint"):
        assert f"--{name}" not in told
    assert "--no-requeue" in told
    assert "--array=0-1%2" in told
    assert "--time=240" in told
