"""An array of workers in Slurm's queue: submitted, looked at, cancelled, remembered."""

import contextlib
import io
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from qsweep.base.errors import ConfigError, QsweepError
from qsweep.base.files import read_json, write_json
from qsweep.launch.slurm.task import Task

# Slurm's commands wait for its controller for longer than this where nobody answers.
_ANSWER_S = 30.0
# submitit counts how often a task has run out of time; here the jobs' attempts are counted.
_NO_END = 1_000_000
_FORMAT = "%i|%T|%N|%r"

_WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
_RUNNING = (
    *("RUNNING", "CONFIGURING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT"),
    *("STOPPED", "SUSPENDED"),
)
# Why a task waits that will not begin by itself, whatever the cluster has free.
_NEVER = (
    *("AccountNotAllowed", "BadConstraints", "DependencyNeverSatisfied", "InvalidAccount"),
    *("InvalidQOS", "JobHeldAdmin", "PartitionConfig", "PartitionDown", "PartitionInactive"),
    *("PartitionNodeLimit", "PartitionTimeLimit", "QOSNotAllowed"),
    *("job requeued in held state", "launch failed requeued held"),
)


class SlurmAway(QsweepError):
    """Slurm does not answer; it may again in a while."""


@dataclass(frozen=True)
class State:
    """A task of the array, as Slurm sees it; ``id`` is ``JOB_TASK``, ``state`` Slurm's long name."""

    id: str
    state: str
    node: str = ""
    reason: str = ""

    @property
    def waits(self) -> bool:
        """Whether it is in the queue."""
        return self.state in _WAITING

    @property
    def lives(self) -> bool:
        """Whether it runs, or may run yet."""
        return self.waits or self.state in _RUNNING

    @property
    def never(self) -> bool:
        """Whether it waits for what will not come by itself."""
        reason = self.reason.strip("()")
        return self.waits and (reason.startswith(_NEVER) or "PerJob" in reason)


@dataclass(frozen=True)
class Array:
    """Workers that were submitted together: Slurm's id of them, and how many they were."""

    job: str
    workers: int

    @classmethod
    def recorded(cls, folder: Path) -> Self | None:
        """The array that was last submitted from a folder; None if there was none."""
        try:
            return cls(**read_json(_record(folder)))
        except (OSError, TypeError, ValueError):
            return None

    @classmethod
    def submit(
        cls,
        folder: Path,
        task: Task,
        environment: Mapping[str, str],
        parameters: Mapping[str, Any],
        workers: int,
    ) -> Self:
        """Submit workers.

        Args:
            folder: For their logs and submitit's files; all nodes must see it.
            task: What each is.
            environment: Variables that they get beside those of this process.
            parameters: As :func:`~qsweep.launch.slurm.options.parameters` gives them.
            workers: How many.

        Raises:
            ConfigError: submitit or Slurm is not installed, or Slurm does not take them.
        """
        executor = _executor(folder)
        try:
            # It prints what it raises.
            with _outside_of_jobs(environment), contextlib.redirect_stderr(io.StringIO()):
                executor.update_parameters(**parameters)
                tasks = executor.submit_array([task] * workers)
        except Exception as error:
            raise ConfigError(f"launch=slurm: sbatch says: {_words(str(error))}") from error
        array = cls(str(tasks[0].job_id).partition("_")[0], workers)
        write_json(_record(folder), asdict(array))
        return array

    def states(self) -> list[State]:
        """How its tasks are; those that ended are forgotten by Slurm after a while.

        Raises:
            SlurmAway: Slurm does not answer.
        """
        # Twice, since a single id is an error as soon as Slurm has forgotten it.
        options = [f"--jobs={self.job},{self.job}", "--array", "--states=all", "--noheader"]
        text = _slurm("squeue", *options, f"--format={_FORMAT}")
        return [State(*line.split("|", 3)) for line in text.splitlines() if line.count("|") >= 3]

    def cancel(self, *, waiting: bool = False) -> None:
        """End its tasks; ``waiting``: only those that have not begun. Raises SlurmAway."""
        _slurm("scancel", *(["--state=PENDING"] if waiting else []), self.job)


def in_words(array: Array, states: Sequence[State]) -> str:
    """How an array is, in one line.

    >>> in_words(Array("7", 2), [State("7_0", "RUNNING", "n1"), State("7_1", "PENDING", "", "Resources")])
    'Slurm job 7: 1 running (n1), 1 pending (Resources)'
    """
    counted = Counter(one.state.lower().replace("_", " ") for one in states)
    parts = []
    for state, count in counted.items():
        same = [one for one in states if one.state.lower().replace("_", " ") == state]
        told = {one.reason.strip("()") if one.waits else one.node for one in same}
        told -= {"", "None"}
        parts.append(f"{count} {state}" + (f" ({', '.join(sorted(told))})" if told else ""))
    return f"Slurm job {array.job}: {', '.join(parts) or 'ended'}"


def why_hopeless(array: Array, states: Sequence[State]) -> str | None:
    """Why none of an array's tasks will run any more, in one line; None if one may."""
    if any(one.lives and not one.never for one in states):
        return None
    if any(one.lives for one in states):
        return f"{in_words(array, [one for one in states if one.lives])}: it cannot start"
    return f"{in_words(array, states)}: all workers have ended"


def _record(folder: Path) -> Path:
    return folder / "slurm.json"


def _executor(folder: Path) -> Any:
    for program in ("sbatch", "srun", "squeue", "scancel"):
        if shutil.which(program) is None:
            raise ConfigError(
                f"launch=slurm: there is no {program} on this machine; run it where Slurm's commands "
                "are, such as on a login node"
            )
    try:
        import submitit
    except ImportError as error:
        raise ConfigError('launch=slurm needs submitit: pip install "qsweep[slurm]"') from error
    folder.mkdir(parents=True, exist_ok=True)
    return submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=_NO_END)


@contextlib.contextmanager
def _outside_of_jobs(environment: Mapping[str, str]) -> Iterator[None]:
    """The environment to submit in; within a job of Slurm, without what describes that job."""
    from submitit.helpers import clean_env, environment_variables

    own = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    inside = "SLURM_JOB_ID" in os.environ
    with (
        clean_env() if inside else contextlib.nullcontext(),
        environment_variables(**own, **environment),
    ):
        yield


def _slurm(*command: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=_ANSWER_S, check=True
        )
    except subprocess.CalledProcessError as error:
        raise SlurmAway(f"{command[0]} says: {_words(error.stderr)}") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmAway(f"{command[0]} has not answered for {_ANSWER_S:g} s") from error
    except OSError as error:
        raise SlurmAway(f"{command[0]}: {error.strerror}") from error
    return done.stdout


def _words(text: str) -> str:
    """What one of Slurm's commands said, in one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(re.sub(r"^\w+:( error:| fatal:)? ", "", line) for line in lines) or "nothing"
