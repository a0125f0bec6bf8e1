"""What of a cluster each worker asks for, and the same in submitit's words. Pure."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qsweep.base.errors import ConfigError

_DAY_MINUTES = 24 * 60
_DAYS = re.compile(r"(\d+)-(\d+)(?::(\d+)(?::(\d+))?)?")
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+)")
# What is an option here, or belongs to how the workers are run.
_OWN = {
    "account": "account",
    "array": "workers",
    "constraint": "constraint",
    "cpus-per-task": "cpus_per_task",
    "exclude": "exclude",
    "gpus-per-node": "gpus_per_node",
    "gres": "gres",
    "mem": "mem_gb",
    "no-requeue": "requeue",
    "partition": "partition",
    "qos": "qos",
    "requeue": "requeue",
    "signal": "signal_delay_s",
    "time": "time",
}


@dataclass(kw_only=True)
class Allocation:
    """What each worker asks Slurm for; what is not given is left to the cluster's defaults.

    Attributes:
        partition: A partition, or several with commas, of which Slurm takes the first that is free.
        account: Whom the time is charged to.
        qos: A quality of service.
        gres: Generic resources, such as ``gpu:a100:1``.
        gpus_per_node: How many GPUs, where their kind does not matter.
        cpus_per_task: How many CPUs; Slurm's default is one.
        mem_gb: How much host memory, in units of 2^30 bytes.
        time: How long a worker may run: minutes, or as Slurm writes it (``"4:00:00"``,
            ``"2-12:00"``); rounded up to whole minutes. What it has not finished by then is given
            back, and the worker is queued again.
        constraint: Features that a node must have, such as ``"a100|h100"``.
        exclude: Nodes that are not to be used.
        setup: Lines of shell that come before the worker, such as ``module load cuda``.
        array_parallelism: How many of the workers run at once; by default all.
        requeue: Whether Slurm queues a worker again that was preempted, lost its node or came to
            the end of its time.
        signal_delay_s: So long before the end of its time a worker gives back what it has.
        additional_parameters: Further options of ``sbatch``, by their long names; they come last.

    Raises:
        ConfigError: a value that Slurm could not make sense of either.
    """

    partition: str | int | None = None
    account: str | int | None = None
    qos: str | int | None = None
    gres: str | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: float | None = None
    time: int | str = _DAY_MINUTES // 6
    constraint: str | int | None = None
    exclude: str | int | None = None
    setup: Sequence[str] = ()
    array_parallelism: int | None = None
    requeue: bool = True
    signal_delay_s: int = 90
    additional_parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gpus(self) -> int:
        """How many GPUs each worker will have."""
        return self.gpus_per_node or sum(map(_gpus_of, (self.gres or "").split(",")))

    def __post_init__(self) -> None:
        for name in ("partition", "account", "qos", "constraint", "exclude"):
            if isinstance(getattr(self, name), int):  # a command line takes 4711 for a number
                setattr(self, name, str(getattr(self, name)))
        for name in ("gpus_per_node", "cpus_per_task", "mem_gb", "array_parallelism"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"launch.{name}={value}: must be more than 0")
        if self.signal_delay_s < 0:
            raise ConfigError(f"launch.signal_delay_s={self.signal_delay_s}: must be at least 0")
        if self.signal_delay_s >= 60 * minutes(self.time):
            raise ConfigError(
                f"launch.signal_delay_s={self.signal_delay_s}: seconds before the end of "
                f"launch.time={self.time}, and it is not shorter; give less"
            )
        for name in self.additional_parameters:
            plain = _plain(name).replace("_", "-")
            if plain in _OWN:
                raise ConfigError(
                    f"launch.additional_parameters.{name}: has an option of its own, "
                    f"launch.{_OWN[plain]}"
                )


def _plain(name: str) -> str:
    """An option of ``sbatch`` as submitit spells it, so that it takes the place of submitit's own."""
    return str(name).strip("-").replace("-", "_")


def _gpus_of(resource: str) -> int:
    """How many GPUs one of several generic resources is: ``gpu``, ``gpu:2``, ``gpu:a100:2``."""
    name, *more = resource.partition("(")[0].strip().removeprefix("gres/").split(":")
    if name != "gpu":
        return 0
    return int(more[-1]) if more and more[-1].isdigit() else 1


def minutes(time: int | str) -> int:
    """How many minutes a time of Slurm's spelling is, rounded up.

    >>> minutes("1-12:30"), minutes("1:30:00"), minutes("90:30"), minutes(90)
    (2190, 90, 91, 90)

    Raises:
        ConfigError: it is no such time.
    """
    if isinstance(time, int) or time.isdigit():
        if int(time) > _DAY_MINUTES and isinstance(time, int):
            # YAML reads 4:00:00 as a number to the base of 60, which is 14400.
            raise ConfigError(
                f"launch.time={time}: a number is minutes, up to a day of {_DAY_MINUTES}; write a "
                'longer time as days, "2-00:00:00", and every time with colons in quotes'
            )
        found = int(time)
    elif days := _DAYS.fullmatch(time):
        day, hour, minute, second = (int(part or 0) for part in days.groups())
        found = math.ceil(_DAY_MINUTES * day + 60 * hour + minute + second / 60)
    elif clock := _CLOCK.fullmatch(time):
        hour, minute, second = (int(part or 0) for part in clock.groups())
        found = math.ceil(60 * hour + minute + second / 60)
    else:
        raise ConfigError(
            f'launch.time={time!r}: is no time; write minutes, "HH:MM:SS" or "DAYS-HH:MM:SS"'
        )
    if found < 1:
        raise ConfigError(f"launch.time={time!r}: Slurm's shortest is a minute")
    return found


def parameters(asked: Allocation, name: str, workers: int) -> dict[str, Any]:
    """What :class:`submitit.AutoExecutor` is to be told.

    Args:
        asked: What each worker asks for.
        name: What the workers are called in Slurm's queue.
        workers: How many there are.
    """
    # Since Slurm 22.05, srun does not take over what sbatch was given.
    cpus = [f"--cpus-per-task={asked.cpus_per_task}"] if asked.cpus_per_task else []
    given = {
        "name": name,
        "nodes": 1,
        "tasks_per_node": 1,
        "timeout_min": minutes(asked.time),
        "gpus_per_node": asked.gpus_per_node,
        "cpus_per_task": asked.cpus_per_task,
        "mem_gb": asked.mem_gb,
        "stderr_to_stdout": True,
        "slurm_partition": asked.partition,
        "slurm_account": asked.account,
        "slurm_qos": asked.qos,
        "slurm_gres": asked.gres,
        "slurm_constraint": asked.constraint,
        "slurm_exclude": asked.exclude,
        "slurm_setup": list(asked.setup) or None,
        "slurm_array_parallelism": asked.array_parallelism or workers,
        "slurm_signal_delay_s": asked.signal_delay_s,
        "slurm_srun_args": cpus or None,
        "slurm_additional_parameters": {
            "requeue" if asked.requeue else "no-requeue": True,
            **{
                _plain(name): value
                for name, value in asked.additional_parameters.items()
                if value is not None
            },
        },
    }
    return {key: value for key, value in given.items() if value is not None}
