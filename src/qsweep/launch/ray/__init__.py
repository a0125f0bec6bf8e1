"""Jobs on a Ray cluster, each a task of its own: ``launch=ray``."""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar, Literal, Self

from qsweep.base.errors import ConfigError
from qsweep.base.memory import available_bytes
from qsweep.launch import interrupts
from qsweep.launch.flow import Flow
from qsweep.launch.job import Event, Job, JobResult
from qsweep.launch.local.client import PRELOAD, working_directory
from qsweep.launch.local.slots import make_slots
from qsweep.launch.protocol import Capacity, ignore, no_retry
from qsweep.launch.ray.client import RayDriver
from qsweep.launch.ray.demand import Wish, demand_of, room_on, why_nowhere
from qsweep.launch.ray.run import Placement, Run, Terms

__all__ = ["RayLauncher"]


@dataclass
class RayLauncher:
    """One Ray task per job, which runs it on its node in a process of its own.

    Nodes have qsweep installed, in the version that runs here; nothing of it is copied there.

    Attributes:
        address: The cluster: ``auto`` for the one of this machine, ``HOST:PORT`` from one of its
            nodes, ``ray://HOST:PORT`` from elsewhere; null for one of this machine alone, which
            begins and ends with the sweep.
        num_cpus: Cores of each job, which are also its threads; ``auto``: its share of a node.
        num_gpus: GPUs of each job that is not for the CPU, such as 0.5; ``auto``: one where nodes
            have any, or a share of one where ``n_jobs`` is more than there are.
        memory_gb: Memory that each job reserves, in 1e9 bytes.
        resources: Custom resources that each job takes, by name.
        labels: Labels of the nodes that may be used, as Ray's ``label_selector`` has them.
        max_attempts: How often a job begins in all whose node or Ray worker dies under it.
        placement: ``near``: a job goes to the node that ran what it needs while that has room, and
            finds it there; ``any``: wherever Ray likes.
        env: Names of variables that jobs get from here. A cluster of this machine alone gets all.
        autoscaling: Whether the cluster grows with what waits: then a job that no node of now can
            run waits.
        n_jobs: How many jobs run at once; ``auto``: as many as there is room for.

    Example::

        with RayLauncher(address="auto", num_gpus=1) as launcher:
            results = launcher.run(jobs, on_done=record)
    """

    elsewhere: ClassVar[bool] = True

    address: str | None = None
    num_cpus: float | Literal["auto"] = "auto"
    num_gpus: float | Literal["auto"] = "auto"
    memory_gb: float | None = None
    resources: Mapping[str, float] | None = None
    labels: Mapping[str, str] | None = None
    max_attempts: int = 3
    placement: Placement = "near"
    env: Sequence[str] = ()
    autoscaling: bool = False
    n_jobs: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.n_jobs != "auto" and self.n_jobs < 1:
            raise ConfigError(f"n_jobs={self.n_jobs}: a number from 1, or auto")
        if self.max_attempts < 1:
            raise ConfigError(f"launch.max_attempts={self.max_attempts}: a number from 1")
        for name in ("num_cpus", "memory_gb"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and value <= 0:
                raise ConfigError(f"launch.{name}={value}: a number above 0")
        if self.num_gpus != "auto" and (
            self.num_gpus < 0 or (self.num_gpus > 1 and self.num_gpus % 1)
        ):
            raise ConfigError(f"launch.num_gpus={self.num_gpus}: a share of one, or a whole number")
        if self.address is not None and not _ADDRESS.fullmatch(self.address):
            raise ConfigError(
                f"launch.address={self.address}: auto, HOST:PORT or ray://HOST:PORT; null for a "
                "cluster of this machine alone"
            )
        self._driver = RayDriver(self.address)
        self._preload: Sequence[str] = PRELOAD

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self) -> None:
        """Connect to the cluster, or start it, beside the caller's work."""
        self._check_installed()
        self._driver.start()

    def capacity(self, devices: Sequence[str]) -> Capacity:
        """As many jobs as the nodes have room for now; they share these nodes' memory.

        Raises:
            ConfigError: a device has no known name, the cluster cannot be reached, or none of its
                nodes has what each job takes.
        """
        make_slots(1, devices, gpus=())  # refuses unknown names
        self._check_installed()
        self._driver.connect()
        nodes, wish = self._driver.nodes, self._wish()
        jobs = memory = 0
        for device in sorted(set(devices)):
            demand = demand_of(device, wish, nodes)
            rooms = {node.id: room_on(node, demand) for node in nodes}
            why = why_nowhere(device, demand, nodes, {})
            if why is not None and not demand.gpus and not self.autoscaling:
                raise ConfigError(f"launch=ray: {why}")
            if (count := sum(rooms.values())) > jobs:
                jobs = count
                # Each has at least this much on the node that has least for it.
                each = min(node.memory / rooms[node.id] for node in nodes if rooms[node.id])
                memory = int(demand.memory or each)
        if self.n_jobs != "auto":
            jobs = self.n_jobs if self.autoscaling else min(jobs, self.n_jobs)
        jobs = max(jobs, 1)
        return Capacity(jobs, jobs * memory or available_bytes())

    def run(
        self,
        jobs: Sequence[Job],
        *,
        on_event: Callable[[Event], None] = ignore,
        on_done: Callable[[Job, JobResult], None] = ignore,
        retry: Callable[[Job, JobResult], Sequence[Job]] = no_retry,
    ) -> dict[str, JobResult]:
        """Run jobs; see :class:`~qsweep.launch.protocol.Launcher`.

        Raises:
            ConfigError: the cluster cannot be reached; nothing has run.
        """
        self._check_installed()
        flow = Flow(jobs, on_event=on_event, on_done=on_done, retry=retry)
        try:
            Run(self._driver, flow, self._terms(), working_directory()).run_all()
        except BaseException:
            interrupts.acknowledge()
            self.close()
            raise
        return {job.id: flow.results[job.id] for job in jobs} | flow.results

    def close(self) -> None:
        """End what runs and leave the cluster, or end it if it is of this sweep alone."""
        self._driver.close()

    def _wish(self) -> Wish:
        memory = None if self.memory_gb is None else self.memory_gb * 1e9
        return Wish(
            self.n_jobs,
            self.num_cpus,
            self.num_gpus,
            memory,
            self.resources or {},
            self.labels or {},
        )

    def _terms(self) -> Terms:
        own = self.address is None  # everything there is as it is here
        shown = os.environ if own else {name: os.environ.get(name) for name in self.env}
        return Terms(
            self._wish(),
            self.max_attempts,
            self.placement,
            self.autoscaling,
            {n: v for n, v in shown.items() if v is not None and not n.startswith(_RAYS_OWN)},
            sys.path if own else (),
            self._preload,
        )

    def _check_installed(self) -> None:
        client = (self.address or "").startswith("ray://")
        if find_spec("ray") is None:
            raise ConfigError('launch=ray: Ray is not installed; pip install "qsweep[ray]"')
        if client and find_spec("grpc") is None:
            raise ConfigError(
                f"launch.address={self.address}: Ray's client is not installed; "
                'pip install "ray[client]"'
            )


_ADDRESS = re.compile(r"auto|(ray://)?([^\s/:\[\]]+|\[[^\s\]]+\]):\d+")
# Each process of Ray has these of its own.
_RAYS_OWN = ("RAY_", "CUDA_VISIBLE_DEVICES")
