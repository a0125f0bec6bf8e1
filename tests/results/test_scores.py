"""Artifacts by rank: who is better beyond noise, and who is not told apart."""

from dataclasses import replace

import pytest

from helpers.synthetic import synthetic
from qsweep.evaluate.measurement import WindowScores, save_measurement
from qsweep.results.record import Figures
from qsweep.results.record_file import record_of
from qsweep.results.scores import ranked_by_quality, scores_table


@pytest.fixture
def artifact(tmp_path):
    """A record of an artifact whose windows have certain sums of NLL, and a ratio."""
    import torch

    template = next(r for r in map(record_of, synthetic(20)) if r.finished and not r.reference)

    def make(name, ratio, sums):
        folder = tmp_path / name
        folder.mkdir()
        nll = torch.tensor(sums, dtype=torch.float64)
        arrays = {"window_nll": nll, "window_tokens": torch.full((len(sums),), 10)}
        save_measurement(WindowScores({}, arrays, {}), folder)
        measured = template.primary
        metrics = Figures({**measured.metrics, "ppl_ratio": ratio})
        one = replace(measured, metrics=metrics, file=str(folder))
        config = {"quant": {"path": f"/somewhere/{name}"}}
        return replace(template, key=name, name=name, config=config, measurements=(one,))

    return make


def test_who_is_worse_on_every_window_is_behind_and_who_is_not_is_a_tie(artifact):
    base = [20.0 + n % 3 for n in range(10)]
    best = artifact("best.gguf", 1.01, base)
    near = artifact("near.gguf", 1.012, [v + (0.3 if n % 2 else -0.28) for n, v in enumerate(base)])
    far = artifact("far.gguf", 1.05, [v + 0.5 for v in base])
    ranks = ranked_by_quality([far, near, best])
    assert [(rank, record.key) for rank, record in ranks] == [
        (1, "best.gguf"),
        (1, "near.gguf"),
        (3, "far.gguf"),
    ]
    lines = scores_table([far, near, best])
    assert lines[0].split()[:2] == ["rank", "artifact"]
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["1=", "best.gguf"],
        ["1=", "near.gguf"],
        ["3", "far.gguf"],
    ]
    assert lines[4].startswith("=: a tie")


def test_two_files_of_one_name_are_told_apart(artifact):
    base = [20.0 + n % 3 for n in range(10)]
    alike = [
        replace(
            artifact(folder, 1.0 + 0.1 * number, [v + number for v in base]),
            name=f"m existing {folder}", config={"quant": {"path": f"/{folder}/m-Q4.gguf"}},
        )
        for number, folder in enumerate("ab")
    ]  # fmt: skip
    other = artifact("m-Q5.gguf", 1.3, [v + 2 for v in base])
    text = "\n".join(scores_table([*alike, other]))
    assert "m existing a" in text and "m existing b" in text and "m-Q4.gguf" not in text
    assert "m-Q5.gguf" in text and "m existing" not in text.splitlines()[3]
    lost = [replace(one, status="failed", reason="no space") for one in alike]
    assert scores_table(lost) == [
        "failed: m existing a: no space", "failed: m existing b: no space"
    ]  # fmt: skip


def test_few_windows_tell_nothing_and_what_did_not_finish_says_why(artifact, tmp_path):
    base = [20.0, 21.0, 22.0]
    one, other = artifact("one", 1.0, base), artifact("other", 1.2, [v + 2 for v in base])
    assert [rank for rank, _ in ranked_by_quality([one, other])] == [1, 1]
    lost = replace(artifact("lost", 1.0, base), status="failed", reason="two\nlines")
    lines = scores_table([one, lost])
    assert lines[-1] == "failed: lost: two lines" and not any("=:" in line for line in lines)
    # arrays that are gone tell nothing
    gone = artifact("gone", 1.3, base * 4)
    (tmp_path / "gone" / "arrays.safetensors").unlink()
    assert [rank for rank, _ in ranked_by_quality([artifact("whole", 1.0, base * 4), gone])] == [
        1,
        1,
    ]
