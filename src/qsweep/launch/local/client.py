"""The launching process's side of the fork server: start it, hand it jobs, hear how they end."""

import contextlib
import itertools
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from qsweep.launch import tree
from qsweep.launch.job import Job
from qsweep.launch.local.server import MESSAGE_BYTES
from qsweep.launch.reasons import explain_exit, fatal_line

# Slow to import, and safe to fork after: none of them starts threads that matter or touches CUDA.
PRELOAD = (
    "torch",
    "safetensors.torch",
    "tokenizers",
    "qsweep.base.lean_transformers",
    "transformers.modeling_utils",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
)

# Activations of tens of megabytes come and go by the thousand: in huge pages the kernel has less to
# do for them, which is a seventh of a decoder layer's forward on a CPU. PyTorch reads it once, at
# its first tensor, before or after the fork.
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
_SERVER = Path(__file__).with_name("server.py")

# A server has nothing to do but to answer. It is asked this often, and one that is silent for longer
# than this is killed with its jobs, which nobody else could end. Pages that come back from a swap
# take their time; but a server that was stopped (SIGSTOP) will not answer, and where a job has to
# be killed there is no time.
_ASK_EVERY_S = 2.0
_SILENT_S = 60.0
_STOPPED_S = 10.0
# While it imports it does not listen; from a cold network file system that takes minutes.
_IMPORT_S = 900.0


@dataclass(eq=False)
class Child:
    """A job that was handed to the server. ``pid`` is None until its process exists."""

    job: Job
    number: int
    mark: str
    progress: socket.socket
    reply: IO[bytes]
    pid: int | None = None
    deadline: float | None = None
    started: float | None = None
    timed_out: bool = False

    def outcome(self) -> dict[str, Any] | None:
        """What the job wrote before it ended; None if that is nothing, or not whole."""
        self.reply.seek(0)
        try:
            return json.load(self.reply)
        except ValueError:
            return None

    def close(self) -> None:
        """Let go of the descriptors."""
        self.progress.close()
        self.reply.close()


@dataclass(frozen=True)
class ServerEvent:
    """Something that happened: one of a child's reports, or the end of the server itself."""

    kind: Literal["started", "progress", "ended", "refused", "lost"]
    child: Child | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class ForkServer:
    """A process that has the slow imports behind it and forks one process per job.

    ``start`` returns at once, the imports run beside the caller's work; without it the first job
    starts the server. It takes the environment and the working directory of each job from the
    caller at the time of ``submit``, but what a preloaded library read from the environment when
    it was imported stays as it was at ``start``.

    Everything it started ends when the caller closes it, or ends in whatever way.

    ``withheld`` are the first letters of variables that the caller has for itself alone.
    """

    def __init__(self, preload: Sequence[str] = PRELOAD, withheld: tuple[str, ...] = ()) -> None:
        self.preload, self.withheld = tuple(preload), withheld
        self.deaths_before_start = 0
        """How often in a row the server died without having started a job."""
        self._numbers = itertools.count()
        self._children: dict[int, Child] = {}
        self._selector = selectors.DefaultSelector()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._errors: IO[bytes] | None = None
        self._ready = False
        self._silence = self._asked = self._looked = 0.0
        self._being_killed: set[int] = set()

    def __enter__(self) -> "ForkServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The server's process id, None if it is not running."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the server if it is not running; do not wait for it."""
        if self._process is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._errors = scratch_file()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", str(_SERVER), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                # Out of reach of the terminal's Ctrl-C, which is for the launching process.
                start_new_session=True,
                env=HUGE_PAGES
                | self._inherited()
                | {
                    # No thread may run when a process forks: OpenBLAS starts its pool at import.
                    "OPENBLAS_NUM_THREADS": "1",
                    # "Is there a GPU?" must be answered without initialising CUDA.
                    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
                },
            )
        self._control = ours
        self._ready = False
        self._silence, self._asked = 0.0, time.monotonic()
        self._being_killed = set()
        self._selector.register(ours, selectors.EVENT_READ, None)
        main_thread = threading.current_thread() is threading.main_thread()
        self._send(
            {"sys_path": sys.path, "preload": list(self.preload), "main_thread": main_thread}
        )

    def _inherited(self) -> dict[str, str]:
        return {n: v for n, v in os.environ.items() if not n.startswith(self.withheld)}

    def submit(self, job: Job, environment: dict[str, str], threads: int | None = None) -> Child:
        """Hand a job to the server, starting it if need be.

        ``environment`` is put over this process's own; ``threads`` limits the job's CPU threads.
        Raises ``TypeError`` or ``ValueError`` if the payload is not JSON.
        """
        mark = f"{os.getpid()}-{uuid.uuid4().hex}"
        order = {
            "target": job.target,
            "payload": job.payload,
            "log": str(Path(job.log).absolute()),
            "environment": HUGE_PAGES | self._inherited() | environment | {tree.MARK: mark},
            "threads": threads,
            "cwd": working_directory(),
            "sys_path": sys.path,
        }
        text = json.dumps(order).encode()
        self.start()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = Child(job, next(self._numbers), mark, ours, scratch_file())
        # Files, not pipes: no size at which a write waits for a reader who may be gone.
        with theirs, scratch_file() as request:
            request.write(text)
            request.flush()
            request.seek(0)
            self._children[child.number] = child
            self._selector.register(ours, selectors.EVENT_READ, child)
            descriptors = [request.fileno(), child.reply.fileno(), theirs.fileno()]
            self._send({"start": child.number, "mark": mark}, descriptors)
        return child

    def kill(self, child: Child) -> None:
        """Kill a job and all that it started; its end is reported like any other."""
        self._being_killed.add(child.number)
        self._send({"kill": child.number})

    def wait(self, timeout: float | None = None) -> list[ServerEvent]:
        """What has happened, waiting for up to ``timeout`` seconds until something does."""
        events: list[ServerEvent] = []
        # The control socket first: a job has started before it reports.
        ready = sorted(self._selector.select(timeout), key=lambda entry: entry[0].data is not None)
        for key, _ in ready:
            if key.data is None:
                events += self._receive()
            elif key.data.number in self._children:
                events += self._receive_progress(key.data)
        return events + self._check_server_responds()

    def _check_server_responds(self) -> list[ServerEvent]:
        """Kill the server if it has been silent for too long, and so end all that hangs on it."""
        if self._process is None:
            return []
        now = time.monotonic()
        # Not what has passed while this process was itself stopped (Ctrl-Z), or busy.
        self._silence += min(now - self._looked, _ASK_EVERY_S)
        self._looked = now
        stopped = tree.state_of(self._process.pid) in ("T", "t")
        patience = _SILENT_S if self._ready else _IMPORT_S
        if self._silence > (_STOPPED_S if stopped or self._being_killed else patience):
            what = "was stopped" if stopped else "did not answer"
            return self._report_server_death(f"it {what} for {self._silence:.0f} s")
        if self._ready and now - self._asked > _ASK_EVERY_S:
            self._asked = now
            self._send({"ask": True})
        return []

    def close(self) -> None:
        """End the server and everything that it started. It may be started again."""
        if self._process is None:
            return
        children = list(self._children.values())
        # Closing the socket is the order; a server that is still importing would not hear it.
        self._disconnect()
        self._kill_server(3.0 if self._ready else 0.0)
        for child in children:
            child.close()

    def _receive(self) -> list[ServerEvent]:
        assert self._control is not None
        try:
            message = self._control.recv(MESSAGE_BYTES)
        except OSError:
            message = b""
        if not message:
            return self._report_server_death()
        self._silence = 0.0
        facts = json.loads(message)
        if "ready" in facts:
            self._ready = True
            return []
        kind: Any = next(kind for kind in ("started", "ended", "refused") if kind in facts)
        child = self._children[facts[kind]]
        if kind == "started":
            self.deaths_before_start = 0
            child.pid = facts["pid"]
            child.started = time.time()
            if child.job.timeout_s is not None:
                child.deadline = time.monotonic() + child.job.timeout_s
            return [ServerEvent(kind, child)]
        events = self._receive_progress(child)
        self._remove_child(child)
        return [*events, ServerEvent(kind, child, facts)]

    def _receive_progress(self, child: Child) -> list[ServerEvent]:
        """The last of the reports that have come in; nobody needs those before it."""
        last = None
        # Bounded, since a job may report faster than this reads.
        for _ in range(1000):
            try:
                message = child.progress.recv(4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                message = b""
            if not message:  # closed by the job, whose end will be told by the server
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(child.progress)
                break
            last = message
        if last is None:
            return []
        step, share = json.loads(last)
        return [ServerEvent("progress", child, {"step": step, "share": share})]

    def _report_server_death(self, silence: str | None = None) -> list[ServerEvent]:
        """The server died by itself, or is as good as dead: end what it leaves behind."""
        children = list(self._children.values())
        self.deaths_before_start += 1
        self._disconnect()
        # Its socket closes a moment before it can be waited for; one that is silent is not.
        reason = self._kill_server(0.5 if silence is None else 0.0)
        reason = silence or reason
        return [ServerEvent("lost", child, {"reason": reason}) for child in children] or [
            ServerEvent("lost", None, {"reason": reason})
        ]

    def _disconnect(self) -> None:
        if self._control is not None:
            self._selector.unregister(self._control)
            self._control.close()
            self._control = None

    def _kill_server(self, grace_s: float) -> str:
        """Kill the server and what is left of its jobs. Returns why it died, in one line."""
        assert self._process is not None and self._errors is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        self._process.kill()
        status = self._process.wait()
        self._process = None
        for child in self._children.values():
            if child.pid is not None:
                tree.kill_group(child.pid)
        if self._children and self._ready:
            tree.kill_marked({child.mark for child in self._children.values()})
        for child in list(self._children.values()):
            self._remove_child(child)
        self._errors.seek(0)
        last_line = fatal_line(self._errors.read().decode(errors="replace"), status)
        self._errors.close()
        return "; ".join(filter(None, [explain_exit(status, kernel_oom=False), last_line]))

    def _remove_child(self, child: Child) -> None:
        self._children.pop(child.number, None)
        self._being_killed.discard(child.number)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(child.progress)

    def _send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        # A server that died is noticed by `wait`, together with all that it leaves behind.
        if self._control is not None:
            with contextlib.suppress(OSError):
                socket.send_fds(self._control, [json.dumps(message).encode()], list(descriptors))


def working_directory() -> str:
    """This process's, or the root if somebody has removed it."""
    # A sweep goes on without the folder that it was started in: its paths are absolute.
    try:
        return os.getcwd()
    except OSError:
        return "/"


def scratch_file() -> IO[bytes]:
    """A file without a name, in memory where the system can: a full disk must not cost a result."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("qsweep"), "w+b")
    return tempfile.TemporaryFile()
