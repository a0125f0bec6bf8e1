"""Workers that are started on this machine, apart from whoever starts them."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

# So long a worker has to kill its jobs and to give them back, before it is killed itself.
_GRACE_S = 8.0


class LocalWorkers:
    """Workers on this machine. They go on when the process that started them is killed."""

    def __init__(self) -> None:
        self._started: list[tuple[psutil.Process, Path]] = []

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start one more; its output goes to ``log``."""
        log.parent.mkdir(parents=True, exist_ok=True)
        # By a shell that ends at once: a child of this process would be killed with it.
        done = subprocess.run(  # noqa: S603
            ["/bin/sh", "-c", '"$@" </dev/null >>"$0" 2>&1 & echo $!', str(log), *command],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            start_new_session=True,
        )
        with contextlib.suppress(psutil.NoSuchProcess):
            self._started.append((psutil.Process(int(done.stdout)), log))

    def find(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        """Take over those that an earlier process started like that, with logs in a folder."""
        known = {process.pid for process, _ in self._started}
        for process in psutil.process_iter():
            # Gone, another user's, or no Linux: then it is started once more.
            with contextlib.suppress(OSError, psutil.Error):
                log = Path(os.readlink(f"/proc/{process.pid}/fd/1"))
                if (
                    log.parent == folder.resolve()
                    and process.pid not in known
                    and process.cmdline() == list(command)
                    and environment.items() <= process.environ().items()
                ):
                    self._started.append((process, log))

    def living(self) -> int:
        """How many of them run."""
        return sum(_lives(process) for process, _ in self._started)

    def last_words(self) -> str | None:
        """The last line of the one that was started last; None if there is none."""
        for _, log in reversed(self._started):
            with contextlib.suppress(OSError):
                lines = log.read_text(errors="replace").strip().splitlines()
                return lines[-1] if lines else None
        return None

    def stop(self) -> None:
        """End them: first by SIGTERM, on which they kill their jobs and give them back."""
        living = [process for process, _ in self._started if _lives(process)]
        for number, wait_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, 1.0)):
            for process in living:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            give_up = time.monotonic() + wait_s
            while (living := [p for p in living if _lives(p)]) and time.monotonic() < give_up:
                time.sleep(0.05)
        self._started.clear()


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
