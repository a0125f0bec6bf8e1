"""The square of calibrations by corpora."""

import pytest
import torch

from helpers.typed import on_disk
from qsweep.evaluate import WindowScores, save_measurement
from qsweep.results.alignment import alignment_markdown, alignments

alignment_markdown, alignments = map(on_disk, (alignment_markdown, alignments))

WINDOWS = 40


def measurement(folder, corpus, per_token, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(WINDOWS, generator=generator, dtype=torch.float64)
    hard = torch.linspace(2, 4, WINDOWS, dtype=torch.float64)
    nll = 100 * (hard + per_token + 0.01 * noise)
    folder.mkdir(parents=True)
    counts = torch.full((WINDOWS,), 100)
    arrays = {"window_nll": nll, "window_tokens": counts}
    save_measurement(WindowScores({}, arrays, {}), folder)
    ppl = float((nll.sum() / counts.sum()).exp())
    reference = float(hard.mean().exp())
    metrics = {"ppl": ppl, "ppl_ratio": ppl / reference}
    return {"corpus": corpus, "preset": "paper", "metrics": metrics, "file": str(folder)}


def trial(folder, calibration, costs):
    return {
        "key": calibration,
        "name": "pocket gptq 3-bit",
        "model": "pocket",
        "status": "finished",
        "calibration": calibration,
        "options": {"bits": 3},
        "config": {"calibration": {"seed": 0}},
        "measurements": [
            measurement(folder / f"{calibration}-{corpus}", corpus, cost, seed)
            for seed, (corpus, cost) in enumerate(
                costs.items(), {"docs": 10, "code": 20}[calibration]
            )
        ],
    }


def square(folder, own, other):
    return [
        trial(folder, "docs", {"docs": own, "code": other}),
        trial(folder, "code", {"docs": other, "code": own}),
    ]


def test_a_clear_gain_is_seen_with_its_size(tmp_path):
    (found,) = alignments(square(tmp_path, 0.10, 0.15))
    assert found.domains == ("code", "docs")
    for gain in found.gains:
        assert gain.ratio == pytest.approx(1.0513, abs=0.01)
        assert gain.low < gain.ratio < gain.high
    assert found.verdict == "in-domain calibration helped beyond noise on both"
    assert found.ratios["docs", "docs"] < found.ratios["code", "docs"]


def test_no_difference_is_called_none(tmp_path):
    (found,) = alignments(square(tmp_path, 0.1, 0.1))
    assert all(gain.low < 1 < gain.high for gain in found.gains)
    assert found.verdict == "in-domain calibration made no difference beyond noise"


def test_one_text_that_is_better_everywhere_is_not_alignment(tmp_path):
    records = [
        trial(tmp_path, "docs", {"docs": 0.1, "code": 0.1}),
        trial(tmp_path, "code", {"docs": 0.2, "code": 0.2}),
    ]
    (found,) = alignments(records)
    assert found.verdict.startswith("calibrating on docs was better on both")


def test_the_section_shows_the_square_in_words(tmp_path):
    text = alignment_markdown(square(tmp_path, 0.10, 0.15))
    assert "calibrated on docs" in text and "on code" in text
    assert "**in-domain calibration helped beyond noise on both.**" in text
    assert "95 % +" in text


def test_other_sweeps_have_no_square(tmp_path):
    records = square(tmp_path, 0.1, 0.2)
    assert alignments(records[:1]) == []
    records[1]["options"] = {"bits": 4}
    assert alignments(records) == []
    assert alignment_markdown(records) == ""


def test_measurements_deleted_since_leave_a_square_without_interval(tmp_path):
    records = square(tmp_path, 0.1, 0.2)
    for record in records:
        for found in record["measurements"]:
            found["file"] = str(tmp_path / "gone")
    (found,) = alignments(records)
    assert all(gain.low is None for gain in found.gains)
    assert found.gains[0].verdict == "too few windows to tell"
