"""The fork server: imports what is slow to import once, then forks a process per job.

Run as a script with the file descriptor of a socket whose other end is the launching process. It
differs from ``multiprocessing``'s in what matters here: it never imports the caller's ``__main__``,
reports how each job ended and what memory it took, adopts and kills whatever a job leaves behind,
and takes everything down with it when the launching process disappears, be it by ``kill -9``.

It must stay without threads, or forking would not be safe, and must not touch CUDA.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any

MESSAGE_BYTES = 1 << 17
_NOT_FOR_IT = (signal.SIGTERM, signal.SIGHUP)


def main(descriptor: int) -> None:
    """Serve until the launching process closes its end of the socket or dies."""
    control = socket.socket(fileno=descriptor)
    parent = os.getppid()
    hello = json.loads(control.recv(MESSAGE_BYTES) or b"null")
    if hello is None:
        return
    sys.path[:] = hello["sys_path"]
    from qsweep.launch import tree

    # While importing, nobody listens at the socket: let the kernel watch the parent. Afterwards
    # not, since a server that is killed cannot clean up.
    tree.die_with_parent(hello["main_thread"])
    if os.getppid() != parent:
        return
    _preload(hello["preload"])
    tree.die_with_parent(False)
    tree.adopt_orphans()
    _Server(control, parent).serve()


def _preload(modules: list[str]) -> None:
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            # The job that needs it fails with the same error, in its own log.
            print(f"cannot import {name}: {error}", file=sys.stderr, flush=True)
    # Keep the collector from writing into, and so copying, the pages that all jobs share.
    gc.collect()
    gc.freeze()


class _RunningJob:
    def __init__(self, number: int, mark: str) -> None:
        self.number = number
        self.mark = mark
        self.started = time.monotonic()
        self.kernel_kills = kernel_oom_kills()


class _Server:
    def __init__(self, control: socket.socket, parent: int) -> None:
        # Nothing of qsweep can be imported before the launching process has said from where.
        from qsweep.launch import tree

        self.tree = tree
        self.control = control
        self.parent = parent
        self.jobs: dict[int, _RunningJob] = {}
        self.wake_r, self.wake_w = os.pipe()

    def serve(self) -> None:
        for end in (self.wake_r, self.wake_w):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # Slurm sends these to every process of a job: it ends with the launching one, in order.
        for number in _NOT_FOR_IT:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(self.wake_w)
        watched: list[Any] = [self.control, self.wake_r]
        try:
            self._send({"ready": True})
            while os.getppid() == self.parent:
                ready = select.select(watched, [], [], 1.0)[0]
                if self.wake_r in ready:
                    os.read(self.wake_r, 4096)
                    self._reap()
                if self.control in ready and not self._handle_message():
                    break
        except OSError:  # the launching process is gone
            pass
        finally:
            self._kill_everything()
            # Tearing the imported libraries down would only take time.
            os._exit(0)

    def _handle_message(self) -> bool:
        message, descriptors, _, _ = socket.recv_fds(self.control, MESSAGE_BYTES, 3)
        if not message:
            return False
        order = json.loads(message)
        if "start" in order:
            self._start(order["start"], order["mark"], descriptors)
        elif "ask" in order:
            self._send({"ready": True})
        elif "kill" in order:
            for pid, job in self.jobs.items():
                if job.number == order["kill"]:
                    self.tree.kill_group(pid)
        return True

    def _start(self, number: int, mark: str, descriptors: list[int]) -> None:
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            _close(descriptors)
            self._send({"refused": number, "reason": f"cannot start a process: {error.strerror}"})
            return
        if pid == 0:
            self._become_job(server, descriptors)
        _close(descriptors)
        self.jobs[pid] = _RunningJob(number, mark)
        self._send({"started": number, "pid": pid})

    def _become_job(self, server: int, descriptors: list[int]) -> None:
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, *_NOT_FOR_IT):
                signal.signal(number, signal.SIG_DFL)
            self.control.close()
            _close([self.wake_r, self.wake_w])
            from qsweep.launch.local import worker

            request, reply, progress = descriptors
            worker.run(request, reply, progress, server)
        finally:
            os._exit(70)

    def _reap(self) -> None:
        while True:
            try:
                # Look without reaping: as long as the leader is a zombie its pid stays taken, so
                # killing its group cannot hit a stranger.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            pid = ended.si_pid
            job = self.jobs.pop(pid, None)
            if job is not None:
                self.tree.kill_group(pid)
            _, status, usage = os.wait4(pid, 0)
            self.tree.kill_orphans({pid: job.mark for pid, job in self.jobs.items()})
            if job is not None:
                self._send(
                    {
                        "ended": job.number,
                        "status": os.waitstatus_to_exitcode(status),
                        "seconds": time.monotonic() - job.started,
                        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
                        "kernel_oom": kernel_oom_kills() > job.kernel_kills,
                    }
                )

    def _kill_everything(self) -> None:
        for pid in self.jobs:
            self.tree.kill_group(pid)
        give_up = time.monotonic() + 2.5
        while time.monotonic() < give_up:
            self.tree.kill_orphans({})
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.01)
            except ChildProcessError:
                return

    def _send(self, message: dict[str, Any]) -> None:
        self.control.send(json.dumps(message).encode())


def kernel_oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since the system started."""
    with contextlib.suppress(OSError, ValueError), open("/proc/vmstat") as file:
        for line in file:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


if __name__ == "__main__":
    main(int(sys.argv[1]))
