"""bench/alignment.py: what it claims of calibrations that were drawn several times."""

import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from alignment import Measured, compared, print_tables, table  # noqa: E402

WINDOWS, DRAWS = 24, 4


def found(own, other, *, draw=0.0, settings=("gptq",)):
    """Two domains: KLD after the own calibration and after the other, and how far draws lie apart."""
    noise = random.Random(0)
    hard = [noise.uniform(0.5, 1.5) for _ in range(WINDOWS)]

    def measured(level):
        draws = [level + draw * noise.gauss(0, 1) for _ in range(DRAWS)]
        klds = [[at * one * noise.uniform(0.98, 1.02) for one in hard] for at in draws]
        return Measured(klds, [1.1] * DRAWS)

    return {
        (setting, calibration, corpus): measured(own if calibration == corpus else other)
        for setting in settings
        for calibration in ("code", "docs", "blend")
        for corpus in ("code", "docs")
    }


def verdicts(cells):
    return {(c.corpus, c.other): c.verdict for c in compared(cells)}


def test_what_is_clear_is_claimed_with_its_size():
    for one in compared(found(0.10, 0.12)):
        assert one.verdict == "own is better"
        assert one.low < one.more < one.high and one.share == pytest.approx(0.2, abs=0.05)
    assert set(verdicts(found(0.12, 0.10)).values()) == {"other is better"}


def test_what_the_draw_explains_is_a_tie():
    # the same difference in the mean of the windows, and draws that lie as far apart
    assert set(verdicts(found(0.10, 0.12, draw=0.03)).values()) == {"tie"}
    assert set(verdicts(found(0.10, 0.10)).values()) == {"tie"}


def test_a_copy_is_a_tie():
    cells = found(0.1, 0.1)
    cells["gptq", "docs", "code"] = cells["gptq", "code", "code"]
    one = next(c for c in compared(cells) if (c.corpus, c.other) == ("code", "docs"))
    assert (one.more, one.p, one.verdict) == (0, 1, "tie")


def test_a_claim_is_harder_among_many():
    few = min(c.p for c in compared(found(0.10, 0.104, draw=0.001)))
    many = compared(found(0.10, 0.104, draw=0.001, settings=[f"s{n}" for n in range(30)]))
    assert len(many) == 120 and few < max(c.p for c in many)


def test_every_cell_and_every_comparison_is_printed(capsys):
    cells = found(0.10, 0.12)
    print_tables(table(cells), compared(cells))
    said = capsys.readouterr().out
    assert "| gptq | blend | 0.1" in said and "| code | gptq | docs | +0.0" in said
    assert len(table(cells)) == 6 and len(compared(cells)) == 4
