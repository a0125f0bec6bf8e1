"""Tasks in whole sweeps and in the store, on the embedded model."""

import csv
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from helpers.sweeps import run_here
from qsweep.base.errors import TrialFailed
from qsweep.base.keys import key_of
from qsweep.base.progress import silent
from qsweep.base.store import Store
from qsweep.tasks.embedded import embedded_task
from qsweep.tasks.model import LanguageModel
from qsweep.tasks.run import TaskPlan, missing, run_tasks, task_records
from qsweep.tasks.task import TaskOptions, TaskUnavailable

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "docs" / "examples" / "support.yaml"
SMALL = ["eval.max_windows=2", "corpus=[python_docs]", "tracking=none", "sweep=t"]


def qsweep(outputs, *arguments, cwd=ROOT):
    return run_here([*arguments, *SMALL, f"outputs_dir={outputs}"], cwd=cwd)


def records(outputs):
    files = (outputs / "sweeps" / "t" / "trials").glob("*.json")
    found = [json.loads(file.read_text()) for file in files]
    return {record["method"]: record for record in found}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")
    names = [str(SUPPORT.relative_to(ROOT)), "sequences", "syllogism"]
    if importlib.util.find_spec("lm_eval"):
        names.append("hellaswag")  # its data set cannot be had offline
    arguments = ["quant=rtn", "bits=2", "eval.limit=60", f"eval.tasks=[{','.join(names)}]"]
    result = qsweep(outputs, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return outputs, arguments, result


def test_each_task_is_scored_and_one_without_data_fails_alone(finished):
    outputs, _, result = finished
    tasks = {task["name"]: task for task in records(outputs)["rtn"]["tasks"]}
    for name, samples in (("support", 57), ("sequences", 60), ("syllogism", 60)):
        assert tasks[name]["status"] == "finished"
        assert tasks[name]["samples"] == samples
        assert 0 <= tasks[name]["p"] <= 1
        assert tasks[name]["facts"]["bos"] == "none"
    if "hellaswag" in tasks:
        assert tasks["hellaswag"]["status"] == "failed"
        assert "not in the cache" in tasks["hellaswag"]["reason"]
        assert "task not run: hellaswag" in result.stdout


def test_the_reference_keeps_everything_and_suffers_nothing(finished):
    reference = records(finished[0])["none"]
    assert reference["suffers_most"] is None
    for found in reference["capabilities"].values():
        assert not found["measurable"] or found["retention"] == 1.0


def test_table_csv_and_page_say_what_suffers(finished):
    outputs, _, result = finished
    assert "suffers most" in result.stdout
    with (outputs / "sweeps" / "t" / "results.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["method"] == "rtn")
    worst = records(outputs)["rtn"]["suffers_most"]
    assert row["worst_capability"] == worst["capability"]
    assert float(row["worst_retention"]) == pytest.approx(worst["retention"])
    page = (outputs / "sweeps" / "t" / "capabilities.md").read_text()
    assert "## Kept, by capability" in page and "support" in page


def test_the_same_command_repeats_only_what_failed(finished):
    outputs, arguments, _ = finished
    folder = outputs / "store" / "tasks"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    kept = {
        name
        for name in before
        if json.loads((folder / name / "manifest.json").read_text())["content"]["status"]
        == "finished"
    }
    assert len(kept) == 6  # three tasks on two models
    again = qsweep(outputs, *arguments)
    assert again.returncode == 0, again.stderr
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == {
        name: before[name] for name in kept
    }


def test_a_mistake_is_told_before_anything_runs(tmp_path):
    broken = tmp_path / "mine.yaml"
    broken.write_text("name: mine\ntype: multiple_choise\ndata: x.jsonl\nprompt: x\n")
    result = qsweep(tmp_path / "out", "quant=rtn", "eval.tasks=[mine.yaml]", cwd=tmp_path)
    assert result.returncode == 2
    assert "mine.yaml:2: type: no such type" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out" / "sweeps").exists()


def test_a_chat_template_that_the_model_lacks_is_told(tmp_path):
    result = qsweep(tmp_path, "quant=rtn", "eval.tasks=[sequences]", "eval.chat_template=true")
    assert result.returncode == 1
    assert "pocket has no chat template" in result.stdout + result.stderr


@pytest.fixture(scope="module")
def lm(pocket_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(pocket_dir, dtype=torch.float32)
    model.eval().requires_grad_(False)
    return LanguageModel(model, AutoTokenizer.from_pretrained(pocket_dir), 1024)


def plans(artifact="none", names=("syllogism", "sequences")):
    found = []
    for name in names:
        task = embedded_task(name, TaskOptions(limit=12))
        identity = task.identity()
        found.append(
            TaskPlan(task, {"artifact": artifact, **identity}, {"artifact": "none", **identity})
        )
    return found


class Interrupted:
    """A task during which the process is ended."""

    name = group = "interrupted"
    capability = "math"

    def identity(self):
        return {"task": self.name}

    def prepare(self):
        pass

    def run(self, lm, progress):
        raise KeyboardInterrupt


class Unavailable(Interrupted):
    name = group = "unavailable"

    def prepare(self):
        raise TaskUnavailable("unavailable: no data here")


class Bug(Interrupted):
    name = group = "bug"

    def run(self, lm, progress):
        raise KeyError("column")


def test_a_killed_evaluation_repeats_one_task_at_most(tmp_path, lm):
    store = Store(tmp_path)
    first, last = plans()
    identity = {"artifact": "none", "task": "interrupted"}
    middle = TaskPlan(Interrupted(), identity, identity)
    with pytest.raises(KeyboardInterrupt):
        run_tasks([first, middle, last], store, lambda: lm, silent)
    assert [plan.task.name for plan in missing([first, middle, last], store)] == [
        "interrupted",
        "sequences",
    ]
    stamp = store.path("tasks", first.key).stat().st_mtime_ns
    run_tasks([first, last], store, lambda: lm, silent)
    assert store.path("tasks", first.key).stat().st_mtime_ns == stamp
    assert not missing([first, last], store)


def test_a_task_that_fails_leaves_its_reason_and_the_others_stand(tmp_path, lm):
    store = Store(tmp_path)
    (good,) = plans(names=("syllogism",))
    bad = []
    for task in (Unavailable(), Bug()):
        identity = {"artifact": "none", "task": task.name}
        bad.append(TaskPlan(task, identity, identity))
    run_tasks([*bad, good], store, lambda: lm, silent)
    found = {t["name"]: t for t in task_records([*bad, good], store, {})["tasks"]}
    assert found["unavailable"]["reason"] == "unavailable: no data here"
    assert found["bug"]["reason"] == "bug: KeyError: 'column'"
    assert found["syllogism"]["status"] == "finished"
    # A quantized model does not try what the reference could not do.
    other = TaskPlan(Interrupted(), {"artifact": "rtn"}, bad[0].identity)
    run_tasks([other], store, lambda: lm, silent)
    assert store.find("tasks", other.key).content["reason"] == "unavailable: no data here"


def test_no_model_is_loaded_when_nothing_is_missing(tmp_path, lm):
    store = Store(tmp_path)
    run_tasks(plans(), store, lambda: lm, silent)
    run_tasks(plans(), store, lambda: pytest.fail("loaded"), silent)


def test_results_of_two_models_are_compared_sample_by_sample(tmp_path, lm):
    store = Store(tmp_path)
    run_tasks(plans(), store, lambda: lm, silent)
    run_tasks(plans("rtn"), store, lambda: lm, silent)
    found = task_records(plans("rtn"), store, {})
    assert all(task["difference"] == 0 for task in found["tasks"])
    assert task_records(plans("gptq"), store, {}) is None
    assert key_of(plans()[0].identity) != key_of(plans("rtn")[0].identity)


def test_a_broken_model_fails_the_trial_and_not_just_the_task(tmp_path, tiny_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tiny_model("llama")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    model.requires_grad_(False)
    model.get_parameter("model.layers.0.mlp.up_proj.weight")[3, 3] = float("inf")
    broken = LanguageModel(model, AutoTokenizer.from_pretrained(path), 512)
    store = Store(tmp_path)
    with pytest.raises(TrialFailed, match=r"task syllogism: .*model\.layers\.0\.mlp\.up_proj"):
        run_tasks(plans(), store, lambda: broken, silent)
    assert len(missing(plans(), store)) == 2
