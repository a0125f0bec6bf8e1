"""Comparison at equal size, and which of several artifacts fits a budget and is best."""

import csv
import io
import math
from functools import partial

import numpy as np
import pytest
import torch

from helpers.measured import TOKENS, measured_trial
from helpers.records import reference
from helpers.typed import typed
from qsweep.base.errors import ConfigError
from qsweep.evaluate.metrics import clustered_mean, ppl_ratio
from qsweep.results.budget import HEADINGS, budget_answer, fits
from qsweep.results.html.data import SweepData
from qsweep.results.html.page import render
from qsweep.results.peers import with_peers
from qsweep.results.rows import rows, to_csv
from qsweep.results.windows import windows_of

CONFIG = {
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 256,
    "vocab_size": 4096,
}  # fmt: skip


@pytest.fixture
def measured(tmp_path):
    return partial(measured_trial, tmp_path)


def peers(records):
    return {row.record.method + row.key: row.peer for row in with_peers(rows(typed(records)))}


def test_the_neighbour_is_the_nearest_in_size_of_another_method(measured):
    found = peers(
        [
            reference(),
            measured("a", "gptq", 0.05, 1.00, noise=0.001),
            measured("b", "gptq", 0.02, 1.01, noise=0.001),
            measured("c", "awq", 0.06, 1.20, noise=0.001, seed=1),
            measured("d", "rtn", 0.40, 0.50, noise=0.001),
        ]
    )
    assert found["nonekey-none"] is None
    assert [found[k].key for k in ("gptqkey-a", "gptqkey-b", "awqkey-c", "rtnkey-d")] == [
        "key-c", "key-c", "key-b", "key-a",
    ]  # fmt: skip
    one = found["gptqkey-a"]
    assert one.size_gb == 1.2 and one.ppl_ratio == pytest.approx(math.exp(-0.01), abs=1e-3)
    assert one.ppl_ratio_low < one.ppl_ratio < one.ppl_ratio_high < 1 and one.tie is False
    assert one.kld_difference_low < one.kld_difference < one.kld_difference_high < 0


def test_the_interval_is_that_of_the_two_on_the_same_windows(measured):
    """Far narrower than the intervals of both to the reference, which are 0.05 to each side."""
    records = typed([measured("a", "gptq", 0.05, 1.0, noise=0.01),
                     measured("b", "awq", 0.05, 1.0, noise=0.01, seed=1)])  # fmt: skip
    one, other = with_peers(rows(records))
    mine, its = windows_of(one), windows_of(other)
    expected = ppl_ratio(*(torch.from_numpy(v) for v in (mine.nll[0], its.nll[0], mine.tokens)))
    assert (one.peer.ppl_ratio, one.peer.ppl_ratio_low, one.peer.ppl_ratio_high) == pytest.approx(
        (expected.value, expected.low, expected.high), rel=1e-12
    )
    assert one.peer.ppl_ratio_high - one.peer.ppl_ratio_low < 0.03
    assert one.peer.tie is other.peer.tie is True
    assert one.peer.ppl_ratio == pytest.approx(1 / other.peer.ppl_ratio)
    assert mine.kld.sum() == pytest.approx((mine.kld / TOKENS).sum() * TOKENS)


def test_numpy_and_torch_tell_the_same_to_the_last_digit():
    dice = np.random.default_rng(3)
    sums, counts = dice.normal(300, 30, 141), dice.integers(100, 2047, 141)
    same = clustered_mean(torch.from_numpy(sums), torch.from_numpy(counts))
    assert clustered_mean(sums, counts).value == pytest.approx(same.value, rel=1e-14)
    assert clustered_mean(sums, counts).stderr == pytest.approx(same.stderr, rel=1e-14)


def test_somebody_elses_file_is_laid_beside_one_of_ours(measured):
    records = [
        measured("one of theirs", "existing", 0.02, 1.00),
        measured("another of theirs", "existing", 0.02, 1.01),
        measured("ours", "gptq", 0.02, 1.30),
    ]
    found = peers(records)
    assert found["existingkey-one of theirs"].key == "key-ours"
    assert found["gptqkey-ours"].key == "key-another of theirs"
    # without one of ours, theirs are laid beside each other
    assert peers(records[:2])["existingkey-one of theirs"].key == "key-another of theirs"


def test_where_arrays_are_gone_the_neighbour_is_named_without_an_interval(measured, tmp_path):
    records = [measured("a", "gptq", 0.05, 1.0), measured("b", "awq", 0.01, 1.0)]
    (tmp_path / "a" / "arrays.safetensors").write_bytes(b"junk")
    for peer in peers(records).values():
        assert peer.ppl_ratio and peer.ppl_ratio_low is None and peer.tie is None


def test_another_text_is_no_neighbour(measured):
    other = measured("b", "awq", 0.01, 1.0)
    other["measurements"][0]["facts"] |= {"fingerprint": "other"}
    assert set(peers([measured("a", "gptq", 0.05, 1.0), other]).values()) == {None}


def test_table_and_page_show_it_and_flags_and_nothing_is_run(measured):
    evil = "<script>alert(1)</script>"
    records = [
        measured("a", "gptq", 0.05, 1.0, noise=0.01),
        measured("b", "awq", 0.05, 1.0, noise=0.01, seed=1),
    ]
    records[1]["name"] = f"pocket {evil}"
    records[1]["tensors"] = {
        "types": [{"type": evil, "tensors": 1, "weights": 5, "bpw": 4.5, "share": 1.0,
                   "quantized": True, "relative_error": 0.07}],
        "kinds": [{"kind": evil, "layers": [0, 1], "types": [evil, "Q4_K"], "bpw": [4.5, 4.5],
                   "errors": [0.07, None]}],
        "flags": [f"claims 4 bits; 61 % of its linear weights lie in BF16 ({evil})"],
        "notes": [], "worst": [], "file": "/nowhere/tensors.csv",
    }  # fmt: skip
    found = typed([reference(), *records])
    lines = list(csv.DictReader(io.StringIO(to_csv(with_peers(rows(found))))))
    by_key = {line["key"]: line for line in lines}
    assert by_key["key-a"]["peer"] == f"pocket {evil}"
    assert by_key["key-a"]["peer_tie"] == "true" and by_key["key-a"]["peer_size_gb"] == "1.0"
    assert by_key["key-b"]["flags"].startswith("claims 4 bits; 61 %")
    page = render([SweepData("demo", "", found)])
    assert evil not in page and "61 % of its linear weights lie in BF16" in page
    assert "nearest in size" in page and ", tie)" in page and "Tensors of" in page
    assert "every tensor, as CSV" not in page  # the file is not there


# --- budget ------------------------------------------------------------------------------------


def test_the_best_that_fits_and_by_how_much_others_do_not(measured):
    records = [
        reference(),
        measured("small", "rtn", 0.30, 1.0, noise=0.001),
        measured("fits", "gptq", 0.05, 2.0, noise=0.001, seed=1),
        measured("large", "gguf", 0.01, 3.0, noise=0.001, seed=2),
    ]
    found = [row for row in rows(typed(records)) if not row.record.reference]
    answer = budget_answer(found, CONFIG, int(2.5e9), 1024)
    assert answer.sentence.startswith("pocket fits is the best of those that fit 2.5")
    assert [fit.place for fit in answer.fits] == ["best", "", ""]
    last = answer.fits[-1]
    cache, buffers = 4 * 1024 * 2 * 2 * 64 * 2, 512 * 4 * (4096 + 512)
    assert last.footprint.total == 3e9 + cache + buffers == 2.5e9 - last.spare
    assert len(answer.lines[0]) == len(HEADINGS)
    assert answer.lines[-1][5] == "no, 0.5115 GB too much" and answer.lines[0][5].startswith(
        "yes, "
    )
    # a longer context may be what does not fit
    assert not fits(found[0], CONFIG, int(2.5e9), 10**7).fits
    nothing = budget_answer(found, CONFIG, int(1e6), 1024)
    assert nothing.sentence.startswith(
        "none fits 0.0010 GB at 1024 tokens: pocket small is nearest"
    )
    assert {fit.place for fit in nothing.fits} == {""}


def test_ties_are_ties_and_the_smallest_of_them_is_named(measured):
    records = [
        measured("a", "gptq", 0.0500, 2.0, noise=0.01),
        measured("b", "awq", 0.0501, 1.8, noise=0.01, seed=1),
        measured("c", "rtn", 0.30, 1.0, noise=0.01, seed=2),
    ]
    answer = budget_answer(rows(typed(records)), CONFIG, int(16e9), 2048)
    assert sorted(fit.place for fit in answer.fits) == ["", "best", "tie"]
    assert answer.sentence.endswith("the smallest of them is pocket b")
    assert "ties with" in answer.sentence


def test_without_arrays_nothing_is_called_better(measured, tmp_path):
    records = [measured("a", "gptq", 0.01, 2.0), measured("b", "awq", 0.3, 1.8)]
    (tmp_path / "b" / "arrays.safetensors").unlink()
    answer = budget_answer(rows(typed(records)), CONFIG, int(16e9), 2048)
    assert [fit.place for fit in answer.fits] == ["best", "tie"]


def test_a_type_of_cache_that_there_is_not(measured):
    (row,) = rows(typed([measured("a", "gptq", 0.01, 2.0)]))
    with pytest.raises(ConfigError, match="kv_cache 'q3'"):
        fits(row, CONFIG, int(1e9), 10, "q3")
