"""``qsweep --config-name=budget`` on the embedded model, as a user runs it."""

import shlex
import shutil

import pytest

from helpers.sweeps import rows, run_here
from qsweep.api.composition import compose_trials
from qsweep.base.errors import QsweepError
from qsweep.commands import budget_run
from qsweep.commands.main import main
from qsweep.sweep.config import trial_config

SMALL = [
    *("--config-name=budget", "sweep=t", "tracking=none", "corpus=[python_docs]"),
    *("eval.max_windows=8", "calibration.num_samples=4"),
]
# Rounding is made in no time; what is chosen from is the same for all.
ROUNDED = ["quant=rtn", "bits=2,4", "group_size=64"]


def budget(outputs, *arguments):
    return run_here([*SMALL, f"outputs_dir={outputs}", *arguments])


def mixes(outputs):
    return [row for row in rows(outputs) if "rule" in row["name"] or "mix" in row["name"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")
    result = budget(outputs, *ROUNDED, "bpw=2.5,3.5", "budget.neighbours=0")
    assert result.returncode == 0, result.stdout + result.stderr
    return outputs, result


def test_mixes_are_within_their_budget_and_better_than_uniform(finished):
    outputs, result = finished
    page = (outputs / "sweeps/t/answer.md").read_text()
    mixed = mixes(outputs)
    for bits in (2.5, 3.5):
        line = next(li for li in result.stdout.splitlines() if li.startswith(f"bpw={bits}"))
        assert "better than the best uniform one that was measured, beyond noise" in line
        assert line in page.replace("\\", "")
    # Those of both budgets lie where they were asked for.
    found = sorted(float(row["bpw"]) for row in mixed)
    assert len(found) == 2 and 2.4 < found[0] <= 2.5 < 3.3 < found[1] <= 3.5


def test_the_answer_tells_what_was_chosen_and_what_was_predicted(finished):
    outputs, _ = finished
    page = (outputs / "sweeps/t/answer.md").read_text()
    for words in (
        "## 2.5 bits per weight",
        "| layers ",
        "Artifact: `",
        "times the predicted",
        "Chosen from pocket rtn 2-bit g64",
    ):
        assert words in page
    files = sorted((outputs / "sweeps/t/rules").iterdir())
    assert [file.name for file in files] == ["bpw-2.5.yaml", "bpw-3.5.yaml"]
    assert all("=bits:" in line for file in files for line in file.read_text().splitlines())
    # The command in the answer makes the very same.
    words = shlex.split(page.partition("The best mix by itself: `qsweep ")[2].partition("`")[0])
    trial = trial_config(compose_trials(words)[0])
    (name,) = {row["name"] for row in mixes(outputs) if float(row["bpw"]) < 2.5}
    assert trial.name == name


def test_the_same_command_makes_nothing_again(finished):
    outputs, first = finished
    before = {path: path.stat().st_mtime_ns for path in (outputs / "store").rglob("*.safetensors")}
    again = budget(outputs, *ROUNDED, "bpw=2.5,3.5", "budget.neighbours=0")
    assert again.returncode == 0
    after = {path: path.stat().st_mtime_ns for path in (outputs / "store").rglob("*.safetensors")}
    assert before == after
    lines = [li for li in first.stdout.splitlines() if li.startswith("bpw=")]
    assert lines == [li for li in again.stdout.splitlines() if li.startswith("bpw=")]


def test_another_budget_takes_what_is_there(finished, tmp_path):
    outputs, _ = finished
    shutil.copytree(outputs / "store", tmp_path / "store")
    made = {path.name for path in (tmp_path / "store/artifacts").iterdir()}
    result = budget(tmp_path, *ROUNDED, "vram_gb=0.02", "context=512", "budget.neighbours=0")
    assert result.returncode == 2, result.stdout
    assert (
        "vram_gb=0.02: the smallest that these candidates make is about vram_gb=" in result.stderr
    )
    assert {path.name for path in (tmp_path / "store/artifacts").iterdir()} == made


def test_size_counts_the_whole_file(finished, tmp_path):
    outputs, _ = finished
    shutil.copytree(outputs / "store", tmp_path / "store")
    result = budget(tmp_path, *ROUNDED, "size_gb=0.0033", "budget.neighbours=1")
    assert result.returncode == 0, result.stderr
    mixed = mixes(tmp_path)
    assert len(mixed) == 2  # the best, and a neighbour
    assert all(0.0032 < float(row["size_gb"]) <= 0.0033 for row in mixed)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([*ROUNDED], "budget: say how large the model may be: size_gb=1.9, bpw=4.25, or"),
        ([*ROUNDED, "bpw=3", "size_gb=1"], "budget: size_gb and bpw are given; one of them"),
        ([*ROUNDED, "bpw=three"], "bpw=three: must be a number of bits per weight, above 0"),
        ([*ROUNDED, "bpw=1"], "bpw=1: the smallest that these candidates make is about bpw=2"),
        ([*ROUNDED, "bpw=12"], "bpw=12: the smallest that these candidates make is about bpw=2"),
        ([*ROUNDED, "size_gb=16"], "the largest about size_gb=0.00"),
        ([*ROUNDED, "bpw=3", "context=512"], "context=512: counts with vram_gb alone"),
        ([*ROUNDED, "vram_gb=16"], "vram_gb: say for how many tokens of context"),
        ([*ROUNDED, "vram_gb=16", "context=0"], "context=0: must be a number of tokens, from 1"),
        ([*ROUNDED, "vram_gb=16", "context=many"], "context=many: must be a number of tokens"),
        ([*ROUNDED, "vram_gb=0.001", "context=99999"], "which leaves nothing for the model"),
        (["quant=awq", "bits=2,4", "bpw=3"], "awq moves scales from layer to layer"),
        (["quant=rtn", "format=nf4", "bpw=3"], "has one width for all layers"),
        (["quant=none", "bpw=3"], "quant=none is no candidate"),
        (
            ["quant=rtn", "bits=4", "group_size=64", "bpw=3"],
            "1 candidate to mix, two are the least",
        ),
        ([*ROUNDED, "bpw=3", "eval.divergence=false"], "compared by their divergence"),
        ([*ROUNDED, "bpw=3", "budget.neighbors=2"], "did you mean"),
        ([*ROUNDED, "bpw=3", "budget.neighbours=-1"], "budget.neighbours=-1: must be at least 0"),
        ([*ROUNDED, "bpw=3", "kv_cache=none,q8_0"], "kv_cache: a budget is for one"),
        ([*ROUNDED, "bpw=3", "seed=1,2"], "a budget is for one"),
        ([*ROUNDED, "bpw=3", "launch=workers", "--detach"], "launch.detach: a search waits"),
    ],
)
def test_refused_before_anything_is_made(tmp_path, words, line):
    result = budget(tmp_path, *words)
    told = result.stderr.strip().splitlines()
    assert result.returncode in (1, 2), result.stdout
    assert line in told[-1], told
    assert not (tmp_path / "store/artifacts").exists()


def test_workers_find_it_by_its_name(tmp_path, monkeypatch, capsys):
    class Stopped:
        def __init__(self, session, *_):
            raise QsweepError(f"its jobs are those of sweep {session.launcher.sweep}")

    monkeypatch.setattr(budget_run, "BudgetSearch", Stopped)
    words = [*SMALL, *ROUNDED, "bpw=3", f"outputs_dir={tmp_path}", "launch=workers"]
    assert main(words) == 1
    assert "its jobs are those of sweep t\n" in capsys.readouterr().err


def test_its_options_are_its_own(tmp_path):
    result = run_here(["size_gb=1.9", f"outputs_dir={tmp_path}"])
    assert result.returncode == 2
    assert "size_gb: belongs to --config-name=budget" in result.stderr


@pytest.mark.slow
def test_types_of_llama_cpp_are_mixed_the_embedding_among_them(tmp_path):
    types = ["quant=gguf", "quant.type=Q3_K_S,Q6_K", "quant.imatrix=false"]
    result = budget(tmp_path, *types, "size_gb=0.0028", "budget.neighbours=0")
    assert result.returncode == 0, result.stderr
    (row,) = mixes(tmp_path)
    assert 0.0027 < float(row["size_gb"]) <= 0.0028
    assert "size_gb=0.0028: pocket gguf" in result.stdout
    assert "in no layer: embed" in (tmp_path / "sweeps/t/answer.md").read_text()
