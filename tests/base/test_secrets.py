"""Passwords: what counts as one, and that nothing which is written or shown holds one."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from helpers.sweeps import run_here
from qsweep.base.config_files import resolve_recorded
from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.keys import key_of
from qsweep.base.secrets import hidden, hidden_tree, hidden_value, scrubbed, without_login
from qsweep.sweep.compose import plain
from qsweep.sweep.session import command_line
from qsweep.tracking import TrackingConfig, ui_line

ROOT = Path(__file__).resolve().parents[2]
SECRET = "s3cretpw"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:s3cretpw@h:5000/x", "http://***@h:5000/x"),
        ("http://s3cretpw@h", "http://***@h"),
        ("https://s3cretpw:x-oauth-basic@h/p", "https://***@h/p"),
        ("https://s3cretpw:@h/p", "https://***@h/p"),
        ("HTTPS://s3cretpw@H/", "HTTPS://***@H/"),
        ("redis://:s3cretpw@h:1/0", "redis://***@h:1/0"),
        ("git+https://s3cretpw@h/r.git", "git+https://***@h/r.git"),
        ("postgresql://me:s3cretpw@h/db", "postgresql://me:***@h/db"),
        ("postgresql+pg8000://me:s3/cr#et?pw@h/db", "postgresql+pg8000://me:***@h/db"),
        ("mysql+pymysql://me:s@s3cretpw@h/db", "mysql+pymysql://me:***@h/db"),
        ("http://me:s3/cretpw@h/db", "http://***@h/db"),
        ("mysql://h/db?user=me&password=s3cretpw&charset=utf8",
         "mysql://h/db?user=me&password=***&charset=utf8"),
        ("mysql://h/db?Pass%77ord=s3cretpw", "mysql://h/db?Pass%77ord=***"),
        ("postgresql://h/db?sslmode=require&sslpassword=s3cretpw",
         "postgresql://h/db?sslmode=require&sslpassword=***"),
        ("http://h/x?X-Amz-Signature=s3cretpw&X-Amz-Date=1",
         "http://h/x?X-Amz-Signature=***&X-Amz-Date=1"),
        ("http://h/x?access_token=s3cretpw;and#more", "http://h/x?access_token=***"),
        ("url: /api/2.0?api_key=s3cretpw&x=1 (Caused", "url: /api/2.0?api_key=***&x=1 (Caused"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Ds3cretpw",
         "mssql+pyodbc:///?odbc_connect=***"),
        ("host=db password=s3cretpw dbname=x", "host=db password=*** dbname=x"),
        ("host=db password = 's3 cretpw' dbname=x", "host=db password = *** dbname=x"),
        ("Server=x;PWD={s3;cretpw};Database=y", "Server=x;PWD=***;Database=y"),
        ("AccountName=x;AccountKey=s3cretpw==;E=1", "AccountName=x;AccountKey=***;E=1"),
        ("search={storage:postgresql://me:s3cretpw@h/d,study:x}",
         "search={storage:postgresql://me:***@h/d,study:x}"),
        (r"tracking.uri=http\://me\:s3cretpw@h\:9", r"tracking.uri=http\://***@h\:9"),
        (r"postgresql\://me\:s3cretpw@h\:9", r"postgresql\://me\:***@h\:9"),
        (r"x=http\://h?password\=s3cretpw", r"x=http\://h?password\=***"),
        (r"host\=h password\=s3cretpw", r"host\=h password\=***"),
        (r'{"uri": "http:\/\/me:s3cretpw@h"}', r'{"uri": "http:\/\/***@h"}'),
        ("${oc.env:URI,http://me:s3cretpw@h}", "${oc.env:URI,http://***@h}"),
        ("tracking.uri=me:s3cretpw@h:5000", "tracking.uri=***@h:5000"),
        ("//me:s3cretpw@h:5000", "//***@h:5000"),
        ("x=http:/me:s3cretpw@h", "x=http:/***@h"),
        ("http:me:s3cretpw@h", "***@h"),
        ("me:s3cretpw@10.0.0.1:5000", "***@10.0.0.1:5000"),
        (r"x=me\:s3cretpw@h", "x=***@h"),
        ("HF_TOKEN=s3cretpw MY_API_KEY=s3cretpw", "HF_TOKEN=*** MY_API_KEY=***"),
        ("+hydra.job.env_set.AWS_SECRET_ACCESS_KEY=s3cretpw",
         "+hydra.job.env_set.AWS_SECRET_ACCESS_KEY=***"),
        ("unrecognized arguments: --password=s3cretpw", "unrecognized arguments: --password=***"),
        ("http://h/x?jwt=s3cretpw", "http://h/x?jwt=***"),
        ("a token hf_0s3cretpwABCDEFGH", "a token ***"),
    ],
)  # fmt: skip
def test_a_secret_is_hidden_in_every_spelling(text, shown):
    assert hidden(text) == hidden_value(text) == shown
    assert hidden(shown) == hidden_value(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://h:5000/a@b",
        "http://[::1]:5000/a@b",
        "postgresql://me@h/db",
        "sqlite:////tmp/x:y@z/db",
        "sqlite:///x.db?timeout=5",
        "model.path='/tmp/a=b@c'",
        "eos_token=</s> max_new_tokens=5 bits=3,4",
        "http://me:${oc.env:PW}@h/x?token=${oc.env:T}&y=1",
        "host=x password=${oc.decode:${oc.env:PW}}",
        "a text, with x = y and mail to me@example.org",
        "http://h/#/experiments/1/runs?viewStateShareKey=qsweep&workflowType=machine_learning",
        "humaneval:pass@1 = 0.25",
        "mail to: me@example.org at 12:30",
        "model.path=org/name:tag@main",
        "model=hf_internal_testing_tiny TOKENIZER=x",
    ],
)
def test_what_is_no_secret_stays(text):
    assert hidden(text) == hidden_value(text) == text


def test_a_value_may_hold_blanks_and_a_tree_is_walked():
    assert hidden_value("postgresql://me:my pass@h/d") == "postgresql://me:***@h/d"
    tree = {"a": ["http://s3cretpw@h", 1, None, {"password": "x", "seed": 3}]}
    assert hidden_tree(tree) == {"a": ["http://***@h", 1, None, {"password": "***", "seed": 3}]}


def test_a_message_is_scrubbed_of_the_decoded_and_of_parts():
    url = "postgresql://me:p%40ss%2Fword@h/db"
    assert scrubbed("cannot log in with p@ss/word (p%40ss%2Fword)", url) == (
        "cannot log in with *** (***)"
    )
    assert without_login("http://me:s3cretpw@h:5/x") == "http://h:5/x"


def test_a_messages_quotation_of_a_part_is_scrubbed_too():
    given = ("bits=3", "model.path='postgresql://me:my s3cretpw@h/d'")
    assert scrubbed("no choice me:my s3cretpw@h, bits=3", *given) == "no choice ***@h, bits=3"


def test_a_stream_hides_what_libraries_write(tmp_path):
    from qsweep.base.secrets import RedactingStream

    file = tmp_path / "log"
    with RedactingStream(file.open("wb"), encoding="utf-8") as stream:
        print("INFO: GET http://me:s3cretpw@h/x", "failed", file=stream)
    assert file.read_text() == "INFO: GET http://***@h/x failed\n"


def test_every_error_hides_what_it_quotes():
    error = QsweepError("tracking.uri=http://me:s3cretpw@h: nobody there")
    assert str(error) == "tracking.uri=http://***@h: nobody there"


def test_a_command_and_the_line_for_the_ui_hold_none():
    shown = command_line(["-m", "tracking.uri='http://me:my s3cretpw@h'", "bits=3,4"])
    assert "s3cretpw" not in shown and "bits=3,4" in shown
    assert ui_line(TrackingConfig(uri="http://me:s3cretpw@h:5000"), Path()) == "http://h:5000"
    uri = "postgresql://h/d?password=s3cretpw"
    assert "s3cretpw" not in str(ui_line(TrackingConfig(uri=uri), Path()))


def test_the_store_holds_no_token_of_a_data_sets_address():
    from qsweep.text.corpora import corpus_identity
    from qsweep.text.corpus import CorpusConfig

    where = "https://me:s3cretpw@h/a.jsonl?sig=s3cretpw"
    with_token = CorpusConfig("x", "datasets", dataset="json", data_files=[where])
    assert SECRET not in str(corpus_identity(with_token))
    plain_files = CorpusConfig("x", "datasets", dataset="json", data_files=["https://h/a.jsonl"])
    assert corpus_identity(plain_files)["data_files"] == ["https://h/a.jsonl"]


def test_an_experiment_that_holds_a_password_is_refused():
    with pytest.raises(ConfigError, match=r"tracking.experiment=http://\*\*\*@h"):
        TrackingConfig(experiment="http://me:s3cretpw@h")


def test_a_configuration_is_written_with_its_interpolations(monkeypatch):
    for name, value in {"URI": "http://me:s3cretpw@h", "PW": SECRET, "N": "7"}.items():
        monkeypatch.setenv(name, value)
    given = {
        "whole": "${oc.env:URI}",
        "part": "http://me:${oc.env:PW}@h",
        "literal": "http://me:s3cretpw@h",
        "number": "${oc.decode:${oc.env:N}}",
        "reference": "${whole}",
        "selected": "${oc.select:nested.deep}",
        "nested": {"deep": "${oc.env:${which}}", "list": [1, "${oc.env:PW}"]},
        "copy": "${nested}",
        "which": "PW",
        "bits": 4,
        "same": "${bits}",
    }
    composed = plain(OmegaConf.create(given), OmegaConf)
    assert composed["number"] == 7 and composed["copy"]["deep"] == SECRET
    assert composed.written == {**given, "literal": "http://***@h", "same": 4}
    assert resolve_recorded(composed.written, "part") == "http://me:s3cretpw@h"
    assert resolve_recorded(composed.written, "literal") is None
    monkeypatch.delenv("PW")
    assert resolve_recorded(composed.written, "part") is None


# whole sweeps: what is on disk and on the terminal


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("outputs")


def small(outputs: Path) -> list[str]:
    return ["quant=none", "corpus=[python_docs]", "eval.max_windows=1", f"outputs_dir={outputs}"]


def qsweep(outputs: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "qsweep", *arguments, *small(outputs)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
        timeout=200,
    )


def dead_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def leaks(folder: Path) -> list[str]:
    """Files that hold the password, or are named after it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [
        str(path) for path in files if SECRET in str(path) or SECRET.encode() in path.read_bytes()
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "override",
    [
        "tracking.uri=http://me:s3cretpw@HOST",
        "tracking.uri=http://s3cretpw@HOST",
        'tracking.uri="http://HOST/?token=s3cretpw"',
        'tracking.uri="postgresql://HOST/db?user=me&password=s3cretpw"',
        "tracking.uri=${oc.env:URI}",
        'tracking.uri="http://me:${oc.decode:${oc.env:PW}}@HOST"',
        "+tracking={uri:'http://me:s3cretpw@HOST'}",
        "hydra.output_subdir=.hydra tracking.uri=http://me:s3cretpw@HOST",
        "-m hydra/launcher=basic hydra/sweeper=basic hydra.output_subdir=.hydra "
        "tracking.uri=http://me:s3cretpw@HOST",
    ],
)
def test_a_trackers_password_is_neither_written_nor_shown(outputs, override):
    host = f"127.0.0.1:{dead_port()}"
    uri = f"http://me:{SECRET}@{host}"
    arguments = override.replace("HOST", host).split()
    done = qsweep(outputs, *arguments, f"sweep=t{key_of(override)[:8]}", URI=uri, PW=SECRET)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert host in done.stderr and "qsweep sync" in done.stderr
    assert leaks(outputs) == []
    synced = subprocess.run(
        [sys.executable, "-m", "qsweep.sync", "--outputs", str(outputs)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=100,
    )
    assert synced.returncode == 1 and SECRET not in synced.stdout + synced.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["tracking.ur=http://me:s3cretpw@h"],
        ["tracking.uri=[http://me:s3cretpw@h]"],
        ['tracking.uri="host=x password=s3cretpw"'],
        ["tracking.experiment='http://me:s3cretpw@h'"],
        ["model.path=https://me:s3cretpw@h/x"],
        ["--nonsense", "tracking.uri=http://me:s3cretpw@h"],
        ["tracking.uri=me:s3cretpw@h:5000"],
        ['sweep="http://me:my s3cretpw@h"'],
        ['quant.backend="http://me:my s3cretpw@h/d"'],
        ["--config-name", "http://me:my s3cretpw@h/d"],
        ["--password=s3cretpw"],
    ],
)
def test_a_refusal_does_not_quote_it(tmp_path, arguments):
    done = run_here([*arguments, *small(tmp_path)])
    assert done.returncode == 2
    assert done.stderr and SECRET not in done.stdout + done.stderr
    assert leaks(tmp_path) == []


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--cfg=all", "--resolve"], ["--info", "all"]])
def test_nor_does_hydra_show_it(tmp_path, flags):
    given = ["tracking.uri=http://me:s3cretpw@h", "+hydra.job.env_set.X=${oc.env:URI}"]
    done = qsweep(tmp_path, *flags, *given, URI="postgresql://me:s3cretpw@h/d")
    assert done.returncode == 0, done.stderr
    assert "http://***@h" in done.stdout
    assert SECRET not in done.stdout + done.stderr


def test_nor_does_a_traceback(tmp_path):
    code = (
        "from qsweep.commands.entry import command\n"
        "@command\n"
        "def main(arguments=None):\n"
        "    raise ValueError('cannot open http://me:s3cretpw@h')\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"QSWEEP_TRACEBACK": "1", "PYTHONPATH": str(ROOT / "src")},
        timeout=60,
    )
    assert "Traceback" in done.stderr and "cannot open http://***@h" in done.stderr


@pytest.mark.slow
def test_nor_by_a_search_and_its_study(tmp_path):
    host = f"127.0.0.1:{dead_port()}"
    space = ["--config-name=pareto", "quant=rtn", "format=int", "bits=4,8", "group_size=128"]
    small = ["corpus=[python_docs]", "eval.max_windows=2", "search.few_windows=1", "sweep=t"]
    store = f"outputs_dir={tmp_path}"
    command = [sys.executable, "-m", "qsweep", *space, *small, store]
    command += [f"tracking.uri=http://me:{SECRET}@{host}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    with sqlite3.connect(tmp_path / "sweeps" / "t" / "study.db") as database:
        assert database.execute("SELECT count(*) FROM trials").fetchone() >= (2,)
    assert leaks(tmp_path) == []


@pytest.mark.slow
def test_nor_by_a_live_server(tmp_path, monkeypatch):
    from helpers.trackers import start_server

    monkeypatch.chdir(tmp_path)
    port = dead_port()
    server = start_server(tmp_path, port)
    try:
        place = f"127.0.0.1:{port}"
        first = qsweep(tmp_path / "o", f"tracking.uri=http://me:{SECRET}@{place}", "sweep=a")
        uri = f"http://{SECRET}@{place}"
        second = qsweep(tmp_path / "o", "tracking.uri=${oc.env:URI}", "sweep=b", URI=uri)
        for done in (first, second):
            assert done.returncode == 0, done.stderr
            assert "qsweep sync" not in done.stderr  # all of it is logged
            assert SECRET not in done.stdout + done.stderr
        page = tmp_path / "page"
        command = [sys.executable, "-m", "qsweep.report", "--tracking", uri, "--out", str(page)]
        report = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)
        assert report.returncode == 0, report.stderr
        assert SECRET not in report.stdout + report.stderr
    finally:
        os.killpg(server.pid, 9)
        server.wait()
    with sqlite3.connect(tmp_path / "server.db") as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (4,)
    assert len(list((tmp_path / "server-artifacts").rglob("record.json"))) == 2
    # the server's own log of requests has paths, and no login
    assert leaks(tmp_path) == []
    shutil.rmtree(tmp_path / "o")
