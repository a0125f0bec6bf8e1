"""Every code block of README, CONTRIBUTING and docs that can run is run; the rest says why not."""

import contextlib
import importlib
import json
import os
import re
import shutil
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

import docs_pages
from helpers.markdown import LANGUAGES, PAGES, ROOT, all_blocks, commands_of
from helpers.sweeps import run_here
from qsweep.commands.main import COMMANDS, main

pytestmark = pytest.mark.usefixtures("warm_jobs")
BLOCKS = all_blocks()
# Commands that answer at once, or from the small sweeps of the fixture: these are really run.
QUICK = ("report", "export", "prune", "sync", "sweeps", "doctor")
SMALL = ["eval.max_windows=1", "eval.noise_floor=false", "corpus=[python_docs]", "tracking=none"]


def ids(blocks):
    return [block.place for block in blocks]


def of(language):
    return [b for b in BLOCKS if b.language == language and b.reason is None]


def test_every_block_names_its_language_and_every_mark_has_a_reason():
    assert [b.place for b in BLOCKS if b.language not in LANGUAGES] == []
    assert [b.place for b in BLOCKS if b.reason is not None and len(b.reason.split()) < 3] == []
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    marks = len(re.findall(r"^<!--\s*not run", text, re.MULTILINE))
    assert marks == sum(b.reason is not None for b in BLOCKS)  # each stands right before its block
    assert len(of("bash")) >= 10 and len(of("python")) >= 2 and len(of("yaml")) >= 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the pages take for granted: files, and two small sweeps."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "docs" / "examples", folder / "docs" / "examples")
    lines = [json.dumps({"field": "A line of text. " * 40}) for _ in range(80)]
    (folder / "my.jsonl").write_text("\n".join(lines))
    for block in BLOCKS:
        if block.file and block.language in ("python", "yaml"):
            file = folder / block.file.replace("~", "home")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
    return folder


@pytest.fixture(scope="module")
def model(pocket_dir, folder):
    shutil.copytree(pocket_dir, folder / "DIR")


@pytest.fixture(scope="module")
def sweeps(folder):
    """Two small sweeps of the names that the pages use; the second finds its trials in the store."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        for name, more in (("bits", ["bits=4,8"]), ("calibration", ["bits=4"])):
            assert main(["-m", "quant=rtn", *more, f"sweep={name}", *SMALL]) == 0
    finally:
        os.chdir(before)


@pytest.fixture
def inside(folder, model, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setenv("TRACKER", "https://mlflow.example.org")
    for place in ("mine", "home/mine"):
        monkeypatch.syspath_prepend(str(folder / place))
    return folder


@pytest.mark.parametrize("block", of("bash"), ids=ids(of("bash")))
def test_shell_commands(block, inside, request, monkeypatch):
    for words in commands_of(block.text):
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # what is in front of a command for it alone
            words = words[1:]
        if words[:3] == ["python", "-m", "qsweep"]:
            words = ["qsweep", *words[3:]]
        program, *arguments = words
        if program == "export":
            monkeypatch.setenv(*arguments[0].split("=", 1))
        elif program == "qsweep":
            if arguments[:1] and arguments[0] in (*QUICK, "certify"):
                request.getfixturevalue("sweeps")
            check_qsweep(arguments, monkeypatch)
        elif program == "python" and arguments[0].endswith(".py"):
            check_script(*arguments)
        elif program in ("make", "pip", "python"):
            {"make": check_make, "pip": check_pip, "python": check_python}[program](arguments)
        else:
            pytest.fail(
                f"{block.place}: nothing runs {program} here; mark it <!-- not run: why -->"
            )


def check_qsweep(arguments, monkeypatch):
    """Run what is quick; compose what would take minutes, to the last value of the last trial."""
    arguments = [os.path.expandvars(os.path.expanduser(word)) for word in arguments]
    name = arguments[0] if arguments and arguments[0] in COMMANDS else "sweep"
    if name in QUICK:
        shutil.rmtree("my-model", ignore_errors=True)
        code = main(arguments)
        assert code == 0, arguments
    elif name == "certify":
        assert main(arguments) == 3  # one window decides nothing
    elif name == "search":
        compose(
            importlib.import_module("qsweep.commands.search").search_arguments(arguments[1:]),
            monkeypatch,
        )
    elif name in ("env", "ui", "worker", "status"):
        module = importlib.import_module(f"qsweep.commands.{name}")
        options = module.parser().parse_args(arguments[1:])
        if name == "env" and options.name:
            from qsweep.quantizers.environments.spec import load_spec

            assert options.name == "llama.cpp" or load_spec(os.path.expanduser(options.name))
        elif name == "env":
            assert main(arguments) == 0
    elif name in ("pack", "score"):
        module = importlib.import_module(f"qsweep.commands.{name}")
        options = module.parser().parse_intermixed_args(arguments[1:])
        words = options.overrides if name == "pack" else options.words
        compose(["quant=none", *(word for word in words if "=" in word)], monkeypatch)
    elif {"--help", "--version", "-sc"} & set(arguments):
        assert main(arguments) == 0
    else:
        compose(arguments[1:] if arguments[:1] == ["sweep"] else arguments, monkeypatch)


def compose(arguments, monkeypatch):
    """Everything that a sweep does before it looks at models; of many trials, every so many."""
    from hydra_plugins.qsweep_launcher import QsweepLauncher
    from qsweep.commands import sweep
    from qsweep.search.batch import one_batch
    from qsweep.search.budget.run import BudgetSearch
    from qsweep.sweep.config import trial_config

    composed = []

    def note(run, configs, overrides, config_name):
        run.began = True
        composed.extend(trial_config(config) for config in one_batch(configs))
        return [{"status": "finished"} for _ in configs]

    def some(launcher, jobs, initial_job_idx):
        # A fraction is a mix, which only a search can resolve.
        jobs = [
            job
            for job in jobs
            if not any(re.search(r"(bits|quant.type)=\d+\.\d+$", word) for word in job)
        ]
        return launch(launcher, jobs[:: -(-len(jobs) // 8)], initial_job_idx)

    def candidates(search):
        composed.extend(trial_config(config) for config in search.configs)
        raise ComposedEnough

    launch = QsweepLauncher.launch
    monkeypatch.setattr(QsweepLauncher, "launch", some)
    monkeypatch.setattr(sweep.HydraRun, "run_composed", note)
    if any(word == "hydra/sweeper=qsweep_optuna" for word in arguments) or "pareto" in str(
        arguments
    ):
        # The grid of what a search would choose from.
        arguments = [*arguments, "hydra/sweeper=qsweep"]
        arguments = [word for word in arguments if word != "hydra/sweeper=qsweep_optuna"]
    monkeypatch.setattr(BudgetSearch, "run", candidates)
    with contextlib.suppress(ComposedEnough):
        assert sweep.run_hydra(arguments) == 0
    assert composed, arguments


class ComposedEnough(Exception):
    """What a budget is looked for among is known."""


@cache
def source(script):
    assert (ROOT / script).is_file(), script
    folder, text = (ROOT / script).parent, (ROOT / script).read_text(encoding="utf-8")
    imported = [folder / f"{name}.py" for name in re.findall(r"from (\w+) import", text)]
    parts = [*filter(Path.is_file, imported), *folder.glob(f"{Path(script).stem}_parts/*.py")]
    return text + "".join(part.read_text(encoding="utf-8") for part in parts)


def check_script(script, *arguments):
    """A script of bench or tools takes minutes: it is there, and has the options."""
    for flag in (word for word in arguments if word.startswith("--")):
        assert f'"{flag}"' in source(script), f"{script} has no {flag}"


def check_make(arguments):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(word for word in arguments if "=" not in word) <= set(targets)


def check_pip(arguments):
    assert arguments[0] == "install"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in arguments[1:]:
        if found := re.fullmatch(r"(?:qsweep|\.)\[([\w,-]+)\]", word):
            assert set(found.group(1).split(",")) <= project["optional-dependencies"].keys()


def check_python(arguments):
    """``python -m pytest …``: its marker or its paths exist."""
    assert arguments[:2] == ["-m", "pytest"], arguments
    markers = "".join(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"][
            "markers"
        ]
    )
    rest = arguments[2:]
    if "-m" in rest:
        assert rest[rest.index("-m") + 1] in markers
    assert all((ROOT / word).exists() for word in rest if "/" in word)


PYTHON = [page for page in PAGES if any(b.page == page for b in of("python"))]


@pytest.mark.parametrize("page", PYTHON, ids=[page.name for page in PYTHON])
def test_python_blocks_run_in_order(page, inside, sweeps):
    names = {"__name__": "docs"}
    for block in of("python"):
        if block.page == page:
            code = compile(block.text, block.place, "exec")
            if block.file is None:  # a file of its own is written, and used by what follows
                exec(code, names)


@pytest.mark.parametrize("block", of("yaml"), ids=ids(of("yaml")))
def test_yaml_blocks_are_what_they_are_said_to_be(block, inside, monkeypatch):
    content = yaml.safe_load(block.text)
    if "defaults" in content:
        (inside / "as_shown.yaml").write_text(block.text)
        compose(["--config-dir", ".", "--config-name=as_shown"], monkeypatch)
    elif "data" in content:
        shown = inside / "docs" / "examples" / f"{content['name']}.yaml"
        assert yaml.safe_load(shown.read_text()) == content
    else:
        assert block.file, f"{block.place}: nobody knows what this is"


@pytest.mark.parametrize("block", of("json"), ids=ids(of("json")))
def test_json_blocks_are_lines_of_the_examples(block):
    files = (ROOT / "docs" / "examples").glob("*.jsonl")
    known = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert all(json.loads(line) in known for line in block.text.splitlines())


def test_the_quantizer_of_the_guide_really_runs(inside):
    words = ["--config-dir", "mine/conf", "-m", "quant=zero", "quant.share=0.1,0.2"]
    assert words == commands_of(next(b.text for b in of("bash") if "quant=zero" in b.text))[0][2:]
    done = run_here([*words, *SMALL, "sweep=zero"], cwd=inside)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = Path("outputs/sweeps/zero/results.csv").read_text().splitlines()
    assert len(rows) == 4 and sum(row.split(",")[2] == "zero" for row in rows) == 2


def test_the_files_that_the_pages_name_exist():
    pattern = r"(?<![\w/.~-])((?:src|tests|docs|bench|conf|sweeps|tools|\.ci|\.github|qsweep|quantizers)/[\w./-]*\w)"
    own = {"conf/quant/mine.yaml", "conf/quant"}
    gone = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in re.finditer(pattern, text):
            path = found.group(1)
            # A name may go on with what the pattern does not take: results/screening-*.json.
            if path in own or any(
                any(ROOT.glob(f"{start}{path}*")) for start in ("", "src/", "src/qsweep/")
            ):
                continue
            gone.append(f"{page.name}:{text[: found.start()].count(chr(10)) + 1}: {path}")
    assert gone == []


def test_links_between_the_pages_lead_somewhere():
    dead = []
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8")):
            if not (page.parent / target).exists() and target not in docs_pages.PAGES.values():
                dead.append(f"{page.name}: {target}")
    assert dead == []
