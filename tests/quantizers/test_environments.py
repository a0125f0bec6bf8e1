"""Environments: made whole or not at all, and one line for everything that can go wrong."""

import json
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from qsweep.base.errors import BackendUnavailable, ConfigError, QsweepError
from qsweep.commands.env import main
from qsweep.quantizers.environments import create as making
from qsweep.quantizers.environments import install
from qsweep.quantizers.environments.choice import EnvChoice
from qsweep.quantizers.environments.create import Environment, check, create, remove
from qsweep.quantizers.environments.interpreter import ask, find_base
from qsweep.quantizers.environments.spec import EnvSpec, load_spec, spec_names

UV = install.find_uv()
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


def wheel(folder: Path) -> Path:
    """A package of one module, ready to install without an index."""
    file = folder / "brick-1.5-py3-none-any.whl"
    about = "brick-1.5.dist-info/"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("brick.py", "COLOUR = 'red'\n")
        archive.writestr(about + "METADATA", "Metadata-Version: 2.1\nName: brick\nVersion: 1.5\n")
        archive.writestr(about + "WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(about + "RECORD", "brick.py,,\n")
    return file


def spec(*lines: str, **more) -> EnvSpec:
    return EnvSpec(
        **{"name": "toy", "library": "brick", "imports": "brick", "disk_gb": 0.05} | more,
        install=lines or ("brick==1.5",),
    )


@pytest.fixture
def offline(monkeypatch):
    """No index at all, and pip as the installer."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(install, "find_uv", lambda: None)


@pytest.fixture
def toy(tmp_path, offline) -> Environment:
    """An environment that holds one small package, not made yet."""
    return Environment(spec(str(wheel(tmp_path)), python=f"=={HERE}"), tmp_path / "envs")


def test_every_environment_that_comes_with_qsweep_is_pinned_exactly():
    assert {"autoawq", "auto_gptq", "llmcompressor", "autoround"} <= set(spec_names())
    for name in spec_names():
        found = load_spec(name)
        assert found.library in found.pins()
        assert "torch" in found.pins()


def test_a_typo_names_the_nearest_environment(tmp_path):
    with pytest.raises(ConfigError, match="no environment 'autowaq'; did you mean 'autoawq'"):
        load_spec("autowaq")
    with pytest.raises(ConfigError, match="no such file"):
        load_spec(str(tmp_path / "mine.yaml"))


def test_a_file_of_your_own_is_an_environment(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("library: brick\npython: '>=3.10'\ninstall: [brick==1.5]\n")
    expected = EnvSpec("mine", "brick", ("brick==1.5",), ">=3.10", file=str(file))
    assert load_spec(str(file)) == expected
    # Commands that are to be typed name the file, not what it is called.
    assert f"qsweep env create {file}" in check(Environment(expected, tmp_path))[0]
    file.write_text("library: brick\ninstal: [brick]\n")
    with pytest.raises(ConfigError, match="instal: no such option; did you mean 'install'"):
        load_spec(str(file))
    file.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        load_spec(str(file))


@pytest.mark.parametrize(
    ("python", "accepted", "refused"),
    [(">=3.10,<3.13", (3, 12), (3, 13)), ("==3.11", (3, 11), (3, 12)), ("!=3.9", (3, 8), (3, 9))],
)
def test_python_requirements(python, accepted, refused):
    assert spec(python=python).accepts(accepted)
    assert not spec(python=python).accepts(refused)


def test_a_requirement_that_says_nothing_is_refused():
    with pytest.raises(ConfigError, match="write it as >=3.10,<3.13"):
        spec(python="3.11")


def test_created_once_checked_and_removed(toy):
    lines = []
    assert toy.state() == "absent"
    assert create(toy, notice=lambda step, line: lines.append(step))
    assert toy.state() == "ready"
    assert check(toy) == []
    assert toy.manifest()["packages"]["brick"] == "1.5"
    assert {"make", "install 1 of 1", "check"} <= set(lines)
    assert not create(toy)
    choice = EnvChoice(folder=toy.folder, python=toy.python)
    assert ask(choice.python).packages["brick"] == "1.5"
    other = Environment(spec("brick==1.6"), toy.folder)
    assert other.state() == "outdated"
    assert "other pins" in check(other)[0]
    shutil.rmtree(next(toy.path.glob("lib/*/site-packages/brick-*")))
    ask.cache_clear()
    assert check(toy) == ["toy: brick is missing, was 1.5"]
    assert remove(toy)
    assert toy.state() == "absent"
    assert not remove(toy)


def fails(environment: Environment, message: str) -> None:
    with pytest.raises(QsweepError, match=message) as caught:
        create(environment)
    assert "\n" not in str(caught.value)
    assert not environment.path.exists()
    assert not list(environment.folder.glob(".*.removed"))


def test_no_index(tmp_path, offline):
    environment = Environment(spec("brick==1.5"), tmp_path / "envs")
    fails(environment, r"the package index has no brick==1.5; log: .*toy\.log$")
    assert "No matching distribution" in environment.log.read_text()


def test_an_index_that_cannot_be_reached():
    text = (
        "WARNING: Retrying: [Errno 111] Connection refused\nERROR: No matching distribution found"
    )
    assert explain(text) == "the package index cannot be reached"


def explain(text: str) -> str:
    import tempfile

    log = Path(tempfile.mkdtemp()) / "log"
    log.write_text(text)
    return install.explain(log, 0, 1)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("OSError: [Errno 28] No space left on device", "no space left on the disk"),
        ("ERROR: Failed building wheel for autoawq", "autoawq does not build"),
        ("ERROR: ResolutionImpossible: for help", "its pins contradict one another"),
        # uv's words for the same.
        (
            "error: No solution found\n  cause: Because there is no version of tomli==99.9 and you "
            "require tomli==99.9, we can conclude",
            "the package index has no tomli==99.9",
        ),
        (
            "  cause: Because brick was not found in the package registry and you require brick",
            "the package index has no brick",
        ),
        (
            "  cause: Because brick was not found in the cache\n\nhint: the network was disabled.",
            "the package index cannot be reached",
        ),
        (
            "error: The build backend returned an error\n  cause: Call to `backend.x` failed",
            "a package does not build",
        ),
        (
            "error: No solution found\n  cause: Because you require brick==1 and brick==2, we can",
            "its pins contradict one another",
        ),
        ("one\ntwo\n\n", "two"),
        ("", "the installer ended with status 1"),
    ],
)
def test_what_an_installer_means(text, line):
    assert explain(text) == line


def test_a_build_that_fails(tmp_path, toy):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    )
    (bad / "backend.py").write_text("raise SystemExit('no compiler')\n")
    fails(Environment(spec(f"--no-build-isolation {bad}"), toy.folder), "a package does not build")


def test_a_library_that_cannot_be_imported(toy):
    broken = Environment(spec(*toy.spec.install, imports="mortar"), toy.folder)
    fails(broken, "its library cannot be imported .No module named 'mortar'")


def test_no_disk(toy):
    fails(Environment(spec("x", disk_gb=1e9), toy.folder), "takes about 1e.09 GB, which the disk")


def test_a_disk_that_fills_up_meanwhile(toy, monkeypatch):
    def full(environment, started):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(making, "_seal", full)
    fails(toy, "takes about 0.05 GB, which the disk")


def test_a_folder_that_is_a_file(tmp_path, offline):
    (tmp_path / "envs").write_text("")
    with pytest.raises(QsweepError, match="cannot be"):
        create(Environment(spec("x"), tmp_path / "envs"))


def test_a_wrong_python(toy):
    old = spec(*toy.spec.install, python="==3.1")
    with pytest.raises(
        BackendUnavailable, match=r"toy needs Python ==3.1; here are .*--python PATH"
    ):
        create(Environment(old, toy.folder))
    with pytest.raises(BackendUnavailable, match=f"but {sys.executable} is {HERE}"):
        find_base(old, Path(sys.executable))
    with pytest.raises(QsweepError, match="no usable Python"):
        ask(Path("/nowhere/python"))


def test_a_half_made_environment_does_not_count_and_is_swept_away(toy):
    (toy.path / "bin").mkdir(parents=True)
    (toy.path / "bin" / "python").write_text("")
    assert toy.state() == "incomplete"
    assert "never finished" in check(toy)[0]
    assert create(toy)
    assert toy.state() == "ready"


def test_an_interrupted_creation_leaves_nothing(toy):
    def interrupt(step, line):
        if step.startswith("install"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create(toy, notice=interrupt)
    assert toy.state() == "absent"


def test_pip_where_it_knows_an_index_that_uv_does_not(monkeypatch, tmp_path):
    monkeypatch.setattr(install, "find_uv", lambda: "/usr/bin/uv")

    def first(installer="auto"):
        return install.installer_steps(spec(), Path("python"), tmp_path, installer)[0].command[0]

    monkeypatch.setattr(install, "pip_has_an_index", lambda: True)
    assert first() == "python"
    assert first("uv") == "/usr/bin/uv"
    monkeypatch.setattr(install, "pip_has_an_index", lambda: False)
    assert first() == "/usr/bin/uv"
    assert first("pip") == "python"
    monkeypatch.setattr(install, "find_uv", lambda: None)
    with pytest.raises(ConfigError, match="uv is not installed"):
        first("uv")


@pytest.mark.skipif(UV is None, reason="uv is not installed: pip install uv")
def test_uv_makes_checks_and_removes_an_environment(toy, capsys, monkeypatch):
    monkeypatch.setattr(install, "find_uv", lambda: UV)
    monkeypatch.setenv("UV_OFFLINE", "1")
    file = toy.folder.parent / "toy.yaml"
    pins = ", ".join(toy.spec.install)
    file.write_text(f"library: brick\nimports: brick\ndisk_gb: 0.05\ninstall: [{pins}]\n")
    folder = ["--folder", str(toy.folder)]
    assert main(["create", str(file), "--installer", "uv", *folder]) == 0
    assert "uv pip install" in toy.log.read_text()
    assert ask(toy.python).packages == {"brick": "1.5"}
    assert main(["check", str(file), *folder]) == 0
    assert main(["list", *folder]) == 0
    assert re.search(r"toy +your own +brick 1.5", capsys.readouterr().out)
    assert main(["remove", str(file), *folder]) == 0
    assert toy.state() == "absent"
    # What it does not find it says in its own words, which mean the same in ours.
    file.write_text("library: brick\ndisk_gb: 0.05\ninstall: [brick==9.9]\n")
    assert main(["create", str(file), "--installer", "uv", *folder]) == 1
    assert "the package index cannot be reached; log:" in capsys.readouterr().err
    bad = toy.folder.parent / "bad"
    bad.mkdir()
    (bad / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    )
    (bad / "backend.py").write_text("raise SystemExit('no compiler')\n")
    file.write_text(f"library: brick\ndisk_gb: 0.05\ninstall: ['{bad}']\n")
    assert main(["create", str(file), "--installer", "uv", *folder]) == 1
    assert "a package does not build; log:" in capsys.readouterr().err
    assert toy.state() == "absent"


def test_a_missing_environment_skips_with_the_command(tmp_path):
    choice = EnvChoice(folder=tmp_path)
    with pytest.raises(
        BackendUnavailable,
        match=rf"not there: qsweep env create autoawq --folder {tmp_path}",
    ):
        choice.require("autoawq")
    EnvChoice(folder=tmp_path, create=True).require("autoawq")
    assert choice.version("autoawq").startswith("autoawq 0.2.9, torch 2.")


def test_a_sweep_that_may_creates_it_and_says_so(tmp_path, offline):
    file = tmp_path / "toy.yaml"
    file.write_text(
        f"library: brick\nimports: brick\ndisk_gb: 0.05\ninstall: [{wheel(tmp_path)}]\n"
    )
    choice, steps = EnvChoice(str(file), folder=tmp_path / "envs", create=True), []
    choice.require("")
    assert not (tmp_path / "envs").exists()
    python = choice.interpreter("", lambda step, done: steps.append(step))
    assert ask(python).packages == {"brick": "1.5"}
    assert "environment toy: install 1 of 1" in steps
    EnvChoice(str(file), folder=tmp_path / "envs").require("")


def test_a_python_of_your_own_must_have_the_library(tmp_path):
    with pytest.raises(BackendUnavailable, match="autoawq is not installed there"):
        EnvChoice(python=Path(sys.executable)).require("autoawq")
    with pytest.raises(BackendUnavailable, match="no usable Python"):
        EnvChoice(python=tmp_path / "python").require("autoawq")
    with pytest.raises(ConfigError, match="seconds above 0"):
        EnvChoice(timeout_s=0)


def test_commands(tmp_path, capsys):
    assert main(["list", "--folder", str(tmp_path)]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in spec_names())
    assert main(["check", "autoawq", "--folder", str(tmp_path)]) == 1
    assert "autoawq is not there: qsweep env create autoawq" in capsys.readouterr().err
    assert main(["create", "autowaq"]) == 2
    assert main(["remove", "autoawq", "--folder", str(tmp_path)]) == 0
    with pytest.raises(SystemExit, match="2"):
        main(["create"])


def test_the_manifest_is_written_last(toy):
    create(toy)
    content = json.loads((toy.path / making.MANIFEST).read_text())
    assert content["spec"] == toy.spec.fingerprint()
    (toy.path / making.MANIFEST).unlink()
    assert toy.state() == "incomplete"


def test_a_password_of_an_index_is_not_on_the_command_line(tmp_path):
    line = "torch==1 --index-url https://me:s3cretpw@h/simple --no-deps git+https://s3cretpw@h/x"
    step = install.installer_steps(spec(line), Path("python"), tmp_path, "pip")[1]
    assert step.command[-2:] == ["torch==1", "--no-deps"]
    assert step.requirements == (
        "--index-url https://me:s3cretpw@h/simple",
        "git+https://s3cretpw@h/x",
    )
    looks, log = tmp_path / "look.py", tmp_path / "log"
    looks.write_text(
        "import pathlib, sys\n"
        "file = pathlib.Path(sys.argv[sys.argv.index('-r') + 1])\n"
        "assert file.read_text().count('s3cretpw') == 2 and file.stat().st_mode & 0o77 == 0\n"
        "assert b's3cretpw' not in pathlib.Path('/proc/self/cmdline').read_bytes()\n"
    )
    look = install.Step("look", [sys.executable, str(looks)], step.requirements)
    install.run_step(look, log, lambda *_: None)
    assert "https://***@h/simple" in log.read_text() and "s3cretpw" not in log.read_text()


def test_pip_takes_an_index_from_the_file_of_requirements(tmp_path, offline):
    wheel(tmp_path)
    line = f"--find-links {tmp_path.as_uri()}?token=s3cretpw brick==1.5"
    made = Environment(spec(line), tmp_path / "envs")
    assert create(made)
    assert "s3cretpw" not in made.log.read_text()
