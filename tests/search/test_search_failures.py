"""A search whose candidates fail: what it shows, what it answers, and how it ends."""

import optuna
import pytest
from search_lab import SPACE, FormulaLab, make_search

from helpers.records import reference, shown, trial
from helpers.typed import typed
from qsweep.base.errors import QsweepError
from qsweep.search.answer import answer, untried
from qsweep.search.page import _terminal, answer_markdown
from qsweep.sweep.session import Sweep


def searched(lab, **options):
    options = {"objective": "quality_per_gb", **options}
    search = make_search(lab, optuna.storages.InMemoryStorage(), SPACE, **options)
    search.run()
    entries = search.study.entries()
    return search, entries, answer(entries, search.objectives, serving=True)


def page(search, entries, found):
    return answer_markdown("s", "c", entries, found, search.objectives, (), lambda p: "command")


@pytest.mark.parametrize("fidelity", ["few", "full"])
def test_the_answer_says_what_it_could_not_try(fidelity, tmp_path):
    def failing(overrides):
        return overrides["quant"] != "rtn" and overrides.get("search.fidelity", "full") == fidelity

    search, entries, found = searched(FormulaLab(failing=failing), rungs=["few"])
    failed = {e.key for e in entries if e.state == "failed"}
    assert failed and {e.key for e in found.untried} == failed
    text = page(search, entries, found)
    assert "## What could not be tried" in text and "the device is on fire" in text
    assert f"{len(failed)} of {len({e.key for e in entries})} combinations failed" in text
    said = _terminal(found, entries, lambda p: "command", tmp_path)
    assert f"of the {len({e.key for e in entries}) - len(failed)} of" in said
    assert "combinations failed" in said and "the device is on fire" in said


def test_what_failed_once_and_was_measured_later_was_tried():
    _, entries, found = searched(FormulaLab(), rungs=[])
    assert found.untried == []
    done = next(e for e in entries if e.state == "complete")
    from dataclasses import replace

    failed = replace(done, number=999, state="failed", reason="interrupted")
    assert untried([failed, done]) == [] and untried([failed]) == [failed]


def test_what_fails_at_lower_fidelity_is_a_row_and_counts_as_for_a_sweep():
    sweep = Sweep(config=None, name="s", command="c")  # type: ignore[arg-type]
    done = trial("gptq 4-bit", "gptq", 1.02, bits=4)
    sweep.records = {"r": typed(reference()), "g": typed(done)}
    assert sweep.exit_code == 0
    lost = trial("gptq 3-bit", "gptq", bits=3, fidelity="few", reason="no space left on the disk")
    few = trial("gptq 8-bit", "gptq", 1.0, bits=8, fidelity="few")
    sweep.screening = {"x": typed(lost), "y": typed(few)}
    assert sweep.exit_code == 1
    text = shown(sweep.shown, 120, terminal=False)
    assert "failed: pocket gptq 3-bit (first windows): no space left on the disk" in text
    assert "2 finished, 1 failed" in text and "8-bit" not in text


def test_a_reference_that_predicts_nothing_ends_the_search():
    class Chance(FormulaLab):
        def _run(self, overrides):
            record = super()._run(overrides)
            record["measurements"][0]["no_verdict"] = "the reference predicts nothing"
            return record

    lab = Chance()
    search = make_search(lab, optuna.storages.InMemoryStorage(), rungs=[])
    with pytest.raises(QsweepError, match="predicts nothing: there is nothing to search for"):
        search.run()
    assert len(lab.ran) == 1


def test_a_lead_within_noise_is_no_answer_and_the_page_says_so(tmp_path):
    search, entries, found = searched(FormulaLab(noise=3.0), rungs=[])
    assert found.best_per_gb is not None and found.decision.winner is None
    text = page(search, entries, found)
    assert "**Open:** it leads, but" in text
    said = _terminal(found, entries, lambda p: "command", tmp_path)
    assert "best quality per GB?" in said and "open: it leads, but" in said


def test_combinations_of_one_name_are_told_apart():
    _, entries, found = searched(FormulaLab(), rungs=[])
    names = {e.key: e.name for e in found.front}
    assert len(set(names.values())) == len(names)
    assert any("group_size=" in name for name in names.values())
