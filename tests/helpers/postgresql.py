"""A PostgreSQL server of our own."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Server:
    """A server on loopback, which can be stopped and started again."""

    programs: Path
    data: Path
    port: int
    user: dict[str, Any]

    @property
    def url(self) -> str:
        return f"postgresql+pg8000://qsweep@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        where = f"-h 127.0.0.1 -p {self.port} -k {self.data}"
        self._control("-w", "-o", where, "-l", str(self.data / "log"), "start")

    def stop(self) -> None:
        self._control("-m", "immediate", "stop")

    def _control(self, *arguments: str) -> None:
        self.call("pg_ctl", "-D", str(self.data / "db"), *arguments)

    def call(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", **self.user)


@contextmanager
def postgresql_server() -> Iterator[Server]:
    """A server that runs, until the end; the test is skipped where none is installed."""
    pytest.importorskip("pg8000", reason='pip install "qsweep[postgresql]"')
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = str(folders[-1] / "initdb") if folders else shutil.which("initdb")
    if not found:
        pytest.skip("PostgreSQL's server is not installed (apt-get install postgresql)")
    import pwd

    # The server refuses to run as root; its own user cannot enter pytest's folder.
    root = os.getuid() == 0
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if root else {}
    data = Path(tempfile.mkdtemp(prefix="qsweep-pg-"))
    if root:
        owner = pwd.getpwnam("postgres")
        os.chown(data, owner.pw_uid, owner.pw_gid)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(Path(found).parent, data, port, user)
    server.call("initdb", "-D", str(data / "db"), "-A", "trust", "-U", "qsweep")
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(data, ignore_errors=True)
