"""The command line as a user meets it."""

import importlib
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.sweeps import run_here

ROOT = Path(__file__).resolve().parents[2]


def qsweep(*arguments):
    """In a process of its own, as the shell starts it."""
    return subprocess.run(
        [sys.executable, "-m", "qsweep", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )


def test_help_is_quick_and_names_everything_that_can_be_varied():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = qsweep("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # processor time, since the machine may be busy: about half a second, where torch alone needs three
    assert after.ru_utime - before.ru_utime < 1.5
    assert result.returncode == 0
    scalars = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text())
    for name in set(scalars) - {"defaults", "hydra"}:
        assert f"\n{name}: " in result.stdout
    for group in ("model", "quant", "calibration", "corpus", "eval", "tracking"):
        for file in (ROOT / "conf" / group).glob("*.yaml"):
            assert file.stem in result.stdout


def test_the_job_configuration_is_printed():
    result = qsweep("quant=awq", "--cfg", "job", "--resolve")
    assert result.returncode == 0
    quant = yaml.safe_load(result.stdout)["quant"]
    assert quant["backend"] in quant["backends"]
    assert {"native", "gptqmodel", "autoawq"} <= quant["backends"].keys()
    assert (quant["bits"], quant["group_size"], quant["sym"]) == (4, 128, "auto")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bitz=3"], "no option 'bitz'; did you mean 'bits'?"),
        (["quant=gtpq"], "quant=gtpq: no such choice; did you mean 'gptq' or 'gptaq'?"),
        (["-m", "quant=gptq,awk"], "quant=awk: no such choice; did you mean 'awq'?"),
        (
            ["quant.damp_persent=1"],
            "no option 'quant.damp_persent'; did you mean 'quant.damp_percent'",
        ),
        (["quant.backend=nativ"], "quant.backend=nativ: no such backend; did you mean 'native'?"),
        (["--config-name=bist"], "--config-name=bist: no such file; did you mean 'bits'?"),
        (
            ["-m", "quant=gptq,gguf", "quant.imatrix=true"],
            "quant.imatrix: only quant=gguf has this option; a sweep that has others, too, "
            "gives it under 'when' in a file (sweeps/pareto.yaml)",
        ),
        (
            ["corpus=ultrachat", "corpus.assistant_only=true"],
            "corpus.assistant_only: only corpus=file has this option by this name; of another text "
            "it is corpus.NAME.assistant_only, as corpus.chat.assistant_only",
        ),
        (["foo"], "'foo' is not an override; write NAME=VALUE"),
        (["bits=three"], "quant.bits=three: "),
        (["device=cuba"], "device=cuba: not a device; did you mean 'cuda'"),
        (["device=cuda:7"], "device=cuda:7"),
        (["eval.presets=[gtpq]"], "did you mean 'gptq'?"),
        (["eval.presets=[papre]"], "did you mean 'paper'?"),
        (["eval.primary=wikitext2"], "eval.primary=wikitext2: not among the corpora"),
        (["n_jobs=0"], "n_jobs=0: a number from 1, or auto"),
        (["timeout_s=-1"], "timeout_s=-1"),
        (["model.path=/no/such/dir"], "model.path=/no/such/dir: no such directory"),
        (["corpus=file"], "corpus.path"),
        (["corpus=file", "corpus.path=/no/such.txt"], "/no/such.txt"),
        (["calibration.num_samples=0"], "calibration.num_samples=0: must be at least 1"),
        (["=4"], "'=4' is not an override; write NAME=VALUE"),
        (["~nosuch"], "~nosuch: there is no option 'nosuch'; there are bits, "),
        (["hydra.mode=FOO"], "hydra.mode=FOO: the mode is RUN or MULTIRUN"),
        (["hydra.nosuch=1"], "Hydra has no option 'hydra.nosuch'; --cfg hydra shows"),
        (["--config-path=/no/such"], "--config-path=/no/such: no such folder"),
        (["--config-name=../conf/config", "quant=rtn"], "quant: this configuration file chooses"),
        (["--nosuch"], "unrecognized arguments: --nosuch; qsweep --help"),
        (["--cfg=jobs"], "invalid choice: 'jobs'"),
        (["model=a/b"], "model=a/b: no such choice; there are "),
        (["-m", "sweep=a,b"], "sweep: a sweep has one value of it, and here are several"),
        (["-m", "launch=slurm", "launch.partition=a,b"], "in quotes, 'NAME=\"1,2\"'"),
        (["-m", "launch=workers", 'launch.queue="a,b"'], "launch.queue=a,b: no database"),
        (["-m", "tracking=mlflow,none"], "tracking: a sweep has one value of it"),
        (["-m", "outputs_dir=/no/a,/no/b"], "outputs_dir: a sweep has one value of it"),
        (
            ["--config-name=pareto", "tracking.uri=http://a,http://b"],
            "tracking.uri: a sweep has one value of it",
        ),
        (["sweep=nul"], "sweep='nul': is a device's name on Windows"),
    ],
)
def test_an_invalid_configuration_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    result = run_here([f"outputs_dir={tmp_path / 'out'}", *arguments])
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not (tmp_path / "out" / "sweeps").exists()


def test_an_option_of_another_text_is_given_under_its_name():
    result = run_here(["--cfg=job", "corpus=ultrachat", "corpus.ultrachat.assistant_only=true"])
    assert result.returncode == 0, result.stderr
    assert yaml.safe_load(result.stdout)["corpus"]["ultrachat"]["assistant_only"] is True


@pytest.mark.parametrize("arguments", [["outputs_dir=null"], ["-m", "outputs_dir=[]", "bits=3,4"]])
def test_an_outputs_folder_that_is_none_leaves_no_folder_behind(tmp_path, arguments):
    result = run_here(arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert "outputs_dir=" in result.stderr and len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_outputs_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = qsweep(f"outputs_dir={tmp_path / 'file' / 'out'}")
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "outputs_dir" in result.stderr


@pytest.mark.parametrize(
    "module",
    ["sync", "prune", "export", "doctor", "ui", "sweeps", "report", "env", "sweep"],
)
def test_arguments_that_a_command_does_not_know_are_one_line(capsys, module):
    main = importlib.import_module(f"qsweep.commands.{module}").main
    with pytest.raises(SystemExit, match="2"):
        main(["--password=s3cretpw"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and lines[0].endswith(" --help")
    assert "s3cretpw" not in lines[0]


@pytest.mark.parametrize("port", ["0", "65536", "x", "-1"])
def test_a_port_that_is_none_is_named(capsys, port):
    from qsweep.commands.ui import main

    with pytest.raises(SystemExit, match="2"):
        main([f"--port={port}"])
    assert f"'{port}' is no number from 1 to 65535" in capsys.readouterr().err
