"""Records to rows, CSV, Markdown, the terminal table, and the sanity checks over them."""

import csv
import io
import json
import math
from pathlib import Path

import pytest

from helpers.records import measurement, reference, shown, trial
from helpers.typed import on_disk, table, typed, values
from qsweep.base import numbers
from qsweep.evaluate.verdicts import is_open, verdict
from qsweep.results.answers import answers
from qsweep.results.checks import check
from qsweep.results.columns.derived import status_word
from qsweep.results.columns.table import PROMISED
from qsweep.results.markdown import results_markdown
from qsweep.results.rows import counts, ranked, rows, to_csv
from qsweep.results.write import write_results

answers, check, results_markdown, counts, ranked, rows, status_word, write_results = map(
    on_disk, (answers, check, results_markdown, counts, ranked, rows, status_word, write_results)
)

ISSUE_COLUMNS = (
    "status,model,method,backend,bits,group_size,desc_act,sym,type,calibration,corpus,preset,bpw,"
    "bpw_total,size_gb,ppl,ppl_stderr,ppl_ratio,ppl_ratio_low,ppl_ratio_high,kld,kld_stderr,kld_p99,"
    "top1_agreement,quality,quality_per_gb,verdict,quantize_s,evaluate_s,peak_memory_gb,reason,key,"
    "artifact"
)


def sweep():
    return [
        reference(),
        trial("gptq 3-bit", "gptq", 1.34, 0.03, bits=3, size_gb=0.0056),
        trial("gptq 4-bit", "gptq", 1.063, 0.008, bits=4, size_gb=0.0063),
        trial("gptq 8-bit", "gptq", 1.002, 0.001, bits=8, size_gb=0.0090),
        trial("awq 8-bit", "awq", bits=8, reason="killed by signal 9 |\nout of memory?"),
        trial("gguf 7-bit", "gguf", bits=7, status="skipped", reason="no 7-bit type"),
    ]


def degradation():
    types = [("Q8_0", 1.003), ("Q4_K_M", 1.056), ("Q3_K_M", 1.146), ("Q2_K", 1.407)]
    return [
        reference(),
        *(trial(f"gptq {b}-bit", "gptq", r, bits=b) for b, r in ((8, 1.0004), (4, 1.064))),
        trial("awq 4-bit", "awq", 1.049, bits=4),
        *(trial(f"gguf {t}", "gguf", r, options={"type": t}) for t, r in types),
    ]


# rows and CSV


def test_csv_has_the_promised_columns_first_and_one_row_per_place():
    records = sweep()
    second = measurement(1.09, 0.01, 0.0063, place=("python_code", "paper"))
    records[2]["measurements"].append(second)
    written = list(csv.DictReader(io.StringIO(to_csv(rows(records)))))
    assert ",".join(PROMISED) == ISSUE_COLUMNS
    assert to_csv(rows(records)).startswith(ISSUE_COLUMNS + ",")
    assert len(written) == 7
    assert [r["corpus"] for r in written if r["key"] == "key-gptq 4-bit"] == [
        "python_docs",
        "python_code",
    ]
    four = next(r for r in written if r["key"] == "key-gptq 4-bit")
    assert float(four["ppl"]) == 18.0 * 1.063
    assert (four["bits"], four["group_size"], four["sym"], four["desc_act"]) == (
        "4",
        "128",
        "true",
        "",
    )
    assert four["expected_low"] == "1.05"
    assert four["artifact"] == "/store/artifacts/gptq 4-bit"


def test_every_row_shows_the_noise_floor_that_the_reference_measured():
    records = sweep()
    floors = {"kld_floor_batch": 1e-6, "kld_floor_dtype": 0.0012}
    records[0]["measurements"][0]["metrics"] |= floors
    finished = [row for row in table(records) if row["status"] == "finished"]
    assert {row["noise_floor"] for row in finished} == {0.0012}
    assert "noise floor of KLD 0.0012" in results_markdown("demo", records)
    assert {row.get("noise_floor") for row in table(sweep())} == {None}


def test_rows_are_sorted_by_quality_per_gb_with_the_unfinished_last():
    names = [row["name"] for row in table(sweep())]
    assert names == [
        "pocket gptq 8-bit",
        "pocket gptq 4-bit",
        "pocket none",
        "pocket gptq 3-bit",
        "pocket awq 8-bit",
        "pocket gguf 7-bit",
    ]


def test_a_failed_trial_has_one_row_without_figures():
    row = next(r for r in rows(sweep()) if r.record.status == "failed")
    assert not {"ppl", "kld", "quality", "verdict", "corpus"} & values(row).keys()
    text = to_csv([row])
    assert "killed by signal 9 | out of memory?" in text
    assert len(text.splitlines()) == 2


def test_quality_that_is_not_a_number_sorts_below_every_number():
    broken = trial("gptq 2-bit", "gptq", 1.5, bits=2)
    broken["measurements"][0]["metrics"] |= {"ppl": math.inf, "quality_per_gb": math.nan}
    assert ranked([broken, *sweep()])[4].name == "pocket gptq 2-bit"
    assert ",inf," in to_csv(rows([broken]))


@pytest.mark.parametrize("text", ["=1+1", "@cmd", "+x", "-y"])
def test_csv_cells_cannot_be_formulas(text):
    row = rows([trial("x", "rtn", reason=text)])[0]
    assert next(csv.DictReader(io.StringIO(to_csv([row]))))["reason"] == "'" + text


def test_negative_numbers_stay_numbers():
    row = rows([trial("x", "gptq", 1.5, options={"bits": 3, "group_size": -1})])[0]
    read = next(csv.DictReader(io.StringIO(to_csv([row]))))
    assert read["group_size"] == "-1"
    assert float(read["quality"]) < 0


def test_best_counts_only_what_a_serving_runtime_loads():
    records = sweep()
    assert answers(records)[0].record.name == "pocket gptq 8-bit"
    records[3]["artifact"]["runtimes"] = ["gptqmodel"]
    assert answers(records)[0].record.name == "pocket gptq 4-bit"
    assert answers([reference()]) == []
    assert counts(records) == {"finished": 4, "failed": 1, "skipped": 1}


# verdicts


@pytest.mark.parametrize(
    ("ratio", "word"),
    [
        (0.99, "yes"),
        (1.06, "yes"),
        (1.061, "usually"),
        (1.12, "usually"),
        (1.2, "marginal"),
        (1.21, "problematic"),
        (math.nan, "problematic"),
        (math.inf, "problematic"),
    ],
)
def test_verdict_bounds(ratio, word):
    assert verdict(ratio) == word


def test_a_verdict_whose_interval_straddles_a_bound_says_so():
    assert is_open(1.055, 1.071)
    assert not is_open(1.062, 1.11)
    assert is_open(None, 1.2)
    assert not is_open(1.0, 1.0)
    assert status_word(trial("x", "gptq", 1.063, 0.008, bits=4)) == "usually?"
    assert status_word(trial("x", "gptq", 1.09, 0.01, bits=4)) == "usually"
    assert status_word(reference()) == "reference"


def test_nothing_is_expected_of_a_k_quant_that_fell_back():
    record = trial("gguf", "gguf", 1.1, options={"bits": 4, "type": "Q4_K_M"})
    assert typed(record).expected == (1.05, 1.12)
    record["artifact"]["details"] = {"fallback": {"Q5_0": 30}}
    assert typed(record).expected is None


# cells


def test_numbers_are_readable():
    assert numbers.with_error(18.2345, 0.41) == "18.23 ±0.41"
    assert numbers.with_error(1234.5, 12.0) == "1234 ±12"
    assert numbers.with_error(18.2345, None) == "18.235"
    # Where four decimals would say nothing, powers of ten.
    assert numbers.with_error(1.23e-4, 3.4e-6) == "1.2e-04 ±3e-06"
    assert numbers.with_error(0.0005, 0.00002) == "0.00050 ±0.00002"
    assert numbers.with_error(0.0202, 0.0007) == "0.0202 ±0.0007"
    assert numbers.ratio(1.0025) == "1.002" or numbers.ratio(1.0025) == "1.003"
    assert numbers.ratio(1234.5) == "1234" or numbers.ratio(1234.5) == "1235"
    assert numbers.divergence(0.0) == "0"
    assert numbers.divergence(0.00001) == "1e-05"
    assert numbers.divergence(0.0562) == "0.0562"
    assert numbers.gigabytes(0.0056) == "0.0056"
    assert numbers.gigabytes(16.06) == "16.1"
    assert numbers.percent(0.9345) == "93.5%" or numbers.percent(0.9345) == "93.4%"
    assert [numbers.seconds(s) for s in (0.41, 42, 190, 7512)] == ["0.4s", "42s", "3m10s", "2h05m"]
    assert numbers.significant(math.nan, 3) == "nan"
    assert numbers.significant(None, 3) == ""


def test_markdown_cells_hold_no_markup():
    assert numbers.markdown("a|b\nc <b>*x*") == "a\\|b c \\<b\\>\\*x\\*"
    assert numbers.one_line("a\x1b[31m\tb\r\n c") == "a [31m b c"


# Markdown


def test_results_are_written_as_csv_and_markdown(tmp_path: Path):
    csv_file, page = write_results(tmp_path / "demo", sweep(), "python -m qsweep -m bits=3,4,8")
    assert (csv_file.name, page.name) == ("results.csv", "results.md")
    assert not list((tmp_path / "demo").glob(".*"))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# demo\n")
    assert "`python -m qsweep -m bits=3,4,8`" in text
    assert "4 finished, 1 failed, 1 skipped" in text
    assert "## python_docs, preset paper" in text
    assert "windows 41" in text
    assert "- failed: pocket awq 8-bit: killed by signal 9 \\| out of memory?" in text
    assert "All checks hold" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4
    assert {line.replace("\\|", "").count("|") for line in lines} == {16}


def test_markdown_without_a_finished_trial(tmp_path: Path):
    _, page = write_results(tmp_path, [trial("x", "gptq", bits=4, reason="out of memory")])
    assert "out of memory" in page.read_text(encoding="utf-8")
    write_results(tmp_path, [])


# the terminal table


@pytest.mark.parametrize("width", [80, 100, 130])
def test_the_table_fits_the_terminal_with_one_line_per_trial(width):
    text = shown(sweep(), width, terminal=False)
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines[:9])
    row = next(line for line in lines if line.startswith("gptq 4-bit"))
    assert "1.063" in row
    assert "usually?" in row
    assert ("±" in row) == (width >= 100)
    assert ("1.055-1.071" in row) == (width >= 100)


@pytest.mark.parametrize("width", [80, 100, 110])
def test_the_fields_own_rows_show_what_it_expects_of_them(width):
    text = shown(degradation(), width, terminal=False)
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines[:11])
    row = next(line for line in lines if line.startswith("awq 4-bit"))
    assert ("1.04-1.08" in row) == (width >= 100)
    beyond = [*degradation(), trial("gptq 3-bit", "gptq", 1.3, bits=3)]
    assert "expected" not in shown(beyond, width, terminal=False)


def test_the_table_is_plain_without_a_terminal_and_coloured_in_one():
    plain, coloured = (shown(sweep(), 100, terminal=t) for t in (False, True))
    assert "\x1b[" not in plain
    assert plain.isascii() or "±" in plain
    assert "\x1b[" in coloured


def test_below_the_table_stand_reasons_and_counts():
    text = shown(sweep(), 100, terminal=False)
    assert "failed: pocket awq 8-bit: killed by signal 9 | out of memory?" in text
    assert "skipped: pocket gguf 7-bit: no 7-bit type" in text
    assert "4 finished, 1 failed, 1 skipped; results in outputs/sweeps/demo/results.csv" in text
    assert "no winner: pocket gptq 8-bit (yes) leads, but pocket gptq 4-bit is within" in text
    clear = [r for r in sweep() if r["name"] != "pocket gptq 4-bit"]
    assert "most quality per GB: pocket gptq 8-bit (yes)\n" in shown(clear, 100, terminal=False)
    assert "0 finished" not in shown([trial("x", "rtn", reason="r")], 80, terminal=False)


def test_trials_of_one_name_say_in_what_they_differ():
    twins = [
        trial("gptq 3-bit", "gptq", 1.1, bits=3, calibration="python_docs"),
        trial("gptq 3-bit", "gptq", 1.2, bits=3, calibration="python_code", key="other"),
        trial("awq 3-bit", "awq", 1.3, bits=3),
    ]
    for text in (shown(twins, 110, terminal=False), results_markdown("demo", twins)):
        assert "gptq 3-bit python_docs" in text and "gptq 3-bit python_code" in text
        assert "awq 3-bit " in text and "awq 3-bit python" not in text


def test_measured_speed_comes_before_the_time_that_a_trial_took():
    timed = [r | {"speed": {"decode_tps": 123.4, "decode_tokens": 32.0}} for r in sweep()[:3]]
    for width, time_too in ((110, False), (118, True)):
        text = shown(timed, width, terminal=False)
        assert "tok/s" in text and "123" in text and ("|time" in text) == time_too
    speed = results_markdown("demo", timed).partition("## Speed")[2]
    assert " 32 |" in speed and "32.0" not in speed


def test_markup_in_names_is_shown_as_it_is():
    record = trial("[bold]x[/bold]", "gptq", 1.05, bits=4)
    assert "[bold]x[/bold]" in shown([record], 120, terminal=False)


# sanity


def test_a_sound_sweep_raises_no_flag():
    assert check(sweep()) == []


def test_more_bits_that_are_worse_beyond_noise_are_flagged():
    records = sweep()
    records[3] = trial("gptq 8-bit", "gptq", 1.09, 0.001, bits=8)
    lines = check(records)
    assert any("gptq 8-bit is worse than pocket gptq 4-bit" in line for line in lines)
    assert any("far from its reference for 8 bits" in line for line in lines)


def test_noise_and_other_options_raise_no_flag():
    noisy = [
        trial("gptq 3-bit", "gptq", 1.10, 0.04, bits=3),
        trial("gptq 4-bit", "gptq", 1.12, 0.04, bits=4),
    ]
    assert check(noisy) == []
    other = trial("gptq 8-bit", "gptq", 1.3, 0.001, bits=4)
    other["options"] = {"bits": 4, "group_size": 32}
    assert check([trial("gptq 3-bit", "gptq", 1.1, 0.001, bits=3), other]) == []


def test_gguf_families_are_compared_apart_and_with_q8_0():
    def gguf(kind, bits, ratio):
        options = {"bits": bits, "type": kind}
        return trial(f"gguf {kind}", "gguf", ratio, 0.002, options=options)

    apart = [gguf("Q3_K_M", 3, 1.11), gguf("Q4_0", 4, 1.21)]
    assert check(apart) == []
    assert len(check([*apart, gguf("Q8_0", 8, 1.3)])) == 3  # 2 comparisons, and 8 bits


def test_a_model_that_llama_cpp_runs_otherwise_is_flagged_once():
    records = [trial(f"gguf {n}", "gguf", 1.01, bits=n, options={"bits": n}) for n in (4, 8)]
    for record in records:
        record["artifact"]["details"]["llama_cpp"] = {"agrees": True, "kld": 1e-9, "limit": 1e-5}
    assert check(records) == []
    for record in records:
        record["artifact"]["details"]["llama_cpp"] |= {"agrees": False, "kld": 0.19}
    (line,) = check(records)
    assert "another function" in line and "KLD 0.19" in line
    for record in records:
        record["artifact"]["details"]["llama_cpp"] = {"agrees": False, "reason": "no such op"}
    (line,) = check(records)
    assert "cannot run its GGUF files: no such op" in line


def test_the_reference_must_equal_itself():
    record = reference()
    record["measurements"][0]["metrics"]["kld"] = 1e-7
    assert ["differs from itself" in line for line in check([record])] == [True]


def test_worse_than_rounding_and_better_than_the_reference_are_flagged():
    rtn = trial("rtn 4-bit", "rtn", 1.10, 0.005, bits=4)
    gptq = trial("gptq 4-bit", "gptq", 1.15, 0.005, bits=4)
    assert any("the baseline" in line for line in check([rtn, gptq]))
    odd = trial("awq 4-bit", "awq", 0.95, 0.005, bits=4)
    assert any("better than its reference" in line for line in check([odd]))


def test_checks_survive_what_is_not_a_number():
    broken = trial("gptq 2-bit", "gptq", 1.5, bits=2)
    broken["measurements"][0]["metrics"] |= dict.fromkeys(
        ("ppl_ratio", "ppl_ratio_low", "ppl_ratio_high"), math.nan
    )
    single = trial("gptq 3-bit", "gptq", 1.4, bits=3)
    single["measurements"][0]["metrics"] |= {"ppl_ratio_low": None, "ppl_ratio_high": None}
    records = json.loads(json.dumps([broken, single, *sweep()]))
    assert any("ratio is nan" in line for line in check(records))


def test_the_answer_says_what_activations_do_to_it():
    records = sweep()
    leader = next(r for r in records if r["name"] == answers(records)[0].record.name)
    leader["measurements"][0]["metrics"]["ppl_ratio_activations"] = 1.234
    said = shown(records, 100, terminal=False)
    assert "its weights alone, activations as served take the ratio to 1.234" in said
