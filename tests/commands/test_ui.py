"""``qsweep ui``: a real MLflow server, a real browser where there is one."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import qsweep
from helpers.machine import free_port
from qsweep.commands import ui
from qsweep.tracking.mlflow.client import Client
from qsweep.tracking.mlflow.journal import TrackingTarget
from qsweep.tracking.settings import resolved_uri


def test_without_results_it_says_what_makes_some(tmp_path, capsys):
    assert ui.main(["--outputs", str(tmp_path), "--no-browser"]) == 2
    said = capsys.readouterr().err
    assert f"no MLflow database {tmp_path}/mlflow.db" in said and "qsweep -m" in said
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_not_taken_for_ours(tmp_path, capsys):
    Client(TrackingTarget(resolved_uri(None, tmp_path), "qsweep"), tmp_path)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert ui.main(["--outputs", str(tmp_path), "--port", str(port), "--no-browser"]) == 1
    assert f"port {port} is taken; another: --port {port + 1}" in capsys.readouterr().err
    # Without a sweep's view, the address does not ask for one.
    assert ui._page(TrackingTarget(resolved_uri(None, tmp_path), "qsweep")) == (
        "#/experiments/1/runs?workflowType=machine_learning"
    )
    assert ui.main(["--outputs", str(tmp_path), "--experiment", "other", "--no-browser"]) == 2
    assert "no experiment 'other'" in capsys.readouterr().err


@pytest.mark.slow
def test_it_serves_the_page_of_runs_until_it_is_ended(tmp_path):
    client = Client(TrackingTarget(resolved_uri(None, tmp_path), "qsweep"), tmp_path)
    client.parent("uid", "my-sweep", None, None)
    client.store_view()
    port = free_port()
    command = [sys.executable, "-m", "qsweep", "ui", "--no-browser"]
    process = subprocess.Popen(
        [*command, "--outputs", str(tmp_path), "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(qsweep.__file__).parents[1])},
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip().removeprefix("qsweep's runs: ")
        assert address.startswith(f"http://127.0.0.1:{port}/#/experiments/1/runs?viewState")
        if browser := shutil.which("chromium") or shutil.which("google-chrome"):
            page = subprocess.run(
                [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
                 f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=15000", address],
                capture_output=True, text=True, timeout=240,
            ).stdout  # fmt: skip
            assert "my-sweep" in page and "Model training" in page
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=30)
    assert status == 0
    # Its workers are gone, too.
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
