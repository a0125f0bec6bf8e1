"""bench/parity.py: what its verdict over windows and draws of the calibration text says."""

import io
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from parity import GPTAQ, Row, paired, print_intervals, print_table, rows  # noqa: E402


def side(*window_nll, ratio=1.0):
    return {"window_nll": list(window_nll), "ppl_ratio": ratio, "kld": 0.1, "version": "1"}


def printed(results, show=print_table):
    with redirect_stdout(io.StringIO()) as out:
        show(results)
    return out.getvalue()


def test_paired_by_hand():
    mean, spread, count = paired(side(1.0, 2.0, 3.0), side(0.0, 2.0, 2.0))
    assert (mean, count) == (pytest.approx(2 / 3), 3)
    assert spread == pytest.approx(1 / 3)


def test_a_row_that_is_worse_in_every_window_is_marked():
    worse = {"row": {"native": side(1.1, 2.11, 3.1, 1.1), "gptqmodel": side(1.0, 2.0, 3.0, 1.0)}}
    assert "WORSE" in printed(worse)
    assert "worse than GPTQModel: 1" in printed(worse)
    better = {"row": {"native": worse["row"]["gptqmodel"], "gptqmodel": worse["row"]["native"]}}
    assert "WORSE" not in printed(better)


def test_what_another_draw_turns_around_is_not_marked():
    one = {"native": side(1.1, 2.11, 3.1), "gptqmodel": side(1.0, 2.0, 3.0)}
    other = {"native": side(1.0, 2.01, 3.0), "gptqmodel": side(1.04, 2.05, 3.04)}
    assert "WORSE" in printed({"row": one})
    both = printed({"row": one, "row seed 1": other})
    assert "WORSE" not in both
    # The row counts once, with the mean of both draws: (0.1033 - 0.04) / 2.
    assert "1 rows; pooled log-ratio +0.03167" in both


def test_a_draw_has_a_name_of_its_own_but_the_first():
    row = next(rows(["gptq"], [4], [64]))
    assert row.key == "gptq 4 bits g64 plain sym"
    assert Row("gptq", 4, 64, "plain", True, seed=2).key == "gptq 4 bits g64 plain sym seed 2"


def test_intervals_by_hand():
    # Differences .1 and .2: mean .15, standard error .05, and t of one degree of freedom 12.7062.
    row = {"native": side(1.1, 1.2), "rtn": side(1.0, 1.0)}
    *_, line = printed({"row": row}, print_intervals).splitlines()
    assert line == "| row | 0.1000, 0.1000 | 1.1618 (0.6155 to 2.1931) |  |  |  |"
    row["native"]["window_kld"], row["rtn"]["window_kld"] = [0.1, 0.2], [0.2, 0.4]
    *_, line = printed({"row": row}, print_intervals).splitlines()
    assert "| -0.1500 (-0.7853 to +0.4853) |" in line


def test_gptaq_is_the_preset_and_has_no_side_of_gptqmodel():
    row = next(rows(["gptaq"], [3], [64]))
    preset = yaml.safe_load((ROOT / "conf/quant/gptaq.yaml").read_text())
    assert {name: preset[name] for name in GPTAQ} == GPTAQ
    assert row.native().gptaq_alpha == 0.5
    assert row.gptqmodel() is None
