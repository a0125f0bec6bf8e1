"""An array of workers in Slurm's queue: submitted, looked at, cancelled, remembered."""

import contextlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
# So many nodes, or reasons to wait, are told by name.
_NAMES = 6

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


# What sbatch says where the controller did not hear it, or cannot take anything at the moment.
_AWAY = re.compile(
    r"unable to contact|unable to connect|connection refused|timed out|zero bytes|standby"
    r"|temporarily unable|communication (failure|connection)|resolve",
    re.IGNORECASE,
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
    """The workers of a sweep: Slurm's ids of the jobs that they were submitted as, oldest first."""

    jobs: tuple[str, ...] = ()

    @classmethod
    def recorded(cls, folder: Path) -> Self:
        """Those that were submitted from a folder; none where that does not say."""
        try:
            return cls(tuple(map(str, read_json(_record(folder))["jobs"])))
        except (OSError, KeyError, TypeError, ValueError):
            return cls()

    def and_more(
        self,
        folder: Path,
        task: Task,
        environment: Mapping[str, str],
        parameters: Mapping[str, Any],
        workers: int,
    ) -> Self:
        """Submit workers; those that there are then.

        Args:
            folder: For their logs and submitit's files; all nodes must see it.
            task: What each is.
            environment: Variables that they get beside those of this process.
            parameters: As :func:`~qsweep.launch.slurm.options.parameters` gives them.
            workers: How many.

        Raises:
            ConfigError: Slurm does not take them.
            SlurmAway: it does not answer.
        """
        import submitit

        folder.mkdir(parents=True, exist_ok=True)
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=_NO_END)
        try:
            # It prints what it raises.
            with _outside_of_jobs(environment), contextlib.redirect_stderr(io.StringIO()):
                executor.update_parameters(**parameters)
                tasks = executor.submit_array([task] * workers)
        except Exception as error:
            words = _words(str(error))
            if _AWAY.search(words):
                raise SlurmAway(f"sbatch says: {words}") from error
            raise ConfigError(f"launch=slurm: sbatch says: {words}") from error
        array = type(self)((*self.jobs, str(tasks[0].job_id).partition("_")[0]))
        write_json(_record(folder), {"jobs": array.jobs})
        return array

    def states(self) -> list[State]:
        """How the tasks are; those that ended are forgotten by Slurm after a while.

        Raises:
            SlurmAway: Slurm does not answer.
        """
        if not self.jobs:
            return []
        # The last one twice, since a single id is an error as soon as Slurm has forgotten it.
        options = [f"--jobs={','.join((*self.jobs, self.jobs[-1]))}", "--array", "--states=all"]
        text = _slurm("squeue", *options, "--noheader", f"--format={_FORMAT}")
        return [State(*line.split("|", 3)) for line in text.splitlines() if line.count("|") >= 3]

    def cancel(self, *, waiting: bool = False) -> None:
        """End the tasks; ``waiting``: only those that have not begun. Raises SlurmAway."""
        if self.jobs:
            _slurm("scancel", "--quiet", *(["--state=PENDING"] if waiting else []), *self.jobs)

    def __str__(self) -> str:
        return f"Slurm job{'s' if len(self.jobs) > 1 else ''} {', '.join(self.jobs)}"


def check_installed() -> None:
    """Raise ConfigError, in one line, where Slurm's commands or submitit are missing."""
    for program in ("sbatch", "srun", "squeue", "scancel"):
        if shutil.which(program) is None:
            raise ConfigError(
                f"launch=slurm: there is no {program} on this machine; run it where Slurm's commands "
                "are, such as on a login node"
            )
    if importlib.util.find_spec("submitit") is None:
        raise ConfigError('launch=slurm needs submitit: pip install "qsweep[slurm]"')


def in_words(array: Array, states: Sequence[State]) -> str:
    """How an array is, in one line.

    >>> one, two = State("7_0", "RUNNING", "n1"), State("7_1", "PENDING", "", "Resources")
    >>> in_words(Array(("7",)), [one, two])
    'Slurm job 7: 1 running (n1), 1 pending (Resources)'
    """
    alike: dict[str, list[State]] = {}
    for one in states:
        alike.setdefault(one.state.lower().replace("_", " "), []).append(one)
    parts = []
    for state, ones in alike.items():
        told = {one.reason.strip("()") if one.waits else one.node for one in ones} - {"", "None"}
        names = sorted(told)[:_NAMES] + ["…"] * (len(told) > _NAMES)
        parts.append(f"{len(ones)} {state}" + (f" ({', '.join(names)})" if names else ""))
    return f"{array}: {', '.join(parts) or 'ended'}"


def why_hopeless(array: Array, states: Sequence[State]) -> str | None:
    """Why none of an array's tasks will run any more, in one line; None if one may."""
    if any(one.lives and not one.never for one in states):
        return None
    if any(one.lives for one in states):
        return f"{in_words(array, [one for one in states if one.lives])}: it cannot start"
    return f"{in_words(array, states)}: all workers have ended"


def _record(folder: Path) -> Path:
    return folder / "slurm.json"


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
