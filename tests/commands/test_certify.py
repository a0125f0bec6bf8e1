"""``qsweep certify``, as it is typed: what is accepted, rejected and left open, and what it is told by."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.sweeps import run_here
from qsweep.base.errors import ConfigError
from qsweep.base.files import sha256_of
from qsweep.commands import certify as commands
from qsweep.commands.main import main
from qsweep.commands.shared import shared_store
from qsweep.commands.trials import all_records, find_trial, one_of
from qsweep.evaluate.equivalence import OfWindows, judge
from qsweep.results.certificate.certificate import Line, _files
from qsweep.results.certificate.margins import Margin, parse_margins
from qsweep.results.certificate.measures import find_measure
from qsweep.results.certificate.over_windows import _measurement
from qsweep.results.certificate.sides import Sides, names

pytestmark = pytest.mark.usefixtures("warm_jobs")
BRIEF = ["corpus=[python_docs]", "eval.context=64", "eval.noise_floor=false", "tracking=none"]
COPY = "unquantized · a-copy"
MANY, TASKS = "eval.max_windows=16", ["eval.tasks=[code_cloze]", "eval.limit=30"]


def sweep(outputs, name, *words):
    done = run_here([*words, *BRIEF, f"sweep={name}", f"outputs_dir={outputs}"])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def swept(tmp_path_factory, pocket_dir):
    """Rounding to 3 and 8 bits with a task, a copy of the model, and a look at four windows."""
    outputs = tmp_path_factory.mktemp("certified")
    shutil.copytree(pocket_dir, outputs / "a-copy")
    sweep(outputs, "bits", "-m", "quant=rtn", "bits=3,8", MANY, *TASKS)
    sweep(outputs, "copies", "quant=artifact", f"quant.path={outputs / 'a-copy'}", MANY, *TASKS)
    sweep(outputs, "few", "quant=rtn", "bits=8", "eval.max_windows=4")
    # 96 does not divide the model's 256 inputs
    done = run_here(
        ["quant=rtn", "group_size=96", "bits=8", MANY, *BRIEF, "sweep=no", f"outputs_dir={outputs}"]
    )
    assert "skipped" in done.stdout
    return outputs


@pytest.fixture
def certify(swept, capsys):
    def run(trial, margin, *more, sweep="bits", outputs=swept):
        words = ["certify", trial, "--margin", margin, "--outputs", str(outputs)]
        code = main([*words, *(["--sweep", sweep] if sweep else []), *more])
        return code, *capsys.readouterr()

    return run


def measured(certify, *words, **more):
    code, out, _ = certify(*words, "--json", **more)
    found = json.loads(out)
    return code, {one["measure"]: one for one in found["measures"]}


def test_a_copy_of_the_model_is_accepted_at_any_margin(certify):
    code, out, _ = certify(
        COPY, "ppl 0 %, kld 0, top1 0 points, code_cloze 20 points", sweep="copies"
    )
    assert code == 0 and "accept: " in out
    code, found = measured(certify, COPY, "ppl 0 %, code_cloze 1 point", sweep="copies")
    assert found["ppl"]["worse_by"] == found["ppl"]["high"] == 0 and found["ppl"]["windows"] == 16
    # 30 answers that are all the same do not show that none of a hundred is another
    assert code == 3 and found["code_cloze"]["outcome"] == "inconclusive"
    assert found["code_cloze"]["high"] > 5 and found["code_cloze"]["needed"] > 100


def test_the_model_itself_is_accepted_by_what_it_is(certify):
    code, found = measured(certify, "none", "ppl 0 %, kld 0, top1 0 points, code_cloze 0 points")
    assert code == 0 and {one["outcome"] for one in found.values()} == {"accept"}


def test_what_costs_three_per_cent_is_rejected_at_one(certify):
    code, found = measured(certify, "rtn 3-bit g128", "ppl 1 %")
    assert code == 1 and found["ppl"]["worse_by"] > found["ppl"]["low"] > 3
    # one measure that rejects is enough, and one that holds does not help
    code, found = measured(certify, "rtn 3-bit g128", "ppl 1 %, kld 90")
    assert code == 1 and found["kld"]["outcome"] == "accept"


def test_eight_bits_are_accepted_by_what_they_cost(certify):
    code, out, _ = certify("rtn 8-bit g128", "ppl 1 %, kld 0.02, top1 5 points")
    assert code == 0
    assert "accept: pocket rtn 8-bit g128 is no worse than the unquantized model pocket" in out


def test_four_windows_decide_nothing(certify):
    code, out, _ = certify("rtn 8-bit g128", "ppl 1 %", sweep="few")
    assert (
        code == 3 and "fewer than 8 windows decide nothing; 4 more windows would accept it" in out
    )


def test_a_trial_is_tested_against_another(certify):
    code, found = measured(
        certify, "rtn 3-bit g128", "kld 0.01, ppl 1 %, top1 1 point, code_cloze 60 points",
        "--against", "rtn 8-bit g128",
    )  # fmt: skip
    assert code == 1 and found["kld"]["outcome"] == "reject"
    assert " against " in found["kld"]["figures"] and found["code_cloze"]["samples"] == 30
    code, found = measured(
        certify, "rtn 8-bit g128", "kld 0, ppl 0 %", "--against", "rtn 3-bit g128"
    )
    assert code == 0 and found["ppl"]["high"] < 0


def test_a_capability_is_all_answers_of_its_tasks(certify):
    code, found = measured(certify, "rtn 8-bit g128", "code 50 points, code_cloze 50 points")
    alone, pooled = found["code_cloze"], found["code"]
    assert code == 0 and pooled["measured_on"] == "code_cloze"
    assert (pooled["worse_by"], pooled["high"]) == (alone["worse_by"], alone["high"])


@pytest.mark.parametrize(
    ("margin", "words"),
    [
        ("pppl 1 %", "has no such measure; did you mean 'ppl'"),
        ("code_clse 1 point", "did you mean 'code_cloze'"),
        ("ppl 1", "--margin ppl: is of no unit; give %: ppl 1 %"),
        ("ppl 1 point", "--margin ppl: is in points; give %: ppl 1 %"),
        ("code_cloze 0.5", "is of no unit; give points: code_cloze 1 point"),
        ("kld 1 %", "is in %; give nats: kld 0.02"),
        ("ppl -1 %", "--margin ppl -1 %: below 0; a margin is how much worse may be, from 0"),
        ("ppl 1 %, ppl 2 %", "--margin ppl: is named twice; name it once"),
        ("ppl", "no measure with a number and a unit, as in --margin 'ppl 1 %, kld 0.02"),
        ("ppl 1 furlong", "no measure with a number and a unit"),
        ("ppl 1.2.3 %", "no measure with a number and a unit"),
        (" , ", "names no measure; for example --margin 'ppl 1 %"),
        ("ppl 1 2 %", "--margin ppl 1: pocket rtn 8-bit g128 has no such measure; did you mean 'ppl'"),
        ("kld_ 0.1", "has no such measure; did you mean 'kld'"),
        ("ppl: 1 %", "has no such measure; did you mean 'ppl'"),
        ("ppl:python_docs:paper:x 1 %", "has no such measure; there are code, code_cloze, kld, ppl"),
        ("ppl:python_dcs 1 %", "was not measured on python_dcs; did you mean 'python_docs'?"),
        ("ppl:python_docs:strided 1 %", "was not measured on strided; there are paper"),
        ("kld_kv 0.1", "was not run with its kv as served"),
    ],
)  # fmt: skip
def test_what_cannot_be_tested_is_one_line(certify, margin, words):
    code, out, err = certify("rtn 8-bit g128", margin)
    assert (code, out, len(err.splitlines())) == (2, "", 1) and words in err, err


def test_numbers_and_units_are_read_as_they_are_meant(certify):
    _, plain = measured(certify, "rtn 8-bit g128", "ppl 0.1 %, kld 0.001, code_cloze 1 point")
    _, found = measured(certify, "rtn 8-bit g128", "ppl 1e-1%, kld 1E-3 Nats, code_cloze +1 Point")
    assert found == plain


def test_margins_of_several_options_are_all_tested(certify):
    code, found = measured(certify, "rtn 3-bit g128", "ppl 1 %", "--margin", "kld 90")
    assert code == 1 and [*found] == ["ppl", "kld"]
    code, _, err = certify("rtn 8-bit g128", "ppl 1 %", "--margin", "ppl 2 %")
    assert code == 2 and "--margin ppl: is named twice" in err


def test_a_name_of_two_words_is_one_measure():
    (margin,) = parse_margins("long  answers 2 points")
    assert (margin.measure, margin.amount, margin.unit) == ("long answers", 2.0, "points")
    assert parse_margins("long answers 2 points, ppl 1%")[1].measure == "ppl"


def test_what_a_unit_that_is_missing_advises_is_taken(certify):
    for margin in ("ppl 1", "kld 1 %", "code_cloze 0.5"):
        _, _, err = certify("rtn 8-bit g128", margin)
        advised = err.rpartition(": ")[2].strip()
        assert certify("rtn 8-bit g128", advised)[0] in (0, 3)


@pytest.mark.parametrize(
    ("trial", "more", "words"),
    [
        ("rtn 8-bt g128", [], "no trial 'rtn 8-bt g128'; did you mean 'rtn 8-bit g128'"),
        ("rtn 8-bit g128", ["--against", "rtn 5-bit"], "no trial 'rtn 5-bit'"),
        ("rtn 8-bit g128", ["--out", "a.pdf"], "its name has to end in .md, .html or .json"),
        ("rtn 8-bit g128", ["--out", "/proc/none/a.md"], "give --out another FILE"),
    ],
)
def test_a_wrong_name_is_one_line(certify, trial, more, words):
    code, _, err = certify(trial, "ppl 1 %", *more)
    assert code == 2 and words in err and len(err.splitlines()) == 1, err


def test_a_trial_that_did_not_finish_says_why_and_what_runs_it_again(certify):
    code, _, err = certify("rtn 8-bit g96", "ppl 1 %", sweep="no")
    assert code == 2 and "skipped: " in err and "runs it again" in err, err


def test_a_trial_without_tasks_says_what_runs_one(certify):
    code, _, err = certify("rtn 8-bit g128", "code_cloze 1 point", sweep="few")
    assert code == 2 and "it ran no tasks: eval.tasks=[code_cloze] runs one" in err


def test_measured_on_other_windows_than_the_other_says_so(certify, swept):
    keys = [find_trial(swept, "rtn 8-bit g128", one).key for one in ("bits", "few")]
    code, _, err = certify(keys[0], "ppl 1 %", "--against", keys[1], sweep=None)
    assert code == 2 and "was not measured on the windows that" in err
    assert "run both in one sweep" in err


def test_what_is_gone_from_the_store_is_measured_again_by_the_command_it_names(
    certify, swept, tmp_path
):
    outputs = tmp_path / "outputs"
    shutil.copytree(swept, outputs)
    for folder in ("measurements", "tasks"):
        shutil.rmtree(outputs / "store" / folder)
    for file in outputs.glob("sweeps/*/trials/*.json"):
        file.write_text(file.read_text().replace(str(swept), str(outputs)))
    for margin, what in (("ppl 1 %", "each window is gone"), ("code_cloze 50 points", "answered")):
        code, _, err = certify("rtn 8-bit g128", margin, outputs=outputs)
        assert code == 2 and what in err
        command = err.strip().rpartition("; ")[2].removesuffix(" measures it again")
    words = shlex.split(command)
    assert words[0] == "qsweep" and run_here(words[1:]).returncode == 0
    assert certify("rtn 8-bit g128", "ppl 1 %, code_cloze 50 points", outputs=outputs)[0] == 0


@pytest.mark.parametrize("error", [RuntimeError("boom"), OSError(5, "no answer", "/somewhere")])
def test_no_error_is_taken_for_a_rejection(certify, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(commands, "all_records", fail)
    code, out, err = certify("rtn 8-bit g128", "ppl 1 %")
    assert (code, out, len(err.splitlines())) == (2, "", 1)


@pytest.fixture
def sides(swept):
    """Rounding to 8 bits and its reference, as they lie in one sweep."""
    records = all_records(swept, "bits")
    store = shared_store(swept, None)
    trial = one_of(records, "rtn 8-bit g128", swept)
    references = [record for record in records if record.reference]
    return Sides(trial, None, references, store, commands._arrays_in(store))


def test_another_record_of_the_reference_does_where_the_first_ones_arrays_are_gone(sides):
    (base,) = sides.references
    lost = replace(
        base,
        measurements=tuple(replace(m, key="gone", file=None) for m in base.measurements),
        tasks=tuple(replace(task, keys=("gone",)) for task in base.tasks),
    )
    for name in ("ppl", "code_cloze"):
        found = find_measure(name, replace(sides, references=[lost, base]))
        assert found == find_measure(name, sides)
        with pytest.raises(ConfigError, match="is gone from the store"):
            find_measure(name, replace(sides, references=[lost]))


def test_asked_in_another_dtype_it_says_which(sides):
    other = replace(sides.trial, dtype="bfloat16", device="cuda:0")
    with pytest.raises(
        ConfigError, match="asked code_cloze in bfloat16 on cuda, and .* on cpu; run"
    ):
        find_measure("code_cloze", replace(sides, against=other))


def test_only_what_can_be_named_is_offered(sides):
    trial = sides.trial
    task, first = trial.tasks[0], trial.primary
    assert {"ppl", "code_cloze", "code"} <= set(names(trial))
    dull = replace(trial, tasks=(replace(task, metric="perplexity"),))
    assert "code" not in names(dull) and "code_cloze" in names(dull)
    with pytest.raises(ConfigError, match="none of its tasks says") as caught:
        find_measure("code", replace(sides, trial=dull))
    assert not str(caught.value).endswith("code")
    more = [replace(first, primary=False, preset=preset) for preset in ("llamacpp", "strided")]
    twice = replace(sides, trial=replace(trial, measurements=(first, *more)))
    offered = [f"ppl:python_docs:{one.preset}" for one in more]
    assert set(offered) < set(names(twice.trial)) and "ppl:python_docs" not in names(twice.trial)
    assert [_measurement(name, twice.trial) for name in offered] == more
    elsewhere = replace(trial, measurements=(first, replace(more[0], corpus="chat")))
    with pytest.raises(ConfigError, match="not measured on paper; there are llamacpp$"):
        _measurement("ppl:chat:paper", elsewhere)


def test_of_a_reference_that_predicts_nothing_nothing_is_certified(sides):
    """Its perplexity stays what it is, and a ratio of 1 would be accepted."""
    first = replace(sides.trial.primary, no_verdict="the reference predicts nothing")
    blind = replace(sides, trial=replace(sides.trial, measurements=(first,)))
    for name in ("ppl", "kld", "top1"):
        with pytest.raises(ConfigError, match="on python_docs: the reference predicts nothing"):
            find_measure(name, blind)


def test_who_stopped_by_a_rule_is_told_how_more_come(sides):
    margin = Margin("ppl", 1.0, "%")
    measure = find_measure("ppl", sides)
    wide = OfWindows(0.0, 0.1, 12, sequential=True)
    for how in ("", "read until ratio ±5 %"):
        line = Line(replace(measure, evidence=wide, how=how), margin, judge(wide, margin.loss, 8))
        assert "more windows would accept it" in line.needed
        assert ("eval.until" in line.needed) is bool(how)


def test_somebody_elses_weights_are_told_as_long_as_they_are_those_measured(
    certify, swept, tmp_path
):
    _, out, _ = certify(COPY, "ppl 1 %", "--json", sweep="copies")
    file = swept / "a-copy" / "model.safetensors"
    assert json.loads(out)["files"] == {file.name: sha256_of(file)}
    shutil.copytree(swept / "a-copy", tmp_path / "changed")
    record, store = find_trial(swept, COPY, "copies"), shared_store(swept, None)
    moved = replace(record, artifact=replace(record.artifact, path=str(tmp_path / "changed")))
    assert _files(moved, store) == _files(record, store)
    (tmp_path / "changed" / "config.json").write_text("{}")
    assert _files(moved, store) == []


def test_both_sides_are_made_again(certify, swept):
    sides = [find_trial(swept, *one) for one in ((COPY, "copies"), ("rtn 8-bit g128", "bits"))]
    _, out, err = certify(
        sides[0].key, "ppl 1 %", "--json", "--against", sides[1].key, sweep=None
    )  # fmt: skip
    commands = json.loads(out)["commands"]
    assert commands[:2] == [side.command for side in sides] and len(commands) == 3


def test_the_certificate_has_all_that_makes_it_again(certify, swept, tmp_path):
    files = [tmp_path / f"certificate.{kind}" for kind in ("md", "html", "json")]
    wanted = [word for file in files for word in ("--out", str(file))]
    margin = "ppl 1 %, kld 0.02"
    code, out, _ = certify("rtn 8-bit g128", margin, *wanted)
    assert code == 0 and out.splitlines()[1:] == [str(file) for file in files]
    record = find_trial(swept, "rtn 8-bit g128", "bits")
    stored = Path(record.artifact.path) / "manifest.json"
    weights = json.loads(stored.read_text())["files"]["model.safetensors"]["sha256"]
    fingerprint = record.primary.facts["fingerprint"]
    for text in (file.read_text() for file in files):
        for part in (record.key, record.model_hash, weights, fingerprint, "code_cloze"):
            assert part in text
        assert "qsweep certify" in text and "another draw" not in text  # it saw no calibration
    found = json.loads(files[2].read_text())
    again = shlex.split(found["commands"][1])
    assert main(again[1:]) == 0
    page = files[1].read_text()
    assert (
        page.count("<svg") == 2
        and "<script" not in page
        and "http" not in page.split("<style>")[0].replace("http-equiv", "")
    )
