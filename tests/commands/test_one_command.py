"""``qsweep`` finds its commands; what a shell completes; the names that commands had before."""

import importlib
import os
import subprocess
import sys

import pytest

from qsweep.base.config_files import config_folder
from qsweep.base.errors import ConfigError
from qsweep.commands.completion import complete
from qsweep.commands.main import COMMANDS, main
from qsweep.commands.search import search_arguments
from qsweep.search.batch import one_batch

ROOT = config_folder("conf").parent


def run(module, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True, text=True, cwd=ROOT, timeout=120, env=os.environ | environment,
    )  # fmt: skip


def test_every_command_is_a_module_and_every_module_with_a_main_is_one():
    files = (ROOT / "src" / "qsweep" / "commands").glob("*.py")
    with_main = {f.stem for f in files if "\ndef main(" in f.read_text(encoding="utf-8")}
    assert with_main - {"main"} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_its_usage_names_it(name, capsys):
    try:
        assert main([name, "--help"]) == 0
    except SystemExit as end:
        assert end.code == 0
    said = capsys.readouterr().out
    assert said.startswith("qsweep: what" if name == "sweep" else f"usage: qsweep {name} ")
    assert name == "sweep" or len(said.partition("\n\n")[2]) > 60  # more than the usage


def test_help_lists_the_commands_and_what_a_folder_of_your_own_adds(tmp_path, capsys):
    (tmp_path / "quant").mkdir()
    (tmp_path / "quant" / "my_own.yaml").write_text("bits: 4\n")
    assert main(["--help", "--config-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{name} " in said and what in said for name, what in COMMANDS.items())
    assert "gptq, my_own, none" in said


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("reprot", "; did you mean 'report' or 'export'?"),
        ("serach", "; did you mean 'search'?"),
        ("gptq", "; there are certify, doctor, env, export, "),
    ],
)
def test_a_first_word_that_is_neither_is_one_line(word, hint):
    done = run("qsweep", word, "bits=3")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert f"error: {word!r} is neither a command nor an override (NAME=VALUE){hint}" in line


def test_a_sweep_may_be_called_one(capsys):
    for words in (["quant=awq", "--cfg", "job"], ["sweep", "quant=awq", "--cfg", "job"]):
        assert main(words) == 0
        assert "backend: native" in capsys.readouterr().out
    assert main(["sweep", "-m", "bitz=3,4"]) == 2
    assert "did you mean 'bits'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "module", [*(f"qsweep.{n}" for n in COMMANDS if n not in ("sweep", "search")), "qsweep.gguf.converter"]
)  # fmt: skip
def test_the_names_of_before_still_run(module):
    done = run(module, "--help")
    name = "env" if module.endswith("converter") else module.partition(".")[2]
    assert done.returncode == 0 and done.stdout.startswith(f"usage: qsweep {name} ")


def test_the_converter_is_installed_by_its_old_name_too(tmp_path):
    pytest.importorskip("llama_cpp")
    missing = str(tmp_path / "none.tar.gz")
    new = run("qsweep", "env", "create", "llama.cpp", "--sdist", missing)
    old = run("qsweep.gguf.converter", "install", "--sdist", missing)
    assert (new.returncode, old.returncode) == (1, 1)
    assert new.stderr == old.stderr and "none.tar.gz: not a readable source package" in old.stderr


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        ("quant=rtn bits=3,4", "quant=rtn bits=3,4 -m hydra/sweeper=qsweep_optuna +search=default"),
        ("-m bits=3,4 search=per_gb", "-m bits=3,4 +search=per_gb hydra/sweeper=qsweep_optuna"),
        ("--config-name=pareto search=per_gb", "--config-name=pareto search=per_gb"),
        ("--config-name=mine", "--config-name=mine"),
        ("--config-name=bits", "--config-name=bits -m hydra/sweeper=qsweep_optuna +search=default"),
    ],
)
def test_a_search_chooses_what_the_command_line_does_not(typed, given, tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults: [pareto, _self_]\n")
    more = ["--config-dir", str(tmp_path)] if "mine" in typed else []
    assert search_arguments([*typed.split(), *more]) == [*given.split()[:1], *more, *given.split()[1:]]  # fmt: skip


@pytest.mark.parametrize("words", [["quant=rtn", "bits=4"], ["--config-name=pareto"]])
def test_what_a_search_is_given_composes(words, capsys):
    assert main(["search", *words, "--cfg", "hydra", "-p", "hydra.sweeper"]) == 0
    assert "QsweepOptunaSweeper" in capsys.readouterr().out


def test_a_search_without_a_space_says_what_one_is(capsys):
    assert main(["search"]) == 2
    assert "a search needs a space: --config-name=pareto, or" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "answer", "is_all"),
    [
        ("qsweep re", ["report"], False),
        ("qsweep s", ["sweep", "search", "score", "store", "status", "sync", "sweeps"], False),
        ("qsweep quant=", [], False),
        ("qsweep report --o", ["--outputs", "--out"], True),
        ("qsweep quant=gptq re", [], False),
    ],
)
def test_a_shell_completes_commands_and_their_options(line, answer, is_all, monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", line)
    assert complete(["query=bash"]) is is_all
    assert capsys.readouterr().out.splitlines() == answer


def test_a_real_shell_completes(tmp_path):
    program = tmp_path / "qsweep"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m qsweep "$@"\n')
    program.chmod(0o755)
    script = """
        eval "$(qsweep -sc install=bash)"
        complete_words() {
            COMP_LINE="$1" COMP_POINT=${#1} COMP_WORDS=($1) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            hydra_bash_completion
            echo "${COMPREPLY[@]}"
        }
        complete_words "qsweep rep"
        complete_words "qsweep sweep quant=gpt"
    """
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT,
        env=os.environ | {"PATH": path},
    )  # fmt: skip
    assert done.stdout.splitlines() == ["report", "quant=gptaq quant=gptq"], done.stderr


def test_a_command_that_another_process_runs_needs_no_arguments_of_its_own(capsys):
    # Composing and running take their words as values: nothing is looked up in sys.argv.
    sweep = importlib.import_module("qsweep.commands.sweep")
    run = sweep.HydraRun(["-m", "bits=3,4", "tracking.uri=http://me:pw@h"])
    assert run.command == "qsweep -m bits=3,4 'tracking.uri=http://***@h'"
    with pytest.raises(ConfigError, match="did you mean 'bits'"):
        one_batch([sweep_config(bitz=3)])


def sweep_config(**more):
    from omegaconf import OmegaConf

    return OmegaConf.create(more)
