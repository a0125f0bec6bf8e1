"""The doctor: what it says of this machine is true, and of a broken one helpful."""

import json
import socket
import subprocess
import sys

import pytest

from qsweep.commands import doctor, doctor_checks
from qsweep.commands.doctor import examine, main
from qsweep.commands.doctor_checks import BAD_PAIRS, clashes
from qsweep.commands.finding import Finding, Places


@pytest.fixture
def places(tmp_path):
    return Places(tmp_path / "outputs")


def named(findings, name):
    return next(finding for finding in findings if finding.name == name)


def test_it_reports_what_is_installed_here(places, capsys):
    import torch

    assert main(["--outputs", str(places.outputs), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["works"] is True
    found = {item["name"]: item for item in content["findings"]}
    assert found["torch"]["detail"] == torch.__version__
    assert found["Python"]["detail"] == ".".join(map(str, sys.version_info[:3]))
    assert found["disk"]["status"] in ("ok", "warning") and "GB free" in found["disk"]["detail"]
    assert {"vllm", "ollama", "model hub", "tracker", "gguf (llama.cpp)"} <= found.keys()
    assert (
        "nvfp4" in found["compressed-tensors"]["detail"]
        and "nf4" in found["bitsandbytes"]["detail"]
    )
    assert all(item["fix"] for item in content["findings"] if item["status"] == "error")


def test_the_exit_code_is_one_when_the_main_job_cannot_run(places, monkeypatch, capsys):
    known = doctor_checks._version
    monkeypatch.setattr(doctor_checks, "_version", lambda n: None if n == "mlflow" else known(n))
    assert main(["--outputs", str(places.outputs)]) == 1
    said = capsys.readouterr().out
    assert "pip install qsweep" in said and "cannot run" in said


def test_the_main_job_runs_without_gptqmodel(places, monkeypatch, capsys):
    known = doctor_checks._version
    monkeypatch.setattr(doctor_checks, "_version", lambda n: None if n == "gptqmodel" else known(n))
    assert main(["--outputs", str(places.outputs)]) == 0
    said = capsys.readouterr().out
    assert 'pip install "qsweep[gptqmodel]"' in said and "The main job can run." in said


def test_what_the_main_job_needs_is_what_qsweep_declares():
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    declared = map(Requirement, requires("qsweep") or ())
    base = {requirement.name for requirement in declared if requirement.marker is None}
    assert set(doctor_checks._NEEDED) <= base


def test_environments_are_listed_with_the_command_that_makes_them(places, capsys):
    from qsweep.quantizers.environments.create import MANIFEST, Environment
    from qsweep.quantizers.environments.spec import load_spec, spec_names

    folder = places.outputs / "envs"
    made = Environment(load_spec("autoawq"), folder)
    made.python.parent.mkdir(parents=True)
    made.python.symlink_to(sys.executable)
    manifest = {"spec": made.spec.fingerprint(), "python": "3.11.7", "packages": {}}
    (made.path / MANIFEST).write_text(json.dumps(manifest))
    (folder / "autoround").mkdir()

    main(["--outputs", str(places.outputs), "--json"])
    content = json.loads(capsys.readouterr().out)
    found = {f["name"]: f for f in content["findings"] if f["area"] == "environments"}
    assert list(found) == spec_names()
    assert (found["autoawq"]["status"], found["autoawq"]["fix"]) == ("ok", "")
    assert found["autoawq"]["detail"] == "made: autoawq 0.2.9, Python 3.11.7"
    assert found["autoround"]["status"] == "missing"
    assert found["autoround"]["detail"].startswith("half made: auto-round")
    assert found["llmcompressor"]["detail"].startswith("not made: llmcompressor 0.")
    assert "CUDA only" in found["auto_gptq"]["detail"]
    # The command is one that can be typed as it is: its options are those of qsweep env.
    command = found["llmcompressor"]["fix"]
    assert command == f"qsweep env create llmcompressor --folder {folder}"

    main(["--outputs", str(places.outputs)])
    assert f"create autoround --folder {folder}" in capsys.readouterr().out


def test_an_environment_that_no_python_here_can_make_says_so(places, monkeypatch):
    from qsweep.base.errors import BackendUnavailable
    from qsweep.quantizers.environments import interpreter

    def nothing(spec, given=None):
        raise BackendUnavailable(f"{spec.name} needs Python {spec.python}")

    monkeypatch.setattr(interpreter, "find_base", nothing)
    found = named(list(doctor_checks.environments(places)), "auto_gptq")
    assert "needs Python >=3.9,<3.12" in found.detail and found.fix.endswith("--python PATH")


@pytest.mark.parametrize(
    ("versions", "package"),
    [
        ({"gptqmodel": "7.7.0", "torch": "2.13.0+cpu"}, "gptqmodel"),
        ({"mlflow": "3.18.0"}, "mlflow"),
        ({"hydra-core": "1.3.8", "omegaconf": "2.4.0.dev1"}, "hydra-core"),
    ],
)
def test_versions_that_clash_are_named(versions, package):
    ((pair, found),) = clashes(versions)
    assert pair.package == package and all(v in found for v in versions.values())


def test_versions_that_work_do_not_clash():
    good = {"gptqmodel": "7.6.0", "torch": "2.13.0", "transformers": "5.18.0", "mlflow": "3.17.2",
            "hydra-core": "1.3.8", "omegaconf": "2.3.1"}  # fmt: skip
    assert list(clashes(good)) == []
    assert len(BAD_PAIRS) == len({(p.package, p.versions, p.needs) for p in BAD_PAIRS})


def test_a_tracker_that_does_not_answer_is_a_warning_and_one_that_does_is_fine(places, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        uri = f"http://user:secret@127.0.0.1:{port}"
        (there,) = doctor_checks.tracker(Places(tmp_path, uri))
    (gone,) = doctor_checks.tracker(Places(tmp_path, uri))
    assert (there.status, gone.status) == ("ok", "warning")
    assert "secret" not in there.detail + gone.detail and "qsweep sync" in gone.fix


def test_a_full_disk_is_an_error(places, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(doctor_checks.shutil, "disk_usage", lambda _: usage)
    (finding,) = doctor_checks.disk(places)
    assert finding.status == "error" and "qsweep prune" in finding.fix


def test_no_hub_is_said_with_what_works_without_one(places, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (finding,) = doctor_checks.hub(places)
    assert finding.status == "missing" and "model.path=DIR" in finding.fix
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (finding,) = doctor_checks.hub(places)
    assert "HF_HUB_OFFLINE" in finding.detail


def test_a_check_that_breaks_is_a_finding_and_not_a_traceback(places, monkeypatch):
    def broken(places):
        yield Finding("a", "b", "ok", "c")
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(doctor_checks, "CHECKS", (broken,))
    (finding,) = examine(places)
    assert finding.status == "warning" and finding.detail.endswith("RuntimeError: two lines")


def test_it_answers_in_seconds_and_makes_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "qsweep.doctor", "--outputs", str(tmp_path / "none")],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The main job can run." in done.stdout and list(tmp_path.iterdir()) == []
    assert doctor.__doc__
