"""What is made of Slurm's words: how an array is, and whether any of it will run yet."""

import pytest

from qsweep.base.errors import ConfigError
from qsweep.launch.slurm.array import Array, State, check_installed, in_words, why_hopeless

ARRAY = Array(("7",))


def states(*pairs):
    return [State(f"7_{n}", state, "", reason) for n, (state, reason) in enumerate(pairs)]


@pytest.mark.parametrize(
    "pairs",
    [
        [("RUNNING", "None")],
        [("PENDING", "Resources")],
        [("PENDING", "Priority"), ("FAILED", "NonZeroExitCode")],
        [("PENDING", "PartitionDown"), ("RUNNING", "None")],
        [("PENDING", "BeginTime")],  # queued again
        [("PENDING", "JobHeldUser")],  # who holds it can let it go
        [("PENDING", "ReqNodeNotAvail, UnavailableNodes:n2")],
        [("COMPLETING", "None")],
        [("SUSPENDED", "None")],
    ],
)
def test_as_long_as_one_worker_may_run_there_is_hope(pairs):
    assert why_hopeless(ARRAY, states(*pairs)) is None


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([], "Slurm job 7: ended: all workers have ended"),
        ([("CANCELLED", "None"), ("CANCELLED", "None")], "2 cancelled: all workers have ended"),
        ([("FAILED", "NonZeroExitCode")], "1 failed: all workers have ended"),
        ([("PENDING", "PartitionDown")], "1 pending (PartitionDown): it cannot start"),
        ([("PENDING", "(PartitionTimeLimit)"), ("COMPLETED", "None")], "PartitionTimeLimit"),
        ([("PENDING", "QOSMaxCpuPerJobLimit")], "QOSMaxCpuPerJobLimit"),
        ([("PENDING", "JobHeldAdmin")], "JobHeldAdmin"),
        ([("PENDING", "launch failed requeued held")], "launch failed requeued held"),
        ([("OUT_OF_MEMORY", "OutOfMemory")], "1 out of memory"),
    ],
)
def test_where_none_will_run_any_more_a_line_says_why(pairs, words):
    why = why_hopeless(ARRAY, states(*pairs))
    assert words in why
    assert "\n" not in why


def test_states_are_told_in_a_line():
    told = [
        State("7_0", "RUNNING", "n2", "None"),
        State("7_1", "RUNNING", "n1", "None"),
        State("7_2", "PENDING", "", "Resources"),
        State("7_3", "NODE_FAIL", "n3", "None"),
    ]
    assert in_words(ARRAY, told) == (
        "Slurm job 7: 2 running (n1, n2), 1 pending (Resources), 1 node fail (n3)"
    )


def test_of_several_submissions_all_are_told():
    assert in_words(Array(("7", "9")), []) == "Slurm jobs 7, 9: ended"


def test_where_slurm_is_not_installed_a_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no sbatch on this machine"):
        check_installed()


@pytest.mark.parametrize("text", [None, "", "{}", '{"jobs": 7}', "[]"])
def test_a_folder_that_records_no_workers_has_none(tmp_path, text):
    if text is not None:
        (tmp_path / "slurm.json").write_text(text)
    assert Array.recorded(tmp_path) == Array()


def test_of_many_nodes_some_are_named():
    told = in_words(ARRAY, [State(f"7_{n}", "RUNNING", f"n{n}") for n in range(9)])
    assert told == "Slurm job 7: 9 running (n0, n1, n2, n3, n4, n5, …)"
