"""``qsweep ui``: MLflow's UI, opened where qsweep's runs are.

``mlflow ui`` alone opens a start page about traces of conversations, and so does a click on the
experiment until the browser has been told otherwise. This starts the same server and names the page.
"""

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path

from qsweep.base.databases import with_driver
from qsweep.base.errors import QsweepError
from qsweep.commands.entry import Parser, command, command_parser
from qsweep.launch.tree import kill_group
from qsweep.tracking.mlflow.journal import TrackingTarget
from qsweep.tracking.settings import TrackingConfig, is_server, server_page

_HOST = "127.0.0.1"
_LAST_PORT = 65535
# Importing MLflow's server takes seconds, half a minute on a busy machine.
_START_S = 120.0


@command(invalid=QsweepError)
def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted; 0: all went well, 1: the UI did not start, 2: nothing is there."""
    options = parser().parse_args(arguments)
    try:
        place = _place(options, options.outputs)
        page = _page(place)
        if is_server(place.uri):
            _show(f"{server_page(place.uri)}/{page}", browser=options.browser)
            return 0
        with _server(place.uri, options.port) as server:
            _show(f"http://{_HOST}:{options.port}/{page}", browser=options.browser)
            server.wait()
            raise ServerError(f"MLflow's UI ended with status {server.returncode}")
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


class ServerError(QsweepError):
    """MLflow's server does not start, or has ended."""


def _place(options: argparse.Namespace, outputs: Path) -> TrackingTarget:
    config = TrackingConfig(uri=options.tracking, experiment=options.experiment)
    return TrackingTarget.of(config, outputs)


def _page(place: TrackingTarget) -> str:
    from qsweep.tracking.mlflow.reader import Reader
    from qsweep.tracking.settings import TrackerError

    try:
        return Reader(place).page
    except TrackerError as error:
        raise QsweepError(f"{error}; a sweep makes it: qsweep -m ...") from error


@contextlib.contextmanager
def _server(uri: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    # A port that something listens on would show that something's pages as if they were these.
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise ServerError(f"port {port} is taken; another: --port {_other(port)}") from error
    process = subprocess.Popen(  # noqa: S603 - fixed arguments
        [sys.executable, "-m", "mlflow", "ui", "--host", _HOST, "--port", str(port)],
        # Not as an argument: the URI may hold a password, and everybody may list arguments.
        env=os.environ
        | {"MLFLOW_BACKEND_STORE_URI": with_driver(uri), "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=2,  # its chatter goes where errors go, so that the address stands alone
        start_new_session=True,
    )
    try:
        _await(process, port)
        yield process
    finally:
        # Its workers, too.
        kill_group(process.pid)
        process.wait()


def _await(process: "subprocess.Popen[bytes]", port: int) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ServerError(f"MLflow's UI did not start (status {process.returncode}), see above")
        try:
            with urllib.request.urlopen(f"http://{_HOST}:{port}/health", timeout=5):  # noqa: S310
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    raise ServerError(f"MLflow's UI does not answer on port {port} after {_START_S:.0f} s")


def _show(address: str, *, browser: bool) -> None:
    print(f"qsweep's runs: {address}", flush=True)
    # Without a desktop, what opens would be a browser for terminals.
    desktop = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if browser and desktop:
        webbrowser.open(address)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {_LAST_PORT}")
    return int(text)


def _other(port: int) -> int:
    return port + 1 if port < _LAST_PORT else port - 1


def parser() -> Parser:
    """Its options."""
    parser = command_parser("ui", __doc__)
    parser.add_argument("--tracking", metavar="URI", help="this MLflow tracker instead")
    parser.add_argument("--experiment", default="qsweep", help="default: qsweep")
    parser.add_argument("--port", type=_port, default=5000, metavar="N", help="default: 5000")
    parser.add_argument(
        "--no-browser", dest="browser", action="store_false", help="say the address, open nothing"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
