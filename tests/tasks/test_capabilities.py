"""From scores to capabilities, verdicts and the page."""

import math

import pytest

from helpers.typed import on_disk
from qsweep.base.errors import ArtifactCorrupt
from qsweep.results.capabilities import adjusted_p, capabilities_markdown, worst_cell
from qsweep.tasks.capabilities import (
    capabilities,
    compare_task,
    perplexity_comparison,
    suffers_most,
    verdict,
)
from qsweep.tasks.task import TaskResult, read_result, save_result

adjusted_p, capabilities_markdown, worst_cell = map(
    on_disk, (adjusted_p, capabilities_markdown, worst_cell)
)


def result(right, total, chance=0.25, changed=()):
    scores = [1.0 if i < right else 0.0 for i in range(total)]
    for i in changed:
        scores[i] = 1 - scores[i]
    return TaskResult("acc", scores, [str(i) for i in range(total)], chance)


def compared(right, total, changed=(), chance=0.25):
    return compare_task([(result(right, total, chance, changed), result(right, total, chance))])


def test_scores_between_right_and_wrong_need_no_more_samples_than_they_differ_by():
    def needed(own, base):
        ids = [str(number) for number in range(len(own))]
        made = compare_task([(TaskResult("acc", own, ids, 0.0), TaskResult("acc", base, ids, 0.0))])
        return capabilities({"t": ("long answers", made)})["long answers"]["samples_needed"]

    # Every score differs, by a tenth: that is a spread as of one right answer in a hundred.
    tenths = needed([0.8, 0.6] * 100, [0.7] * 200)
    assert tenths == needed([0.0] * 2 + [1.0] * 198, [1.0] * 200)
    assert tenths < needed([0.0] * 200, [1.0] * 200) / 10


def test_retention_counts_from_chance():
    found = compared(150, 200, changed=range(50)).summary
    # 75 % and 50 % correct, a quarter by chance.
    assert found["retention"] == pytest.approx((0.5 - 0.25) / (0.75 - 0.25))
    assert found["difference"] == pytest.approx(-0.25)
    assert found["retention_low"] < 0.5 < found["retention_high"]
    assert found["p"] < 1e-12


def test_an_equal_model_keeps_everything():
    found = compared(150, 200)
    assert found.summary["retention"] == found.summary["retention_low"] == 1.0
    assert found.summary["p"] == 1.0


def test_parts_count_by_their_samples():
    parts = [
        (result(80, 100, changed=range(40)), result(80, 100)),
        (result(240, 300), result(240, 300)),
    ]
    found = compare_task(parts).summary
    assert found["samples"] == 400
    assert found["difference"] == pytest.approx(-0.1)


def test_other_samples_are_never_compared():
    other = result(10, 20)
    other.ids[3] = "another"
    with pytest.raises(ArtifactCorrupt, match="other samples"):
        compare_task([(other, result(10, 20))])


def test_a_perplexity_keeps_its_quality():
    reference = TaskResult("nll", [200.0, 210.0], ["a", "b"], 0.0, [100.0, 100.0])
    worse = TaskResult("nll", [200.0 + 100 * math.log(1.1)] * 2, ["a", "b"], 0.0, [100.0, 100.0])
    worse.scores[1] += 10
    found = compare_task([(worse, reference)]).summary
    assert found["retention"] == pytest.approx(1 - math.log(1.1) / math.log(1.2))
    assert found["score"] == pytest.approx(found["reference_score"] * 1.1)


def test_the_verdicts():
    few = {"a": ("math", compared(30, 60, changed=(1, 2)))}
    lost = {"a": ("math", compared(150, 200, changed=range(50)))}
    same = {"a": ("math", compared(1500, 2000))}
    chance = {"a": ("math", compared(52, 200))}
    said = [verdict(capabilities(tasks)["math"]) for tasks in (few, lost, same, chance)]
    assert said[0].startswith("too few samples to tell (60; a loss of 2 points would take ")
    assert said[1].startswith("loss of 25.0 ± ")
    assert said[2] == "no measurable loss"
    assert said[3] == "not measurable on this model"
    # Among many comparisons the same difference may be chance.
    assert not verdict(capabilities(lost)["math"], p_adjusted=0.2).startswith("loss")


def test_a_few_answers_that_are_all_the_same_rule_nothing_out():
    for right, count in ((3, 3), (12, 16), (100, 150)):
        said = verdict(capabilities({"a": ("math", compared(right, count))})["math"])
        assert said.startswith(f"too few samples to tell ({count}; a loss of 2 points would take ")
    enough = capabilities({"a": ("math", compared(150, 200))})["math"]
    assert enough["flips_high"] < 0.02 and verdict(enough) == "no measurable loss"
    graded = TaskResult("f1", [0.5, 0.75, 1.0], ["a", "b", "c"], 0.0)
    found = capabilities({"a": ("math", compare_task([(graded, graded)]))})["math"]
    assert found["measurable"] and verdict(found).startswith("too few samples to tell (3;")


def test_a_capability_is_the_mean_of_its_measurable_tasks():
    tasks = {
        "one": ("reasoning", compared(150, 200, changed=range(50))),
        "two": ("reasoning", compared(150, 200)),
        "luck": ("reasoning", compared(50, 200, changed=range(30))),
    }
    found = capabilities(tasks)["reasoning"]
    assert found["retention"] == pytest.approx(0.75)
    assert found["at_chance"] == ["luck"]
    assert found["samples"] == 400


def test_perplexity_stands_for_completion_only_where_nothing_else_does():
    ppl = perplexity_comparison(
        {
            "ppl": 9.0,
            "ppl_ratio": 1.1,
            "ppl_ratio_low": 1.09,
            "ppl_ratio_high": 1.11,
            "quality": 0.48,
        }
    )
    alone = capabilities({"gsm8k": ("math", compared(150, 200))}, ppl)
    assert alone["completion"]["retention"] == 0.48
    assert "by perplexity" in verdict(alone["completion"])
    other = capabilities({"cloze": ("completion", compared(150, 200))}, ppl)
    assert other["completion"]["tasks"] == ["cloze"]
    assert perplexity_comparison({"ppl": 9.0}) is None


def record(key, changed, reference=False):
    tasks = {
        "arithmetic": ("math", compared(150, 200, changed=range(changed))),
        "facts": ("knowledge", compared(150, 200)),
        "luck": ("code", compared(50, 200)),
    }
    found = capabilities(tasks)
    return {
        "key": key,
        "name": f"model {key}",
        "model": "model",
        "status": "finished",
        "reference": reference,
        "measurements": [],
        "calibration": None,
        "capabilities": found,
        "suffers_most": None if reference else suffers_most(found),
        "tasks": [
            {
                "name": name,
                "capability": capability,
                "status": "finished",
                "reason": None,
                "seconds": 1.0,
                **c.summary,
            }
            for name, (capability, c) in tasks.items()
        ],
    }


def test_the_page_says_what_suffers_most_and_whether_it_is_chance():
    records = [record("none", 0, reference=True), record("rtn 3", 60), record("rtn 8", 3)]
    records[1]["tasks"].append(
        {
            "name": "mmlu",
            "capability": "knowledge",
            "reason": "mmlu: no data",
            "seconds": 0.0,
            "status": "failed",
        }
    )
    adjusted = adjusted_p(records)
    assert len(adjusted) == 4  # two trials by two measurable capabilities; the reference is none
    assert worst_cell(records[1], adjusted) == "math 40.0%"
    assert worst_cell(records[2], adjusted) == "math 97.0%?"
    assert worst_cell(records[0], adjusted) == ""
    page = capabilities_markdown("sweep", records)
    assert "math suffers most: 40.0%" in page and "loss of 30.0 ± " in page
    assert "no capability suffers beyond chance (lowest: math" in page
    assert "code: not measurable on this model" in page
    assert "- mmlu: no data (1 trial)" in page


def test_a_loss_that_perplexity_tells_is_a_sentence():
    ratio = {"ppl": 9.0, "ppl_ratio": 1.1, "ppl_ratio_low": 1.09, "ppl_ratio_high": 1.11}
    found = capabilities({}, perplexity_comparison({**ratio, "quality": 0.48}))
    alone = record("rtn 3", 0) | {"capabilities": found, "suffers_most": suffers_most(found)}
    page = capabilities_markdown("sweep", [record("none", 0, reference=True), alone])
    assert "**model rtn 3**: completion suffers most: 48.0% (43-53) kept, by perplexity." in page


def test_a_sweep_without_tasks_has_no_page():
    plain = {"key": "k", "name": "n", "status": "finished", "measurements": [], "calibration": None}
    assert capabilities_markdown("sweep", [plain]) == ""


def test_results_survive_the_disk(tmp_path):
    before = result(3, 5)
    before.samples = [{"prompt": "一加一", "said": "2"}]
    save_result(before, tmp_path)
    after = read_result(tmp_path)
    assert (after.scores, after.ids, after.chance) == (before.scores, before.ids, before.chance)
    assert "一加一" in (tmp_path / "samples.jsonl").read_text(encoding="utf-8")
    with pytest.raises(ArtifactCorrupt):
        read_result(tmp_path / "none")
