"""A sweep with ``model.stream=true`` finds what one without it finds, under the same keys."""

import pytest

from helpers.sweeps import qsweep, rows

MEASURED = ("key", "ppl", "kld", "top1_agreement", "size_gb", "bpw", "status")
pytestmark = pytest.mark.usefixtures("warm_jobs")


def test_a_streamed_sweep_finds_the_same_under_the_same_keys(tmp_path, tiny_model):
    text = tmp_path / "text.txt"
    text.write_text("A sentence that is measured, and another one that says the same again.\n" * 40)
    sweep = [
        *("-m", f"model.path={tiny_model('llama')}", "quant=rtn,gptq", "group_size=64"),
        *("quant.backend=native", "eval.context=32", "calibration.max_seq_len=32"),
        *("corpus=file", f"corpus.path={text}", "calibration=file", f"calibration.path={text}"),
    ]
    found = []
    for stream in ("false", "true"):
        out = tmp_path / stream
        result = qsweep(out, *sweep, f"model.stream={stream}")
        assert result.returncode == 0, result.stderr
        found.append([{name: row.get(name) for name in MEASURED} for row in rows(out)])
    assert found[0] == found[1]
    assert {row["status"] for row in found[0]} == {"finished"}
    # Keys are the same: nothing is left to do for a sweep that streams otherwise.
    again = qsweep(tmp_path / "false", *sweep, "model.stream=true")
    assert again.returncode == 0
    assert [row.get("key") for row in rows(tmp_path / "false")] == [r["key"] for r in found[0]]
