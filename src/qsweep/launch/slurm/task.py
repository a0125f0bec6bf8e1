"""What Slurm runs in each task of the array: a worker, which is ended in time and queued again.

submitit writes a :class:`Task` into a file beside the task's log and reads it again on the node.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

# Slurm looks at its clock now and then: an announcement comes up to a minute before it is due.
_EARLIER_S = 65


class Task:
    """One worker of the array: a command, called once for each time that Slurm starts the task.

    Slurm sends its signals to every process of a task. What it announces the end of the time with
    would end most programs, so the command and all that it starts ignore that. The command alone
    gets SIGXCPU for it, which tells a worker that its time is up; or SIGTERM where the task is
    preempted and has time left. At either a worker gives back what it has.

    Args:
        command: What to run.
        delay_s: How long before the end of its time Slurm announces that.
        requeue: Whether Slurm is to queue the task again then.
    """

    def __init__(self, command: Sequence[str], delay_s: int, requeue: bool = True):
        self.command, self.delay_s, self.requeue = list(command), delay_s, requeue
        self._pid: int | None = None

    def __call__(self) -> None:
        """Run the command; end as it ended."""
        number = announcement()
        before = signal.signal(number, signal.SIG_IGN)
        try:
            process = subprocess.Popen(self.command)  # noqa: S603
        finally:
            signal.signal(number, before)
        self._pid = process.pid
        _wait(process.pid)
        self._pid = None
        status = process.wait()
        if status:
            sys.exit(status if status > 0 else 128 - status)

    def checkpoint(self) -> Any:
        """Called by submitit at Slurm's signal: end the command; what to run when queued again."""
        from submitit.helpers import DelayedSubmission

        if self._pid is not None:
            up = left_s() <= self.delay_s + _EARLIER_S
            os.kill(self._pid, signal.SIGXCPU if up else signal.SIGTERM)
            _wait(self._pid)
        again = Task(self.command, self.delay_s, self.requeue)
        return DelayedSubmission(again) if self.requeue else None


def left_s() -> float:
    """How many seconds Slurm still gives the task that this is called in; 0 if it does not say."""
    job = os.environ.get("SLURM_JOB_ID", "")
    command = ["squeue", "--noheader", "--format=%e", f"--jobs={job}"]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=10, check=True
        )
        return datetime.fromisoformat(done.stdout.strip()).timestamp() - time.time()
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0.0


def announcement() -> signal.Signals:
    """The signal that submitit has Slurm announce the end of the time with."""
    from submitit.core.job_environment import JobEnvironment

    return signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]


def _wait(pid: int) -> None:
    # Popen.wait holds a lock meanwhile, which a signal's handler could only wait for in vain.
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
