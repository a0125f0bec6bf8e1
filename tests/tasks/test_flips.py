"""Answers that went from right to wrong or back, and where they are shown."""

import json

import pytest
from scipy.stats import binomtest

from helpers.records import reference, trial
from helpers.typed import on_disk, table, typed
from qsweep.results import flips as shown
from qsweep.results.capabilities import capabilities_markdown
from qsweep.results.html.capabilities import changed_answers
from qsweep.results.html.data import groups
from qsweep.tasks.capabilities import capabilities, changed, compare_task, flips
from qsweep.tasks.task import TaskResult, read_result, save_result
from qsweep.tracking.mlflow.runs import trial_run

capabilities_markdown = on_disk(capabilities_markdown)

RIGHT = [1.0] * 60 + [0.0] * 40
OWN = [1.0] * 50 + [0.0] * 10 + [1.0] * 8 + [0.0] * 32


def result(scores, chosen=None, chance=0.25):
    ids = [str(n) for n in range(len(scores))]
    return TaskResult("acc", list(scores), ids, chance, chosen=chosen)


def test_a_score_nets_what_flips_count():
    found = compare_task([(result(OWN), result(RIGHT))]).summary
    assert (found["lost"], found["gained"], found["flips"]) == (10, 8, 0.18)
    assert found["difference"] == pytest.approx(-0.02)
    interval = binomtest(18, 100).proportion_ci(method="wilson")
    assert (found["flips_low"], found["flips_high"]) == pytest.approx(tuple(interval), rel=1e-6)
    assert "changed" not in found


def test_an_equal_model_flips_nothing():
    found = flips([(s, s) for s in RIGHT])
    assert (found["lost"], found["gained"], found["flips"], found["flips_low"]) == (0, 0, 0, 0)
    assert 0 < found["flips_high"] < 0.05  # of a hundred, it could still be some


def test_what_is_neither_right_nor_wrong_does_not_flip():
    assert flips([(0.5, 1.0), (1.0, 1.0)]) == {} == flips([]) == changed([])


def test_from_one_wrong_choice_to_another_is_a_change_and_no_flip():
    # The right one is 0: four answers, of which one is lost, one gained and one another wrong one.
    own, base = [0, 1, 0, 3], [0, 0, 1, 2]
    found = compare_task([(
        result([1.0, 0.0, 1.0, 0.0], own), result([1.0, 1.0, 0.0, 0.0], base)
    )]).summary  # fmt: skip
    assert (found["lost"], found["gained"], found["flips"], found["changed"]) == (1, 1, 0.5, 0.75)
    assert found["changed_low"] < 0.75 < found["changed_high"]


def test_choices_of_some_parts_alone_are_no_share_of_all():
    parts = [
        (result([1.0], [0]), result([1.0], [0])),
        (result([1.0]), result([0.0], [1])),
    ]
    found = compare_task(parts).summary
    assert found["gained"] == 1 and "changed" not in found


def test_a_capability_pools_its_tasks():
    one = compare_task([(result(OWN), result(RIGHT))])
    same = compare_task([(result(RIGHT), result(RIGHT))])
    found = capabilities({"a": ("math", one), "b": ("math", same)})["math"]
    assert (found["lost"], found["gained"], found["flips"]) == (10, 8, 0.09)


def test_a_result_keeps_what_was_chosen_and_one_from_before_that_is_read(tmp_path):
    save_result(result([1.0, 0.0], [3, 1]), tmp_path)
    assert read_result(tmp_path).chosen == [3, 1]
    file = tmp_path / "result.json"
    before = {k: v for k, v in json.loads(file.read_text()).items() if k != "chosen"}
    file.write_text(json.dumps(before))
    assert read_result(tmp_path).chosen is None


def score(name, lost, gained, answers, **more):
    low, high = binomtest(lost + gained, answers).proportion_ci(method="wilson")
    return {
        "name": name, "status": "finished", "capability": "math", "metric": "acc", "score": 0.5,
        "samples": answers, "lost": lost, "gained": gained, "flips": (lost + gained) / answers,
        "flips_low": low, "flips_high": high, "difference": (gained - lost) / answers,
        "difference_low": -0.1, "difference_high": 0.05, **more,
    }  # fmt: skip


def records():
    own = [score("sums", 10, 8, 100, changed=0.25, changed_low=0.2, changed_high=0.3),
           score("words", 0, 2, 100), {"name": "essay", "status": "finished", "capability": "x"}]  # fmt: skip
    return [
        reference(tasks=[score("sums", 0, 0, 100)], capabilities={}),
        trial("gptq 4-bit", "gptq", 1.05, bits=4, tasks=own, capabilities={}),
    ]


def test_a_trial_has_them_over_all_its_tasks():
    found = {row["method"]: row for row in table(records())}
    base, own = found["none"], found["gptq"]
    assert (own["lost"], own["gained"], own["flips"]) == (10, 10, 0.1)
    assert "flips" not in base
    metrics = {p.name: p.value for p in trial_run(typed(records())[1]).metrics}
    assert metrics["flips"] == 0.1 and metrics["task/sums/flips"] == 0.18
    assert metrics["task/sums/lost"] == 10 and metrics["task/sums/changed"] == 0.25
    (group,) = groups(typed(records()))
    panel = changed_answers(group)
    assert panel.headings == shown.HEADINGS
    assert panel.lines[0][2:] == [
        "100", "10", "8", "18.0% (11.7 to 26.7)", "-2.0% (-10.0 to 5.0)", "25.0% (20.0 to 30.0)"
    ]  # fmt: skip
    assert panel.lines[1][-1] == ""
    page = capabilities_markdown("s", records())
    assert "## Answers that changed" in page and "18.0% (11.7 to 26.7)" in page


def test_without_right_and_wrong_answers_there_is_no_panel():
    plain = [reference(), trial("gptq 4-bit", "gptq", 1.05, bits=4)]
    (group,) = groups(typed(plain))
    assert changed_answers(group) is None
    assert shown.flips_markdown(typed(plain), lambda *_: "") == ""
