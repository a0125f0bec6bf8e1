"""``qsweep certify``, as it is typed: what is accepted, rejected and left open, and what it is told by."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from helpers.sweeps import run_here
from qsweep.commands.main import main
from qsweep.commands.trials import find_trial

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
        (" , ", "names no measure; for example --margin 'ppl 1 %"),
        ("ppl:python_dcs 1 %", "was not measured on python_dcs; did you mean 'python_docs'?"),
        ("ppl:python_docs:strided 1 %", "was not measured on strided; there are paper"),
        ("kld_kv 0.1", "was not run with its kv as served"),
    ],
)  # fmt: skip
def test_what_cannot_be_tested_is_one_line(certify, margin, words):
    code, out, err = certify("rtn 8-bit g128", margin)
    assert (code, out, len(err.splitlines())) == (2, "", 1) and words in err, err


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
