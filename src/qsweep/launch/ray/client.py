"""The launching process's side of the Ray driver: start it, hand it jobs, hear how they end."""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import IO, Any

from qsweep.base.errors import ConfigError
from qsweep.base.scratch import ScratchFolder
from qsweep.launch import tree
from qsweep.launch.gpus import visible_gpus
from qsweep.launch.local.client import scratch_file
from qsweep.launch.local.slots import cores
from qsweep.launch.ray.demand import Node
from qsweep.launch.reasons import explain_exit, fatal_line

_DRIVER = Path(__file__).with_name("driver.py")
# A cluster of its own starts a dozen processes; one that is there answers, or does not.
_START_S = 180.0
_CONNECT_S = 60.0
# For what runs to be taken back and for Ray to end.
_CLOSE_S = 3.5
# Names of sockets (108 bytes) hold the folder, a session's name and 22 letters.
_LONGEST_FOLDER = 20
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class DriverLost(Exception):
    """The driver or the cluster's head is gone; the text says why, in one line."""


class RayDriver:
    """A process that is a cluster's driver. ``start`` returns at once and connects beside.

    Args:
        address: The cluster's; None for one of its own, which ends with it.
    """

    def __init__(self, address: str | None) -> None:
        self.address = address
        self.nodes: list[Node] = []
        """The living nodes, as last heard."""
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._errors: IO[bytes] | None = None
        self._folder: ScratchFolder | None = None
        self._selector = selectors.DefaultSelector()
        self._received = b""
        self._began = 0.0
        self._connected = False

    @property
    def pid(self) -> int | None:
        """The driver's process id, None if it is not running."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the driver if it is not running; do not wait for it."""
        if self._process is not None:
            return
        gpus = visible_gpus() if self.address is None else []
        environment = os.environ | QUIET
        if self.address is None:
            # Nobody else on this machine is to use it. A job that takes too much memory is killed
            # by the kernel and told so; Ray would kill the process that tells.
            environment |= {
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": uuid.uuid4().hex,
                "RAY_memory_monitor_refresh_ms": "0",
                "RAY_raylet_start_wait_time_s": "45",
                "CUDA_VISIBLE_DEVICES": ",".join(gpus),
            }
        self._folder = ScratchFolder(_short_folder())
        self._errors = scratch_file()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", str(_DRIVER), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                # Ray puts the working directory on every worker's path of modules.
                cwd=self._folder.name,
                start_new_session=True,
                env=environment,
            )
        self._link, self._received, self._connected = ours, b"", False
        self._began = time.monotonic()
        self._selector.register(ours, selectors.EVENT_READ)
        self._send(
            address=self.address,
            folder=self._folder.name,
            num_cpus=cores(),
            num_gpus=len(gpus),
            sys_path=sys.path,
            main_thread=threading.current_thread() is threading.main_thread(),
        )

    def connect(self) -> None:
        """Wait until it is connected.

        Raises:
            ConfigError: the cluster cannot be reached or started.
        """
        self.start()
        while not self._connected:
            # Short, since an interrupt that comes a moment before the wait does not end it.
            for message in self._receive(1.0):
                if (why := message.get("cannot") or message.get("gone")) is not None:
                    self.close()
                    raise ConfigError(f"{self._named()}: {why}")
            limit = _START_S if self.address is None else _CONNECT_S
            if not self._connected and time.monotonic() - self._began > limit:
                self.close()
                raise ConfigError(f"{self._named()}: no answer within {limit:g} s")

    def submit(self, order: dict[str, Any], options: dict[str, Any], near: str | None) -> None:
        """Hand a job to the cluster.

        Args:
            order: The job; its ``number`` is in every message about it.
            options: Options of the Ray task.
            near: The node that it had best run on.

        Raises:
            TypeError, ValueError: the order is not JSON.
        """
        self._send(order=order, options=options, near=near)

    def wait(self, timeout: float) -> list[dict[str, Any]]:
        """What has happened, waiting for up to ``timeout`` seconds until something does.

        Raises:
            DriverLost: nothing more will come; all that ran is ended.
        """
        messages = self._receive(timeout)
        for message in messages:
            if "gone" in message:
                self.close()
                raise DriverLost(message["gone"])
        return messages

    def close(self) -> None:
        """End all that the driver started, here and in the cluster. It may be started again."""
        if self._process is None:
            return
        connected, self._connected = self._connected, False
        if self._link is not None:  # closing it is the order to end
            self._selector.unregister(self._link)
            self._link.close()
            self._link = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_S if connected else 0.0)
        # Ray's processes hang on the driver; what it could not end is still below it.
        for pid in [*tree.descendants(self._process.pid), self._process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        if self._errors is not None:
            self._errors.close()
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.cleanup()

    def _receive(self, timeout: float) -> list[dict[str, Any]]:
        if self._link is None or not self._selector.select(timeout):
            return []
        try:
            received = self._link.recv(1 << 20)
        except OSError:
            received = b""
        if not received:
            return [{"gone": self._why_gone()}]
        *lines, self._received = (self._received + received).split(b"\n")
        messages = [json.loads(line) for line in lines]
        for message in messages:
            if "nodes" in message:
                self.nodes = [Node.of(facts) for facts in message["nodes"]]
                self._connected = True
        return messages

    def _why_gone(self) -> str:
        assert self._process is not None and self._errors is not None
        try:
            status = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "the Ray driver does not answer"
        self._errors.seek(0)
        last = fatal_line(self._errors.read().decode(errors="replace"), status)
        ended = explain_exit(status, kernel_oom=False)
        return "; ".join(filter(None, [f"the Ray driver died: {ended}", last]))

    def _send(self, **message: Any) -> None:
        text = json.dumps(message).encode() + b"\n"
        # One that died is noticed by `wait`.
        if self._link is not None:
            with contextlib.suppress(OSError):
                self._link.sendall(text)

    def _named(self) -> str:
        return "launch=ray" if self.address is None else f"launch.address={self.address}"


def _short_folder() -> str | None:
    return None if len(tempfile.gettempdir()) <= _LONGEST_FOLDER else "/tmp"  # noqa: S108
