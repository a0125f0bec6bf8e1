"""Versions, hardware and commit, found without importing anything heavy."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from qsweep.base.environment import environment, git_state, package_versions, parse_gpus


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def repository(folder: Path) -> Path:
    package = folder / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(folder, "init", "-q")
    return package


def test_the_environment_is_plain_json_and_names_what_is_installed():
    facts = environment()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["packages"]["numpy"] == version("numpy")
    assert facts["cpu_cores"] >= 1
    assert isinstance(facts["gpus"], list)
    assert {"git_commit", "git_dirty", "platform", "cpu", "memory_gb"} <= facts.keys()


def test_a_caller_cannot_change_what_the_next_one_sees():
    environment()["packages"].clear()
    assert environment()["packages"]


def test_nothing_heavy_is_imported():
    code = (
        "import sys, qsweep.base.environment as e; e.environment();"
        "print([m for m in ('torch', 'numpy', 'mlflow', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_packages_that_are_not_installed_are_left_out():
    assert package_versions(("pytest", "no-such-distribution")) == {"pytest": version("pytest")}


def test_the_commit_is_that_of_the_checkout(tmp_path: Path):
    package = repository(tmp_path)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    clean = git_state(package)
    assert clean == {"git_commit": git(tmp_path, "rev-parse", "HEAD"), "git_dirty": False}
    (package / "__init__.py").write_text("x = 1")
    assert git_state(package)["git_dirty"] is True


def test_a_package_inside_another_repository_has_no_commit(tmp_path: Path):
    (tmp_path / "README").write_text("theirs")
    package = repository(tmp_path)
    git(tmp_path, "add", "README")
    git(tmp_path, "commit", "-qm", "theirs")
    assert git_state(package) == {"git_commit": None, "git_dirty": None}
    assert git_state(tmp_path.parent)["git_commit"] is None


def test_gpus_are_read_from_the_drivers_listing():
    listing = "NVIDIA H200, 143771, 570.86.15\nNVIDIA GeForce RTX 4090, 24564, 570.86.15\n"
    assert parse_gpus(listing) == [
        {"name": "NVIDIA H200", "memory_gb": 150.8, "driver": "570.86.15"},
        {"name": "NVIDIA GeForce RTX 4090", "memory_gb": 25.8, "driver": "570.86.15"},
    ]
    assert parse_gpus("Grace Hopper, [N/A], 570\n")[0]["memory_gb"] is None
    assert parse_gpus("") == []
    assert parse_gpus("No devices were found") == []
