"""What several draws answered, as one: nothing of the first draw stands in the row of the mean."""

import math
from dataclasses import asdict

import pytest

from helpers.records import long_figures, reference, trial
from helpers.typed import typed
from qsweep.evaluate.draws import from_intervals
from qsweep.evaluate.intervals import student_t
from qsweep.results.capabilities import capabilities_markdown
from qsweep.results.columns.table import DIVERGENCE_TOKEN, LOOPS
from qsweep.results.draws import pooled
from qsweep.results.flips import all_flips, flips_lines
from qsweep.results.html.long_answers import curve
from qsweep.results.record import Row
from qsweep.results.record_file import content_of, record_of
from qsweep.results.rows import rows, to_csv
from qsweep.tasks.capabilities import capabilities, compare_task, perplexity_comparison
from qsweep.tasks.significance import wilson
from qsweep.tasks.task import TaskResult

RIGHT = [1.0] * 60 + [0.0] * 40


def result(scores, chosen=None):
    ids = [str(n) for n in range(len(scores))]
    return TaskResult("acc", list(scores), ids, 0.25, chosen=chosen)


def answers(lost, gained):
    """Of a hundred questions, of which the reference has sixty right."""
    return [0.0] * lost + RIGHT[lost:60] + [1.0] * gained + RIGHT[60 + gained :]


def draw(seed, own=None, *, base=RIGHT, long=None, reason=None):
    made = trial("gptq 3-bit", "gptq", 1.05 + 0.01 * seed, 0.05, bits=3, calibration="python")
    made |= {"key": f"key-{seed}", "config": {"calibration": {"seed": seed}, "seeds": [0, 1]}}
    task = {"name": "t", "status": "failed" if reason else "finished", "capability": "math"}
    task |= {"keys": [f"task-{seed}"], "seconds": 10.0 + seed, "reason": reason}
    compared, metrics = {}, made["measurements"][0]["metrics"]
    if own is not None:
        choices = [(int(score), 1) for score in own], [(int(score), 1) for score in base]
        own, base = (
            result(scores, [c for c, _ in chosen])
            for scores, chosen in zip((own, base), choices, strict=True)
        )
        found = compare_task([(own, base)])
        task |= found.summary | {"facts": {"solved": seed / 4, "contexts_cut": 3 + seed}}
        compared = {"t": ("math", found)}
    if long:
        task["long"] = made["long"] = asdict(long)
    made["tasks"] = [task]
    made["capabilities"] = capabilities(compared, perplexity_comparison(metrics))
    return made


def setting(*draws):
    (_, one) = pooled(typed([reference(), *draws]))
    assert len(one.draws) == len(draws)
    return one


def test_flips_are_means_too_with_an_interval_over_draws():
    one = setting(draw(0, answers(10, 8)), draw(1, answers(4, 3)))
    (task,) = one.tasks
    for found in (task, one.capabilities["math"]):
        assert (found.lost, found.gained, found.flips, found.changed) == (7, 5.5, 0.125, 0.125)
        ends = [wilson(share, 100) for share in (0.18, 0.07)]
        apart = student_t(1) * (0.18 - 0.07) / 2
        low = 0.125 - math.hypot(apart, *((e.value - e.low) / 2**0.5 for e in ends))
        high = 0.125 + math.hypot(apart, *((e.high - e.value) / 2**0.5 for e in ends))
        assert (found.flips_low, found.flips_high) == (max(low, 0), pytest.approx(min(high, 1)))
    # how many samples a loss of two points would take is a whole number
    needed = [d.capabilities["math"].samples_needed for d in one.draws]
    assert one.capabilities["math"].samples_needed == math.ceil(sum(needed) / 2)
    assert task.seconds == 10.5 and task.keys == ("task-0", "task-1")
    assert task.facts == {"solved": 0.125, "contexts_cut": 3.5}
    assert record_of(content_of(one)) == one


def test_tables_of_flips_are_of_the_setting():
    one = setting(draw(0, answers(10, 8)), draw(1, answers(4, 3)))
    found = all_flips(one)
    assert (found.lost, found.gained, found.flips) == (7, 5.5, 0.125)
    assert found.ends == (one.tasks[0].flips_low, one.tasks[0].flips_high)
    ((_, _, count, lost, gained, share, *_),) = flips_lines([("x", one)])
    assert (count, lost, gained) == ("100", "7", "5.5") and share.startswith("12.5% (0.0 to 8")
    header, line = (text.split(",") for text in to_csv(rows([one])).splitlines())
    assert [line[header.index(n)] for n in ("flips", "lost", "gained")] == ["0.125", "7.0", "5.5"]
    page = capabilities_markdown("s", [one])
    assert "3.5 texts are longer" in page and "t over both in McNemar's place" in page
    assert "McNemar's place" not in capabilities_markdown("s", list(one.draws))


def test_an_interval_stays_as_lopsided_as_the_draws_are():
    """Of twenty right answers out of twenty Wilson's has no room above."""
    one = setting(*(draw(seed, [1.0] * 20, base=[1.0] * 20) for seed in range(2)))
    (task,), alone = one.tasks, one.draws[0].tasks[0]
    assert (task.score, task.score_high) == (1.0, 1.0)
    assert task.score_low == pytest.approx(alone.score_low) == pytest.approx(0.839, abs=1e-3)
    # one that lost one more: nowhere is a share above 1
    (task,) = setting(draw(0, [1.0] * 20, base=[1.0] * 20), draw(1, [0.0] + [1.0] * 19, base=[1.0] * 20)).tasks  # fmt: skip
    assert task.score == 0.975 and task.score_high == 1.0
    assert task.score_low < one.draws[0].tasks[0].score_low
    assert -1 <= task.difference_low <= task.difference <= task.difference_high <= 1


def test_from_intervals_squares_and_adds_each_side():
    low, high = from_intervals([0.4, 0.6], [(0.3, 0.45), (0.5, 0.65)])
    apart = student_t(1) * 0.1
    assert (0.5 - low, high - 0.5) == pytest.approx(
        (math.hypot(0.1, apart), math.hypot(0.05, apart))
    )
    assert from_intervals([0.5], [(0.25, 0.875)]) == (0.25, 0.875)
    assert from_intervals([0.4, 0.6], [(0.3, 0.45), (0.5, 0.65)], (0, 1)) == (0, 1)


def test_what_is_kept_by_perplexity_has_an_interval_over_draws():
    one = setting(draw(0, answers(10, 8)), draw(1, answers(4, 3)))
    found = one.capabilities["completion"]
    each = [d.capabilities["completion"] for d in one.draws]
    assert found.samples is None and found.retention == pytest.approx(
        sum(e.retention for e in each) / 2
    )
    low, high = from_intervals(
        [e.retention for e in each], [(e.retention_low, e.retention_high) for e in each]
    )
    assert (found.retention_low, found.retention_high) == (low, high)
    assert low < min(e.retention_low for e in each)


def test_what_a_draw_could_not_finish_has_no_figures_and_a_reason():
    (task,) = setting(draw(0, answers(1, 1)), draw(1, reason="out of memory")).tasks
    assert (task.status, task.reason, task.score) == ("failed", "out of memory", None)
    assert task.flips is task.flips_low is task.lost is task.p is None


LATER = long_figures(
    length=260.0, length_ratio=1.3, length_ratio_low=1.2, length_ratio_high=1.4, truncated=0.5, loops=0.3,
    longest=120, divergence_token=None, tokens=(20, 100), shares=(0.8, 0.6),
)  # fmt: skip


def test_long_answers_are_means_and_their_curve_goes_as_far_as_all_are_known():
    one = setting(draw(0, answers(1, 1), long=long_figures()), draw(1, answers(1, 1), long=LATER))
    assert one.tasks[0].long == one.long
    found = one.long
    assert (found.length, found.truncated, found.loops) == (250.0, 0.375, 0.2)
    assert found.length_ratio == pytest.approx(1.25)
    ends = [(1.1, 1.32), (1.2, 1.4)]
    assert (found.length_ratio_low, found.length_ratio_high) == from_intervals([1.2, 1.3], ends)
    assert found.longest == 120 and found.tokens == (10, 20, 37, 100)
    assert found.shares == pytest.approx((0.95, 0.85, 0.65, 0.55))
    assert (found.divergence_token, found.divergence_token_low) == (None, None)
    row = Row(one, one.primary)
    assert LOOPS.get(row) == 0.2 and DIVERGENCE_TOKEN.cell(row) == "> 120"
    assert curve(row)[-1]["share"] == pytest.approx(0.55)


def test_a_draw_all_of_whose_answers_departed_stays_at_none():
    gone = long_figures(longest=40, tokens=(10, 40), shares=(0.5, 0.0), departed=1.0)
    found = setting(
        draw(0, answers(1, 1), long=long_figures()), draw(1, answers(1, 1), long=gone)
    ).long
    assert found.longest == 180 and found.shares == pytest.approx((0.7, 0.5, 0.25, 0.1))
    assert found.divergence_token == 37


def test_of_draws_without_long_answers_there_are_none():
    one = setting(draw(0, answers(1, 1), long=long_figures()), draw(1, answers(1, 1)))
    assert one.long is None and one.tasks[0].long is None
