"""A real Ray cluster of several nodes on this machine."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from importlib.util import find_spec
from pathlib import Path

from helpers.machine import free_port, wait_until

TESTS = Path(__file__).parents[1]


class RayCluster:
    """Nodes that ``ray start`` started; all of it is ended by :meth:`close`.

    A user's command finds it through ``environment``. What its jobs import beside qsweep lies in
    ``tests/launch``.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="qs-ray-", dir="/tmp"))
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        # Ray has no server for clients from elsewhere without grpcio.
        self.client_port = free_port() if find_spec("grpc") else None
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": uuid.uuid4().hex,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": "40",
        }
        self.nodes: dict[str, subprocess.Popen] = {}

    def start(self, name, *, cpus, gpus=0, labels=None, wrapper=()) -> None:
        """Start a node, the first one as the head; returns when it is there.

        ``wrapper`` is the beginning of its command.
        """
        place = (
            [
                *("--head", f"--port={self.port}", f"--temp-dir={self.folder}"),
                *("--include-dashboard=false", "--disable-usage-stats"),
                *([f"--ray-client-server-port={self.client_port}"] if self.client_port else []),
            ]
            if not self.nodes
            else [f"--address={self.address}"]
        )
        ray = Path(sys.executable).with_name("ray")
        path = os.pathsep.join([str(TESTS / "launch"), str(TESTS)])
        # Ray gives its parts fixed times to start in: on a busy machine the next time is the quicker.
        for _ in range(4):
            with (self.folder / f"{name}.out").open("w+b") as log:
                self.nodes[name] = subprocess.Popen(
                    [
                        *(*wrapper, str(ray), "start", "--block", *place),
                        *(f"--num-cpus={cpus}", f"--num-gpus={gpus}"),
                        f"--object-store-memory={80 << 20}",
                        f"--labels={','.join(f'{k}={v}' for k, v in (labels or {}).items())}",
                    ],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    cwd="/",
                    env=os.environ | self.environment | {"PYTHONPATH": path},
                )
            if self._is_up(name):
                return
            said = (self.folder / f"{name}.out").read_text()
            self.kill(name)
        raise AssertionError(said)

    def _is_up(self, name) -> bool:
        # One after the other: those of one machine would take the same names for their sockets.
        text = (self.folder / f"{name}.out").read_bytes
        wait_until(lambda: b"--block" in text() or self.nodes[name].poll() is not None, 90, 0.2)
        return b"--block" in text()

    def kill(self, name) -> None:
        """A machine loses its power: its processes are killed at once, jobs included."""
        self._kill(self.nodes.pop(name))

    def close(self) -> None:
        """End all nodes, the head last."""
        for name in reversed(list(self.nodes)):
            self.kill(name)
        subprocess.run(["rm", "-rf", str(self.folder)], check=True)

    def node_of(self, pid) -> str:
        """The name of the node that a process runs on."""
        from qsweep.launch.tree import descendants

        return next(name for name, node in self.nodes.items() if pid in descendants(node.pid))

    def _kill(self, node: subprocess.Popen) -> None:
        from qsweep.launch.tree import descendants

        for _ in range(20):
            found = [*descendants(node.pid), *([node.pid] if node.poll() is None else [])]
            for pid in found:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if not found:
                break
            time.sleep(0.05)
        node.wait()
