"""Run jobs on a cluster, each as a Ray task, and say what became of each."""

import contextlib
import itertools
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from qsweep.launch import interrupts
from qsweep.launch.flow import Flow
from qsweep.launch.job import Event, Job, JobResult
from qsweep.launch.ray.client import DriverLost, RayDriver
from qsweep.launch.ray.demand import Demand, Wish, all_but, demand_of, room_on, why_nowhere
from qsweep.launch.ray.node import versions
from qsweep.launch.reasons import explain

# A Ctrl-C that comes a moment before a wait begins does not end it: Python looks after the wait.
_LONGEST_WAIT_S = 1.0
# What is started anew elsewhere: a node that died is given this long to come back.
_PATIENCE_S = 60.0
# At once in a cluster that grows with what waits.
_MANY = 1000

Placement = Literal["near", "any"]


@dataclass(frozen=True)
class Terms:
    """How jobs are run, apart from what each takes from its node.

    Attributes:
        wish: What each takes.
        max_attempts: How often a job begins whose node or Ray worker dies.
        placement: ``near``: on the node that ran what the job needs, while that has room.
        autoscaling: Whether nodes may come that are not there yet.
        environment: Variables that jobs have from here.
        sys_path: Where jobs look for modules beside the node's own places.
        preload: What a node's processes import before the first job; see ``ForkServer``.
    """

    wish: Wish
    max_attempts: int
    placement: Placement
    autoscaling: bool
    environment: Mapping[str, str]
    sys_path: Sequence[str]
    preload: Sequence[str]


@dataclass
class _Running:
    job: Job
    demand: Demand
    mark: str
    host: str = "its node"
    told: bool = False
    """That it runs."""


@dataclass
class Run:
    """The jobs of one call of the launcher's ``run``."""

    driver: RayDriver
    flow: Flow
    terms: Terms
    cwd: str
    running: dict[int, _Running] = field(default_factory=dict)
    numbers: itertools.count = field(default_factory=itertools.count)
    losses: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """Nodes that cannot run jobs, by id, and why not."""
    ran_on: dict[str, str] = field(default_factory=dict)
    """The node that each finished job ran on."""
    last_loss: float = -_PATIENCE_S

    def run_all(self) -> None:
        """Run everything; results are in the flow.

        Raises:
            ConfigError: the cluster cannot be reached; nothing has run.
        """
        if self.flow:
            self.driver.connect()
        while self.flow:
            interrupts.check()
            self._start_ready_jobs()
            if not self.flow:
                return
            try:
                messages = self.driver.wait(_LONGEST_WAIT_S)
            except DriverLost as error:
                self._start_driver_again(str(error))
                continue
            for message in messages:
                self._handle(message)

    def _start_ready_jobs(self) -> None:
        while any([self._start_if_possible(job) for job in self.flow.heads()]):
            pass

    def _start_if_possible(self, job: Job) -> bool:
        """Start a job, or say why it never can be; whether one of these was done."""
        nodes = self.driver.nodes
        demand = demand_of(job.device, self.terms.wish, nodes)
        why = why_nowhere(job.device, demand, nodes, self.refused)
        if why is not None and (":" in job.device or not self._may_change()):
            status: Literal["failed", "skipped"] = "failed" if self.refused else "skipped"
            self.flow.finish(job, JobResult(status, reason=why))
            return True
        if not self._has_room(job, demand):
            return False
        self._start(job, demand)
        return True

    def _may_change(self) -> bool:
        lately = time.monotonic() - self.last_loss < _PATIENCE_S
        return self.terms.autoscaling or lately or bool(self.running)

    def _has_room(self, job: Job, demand: Demand) -> bool:
        n_jobs = self.terms.wish.n_jobs
        if n_jobs != "auto" and len(self.running) >= n_jobs:
            return False
        if self.terms.autoscaling:
            return len(self.running) < _MANY
        able = [node for node in self.driver.nodes if node.id not in self.refused]
        alike = [one for one in self.running.values() if one.job.device == job.device]
        return len(alike) < sum(room_on(node, demand) for node in able)

    def _start(self, job: Job, demand: Demand) -> None:
        number = next(self.numbers)
        mark = f"qsweep: waits for a node of the Ray cluster ({uuid.uuid4().hex})\n"
        order = {
            "number": number,
            "job": asdict(job) | {"log": str(job.log.absolute())},
            "mark": mark,
            "threads": demand.threads,
            "versions": versions(),
            "cwd": self.cwd,
            "environment": dict(self.terms.environment),
            "sys_path": list(self.terms.sys_path),
            "preload": list(self.terms.preload),
        }
        options = demand.options()
        if labels := all_but(demand.labels, self.refused):
            options["label_selector"] = labels
        try:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            job.log.write_text(mark)
            self.driver.submit(order, options, self._near(job))
        except (TypeError, ValueError) as error:
            self.flow.finish(job, JobResult("failed", reason=f"its payload is not JSON: {error}"))
        except OSError as error:
            self.flow.finish(
                job, JobResult("failed", reason=f"cannot be started: {explain(error)}")
            )
        else:
            self.running[number] = _Running(job, demand, mark)
            self.flow.started(job)

    def _near(self, job: Job) -> str | None:
        """The node whose store has what a job needs, if it is there and may be used."""
        if self.terms.placement == "any" or self.refused or self.terms.wish.labels:
            return None
        there = {node.id for node in self.driver.nodes}
        nodes = [self.ran_on[need] for need in job.needs if need in self.ran_on]
        return next((node for node in nodes if node in there), None)

    def _handle(self, message: Mapping[str, Any]) -> None:
        kind = next((k for k in ("news", "ended", "failed", "lost") if k in message), None)
        if kind is None or (one := self.running.get(message[kind])) is None:
            return
        one.host = message.get("host", one.host)
        if kind == "news":
            self._tell(one, message)
            return
        del self.running[message[kind]]
        if kind == "failed":
            self._end(one, JobResult("failed", reason=f"{message['reason']}, on {one.host}"))
        elif kind == "lost":
            self._lose(one, f"{message['reason']} ({one.host})")
        elif "refused" in message:
            why = f"node {one.host} is not used: {message['refused']}"
            self.refused[message["node"]] = why
            self.flow.restarted(one.job, why)
        else:
            self._record(one, message)

    def _tell(self, one: _Running, news: Mapping[str, Any]) -> None:
        if "started" in news:
            self._tell_started(one)
        else:
            step, share = news["step"], news["share"]
            self.flow.on_event(Event("progress", one.job, step=step, share=share))

    def _tell_started(self, one: _Running) -> None:
        if not one.told:
            one.told = True
            self.flow.on_event(Event("started", one.job))

    def _record(self, one: _Running, message: Mapping[str, Any]) -> None:
        """A job came to an end of its own on its node."""
        self._tell_started(one)  # its result may have overtaken that
        if message["log"] is not None:
            with contextlib.suppress(OSError):
                one.job.log.write_text(message["log"], encoding="utf-8")
        result = JobResult(**message["result"])
        if result.status == "finished":
            self.ran_on[one.job.id] = message["node"]
        self.flow.ended(one.job, result)

    def _lose(self, one: _Running, why: str) -> None:
        """A job's node or worker died, which need not have been the job's fault."""
        self.last_loss = time.monotonic()
        self.losses[one.job.id] = losses = self.losses.get(one.job.id, 0) + 1
        if losses < self.terms.max_attempts:
            self.flow.restarted(one.job, why)
        else:
            self._end(one, JobResult("failed", reason=f"{why}, in {losses} attempts"))

    def _end(self, one: _Running, result: JobResult) -> None:
        with contextlib.suppress(OSError), one.job.log.open("a", encoding="utf-8") as log:
            log.write(f"qsweep: {result.reason}\n")
        self.flow.ended(one.job, result)

    def _start_driver_again(self, why: str) -> None:
        lost, self.running = list(self.running.values()), {}
        for one in lost:
            self._lose(one, why)
        if not self.flow:
            return
        try:
            self.driver.connect()
        except Exception as error:
            self.flow.finish_all(JobResult("failed", reason=f"{why}; {explain(error)}"))
