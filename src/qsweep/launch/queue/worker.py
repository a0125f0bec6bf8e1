"""A worker: takes jobs of a sweep from its queue, one per slot, and hands in what became of them."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from qsweep.base.databases import DatabaseError
from qsweep.base.errors import QsweepError
from qsweep.base.scratch import ScratchFolder
from qsweep.launch import interrupts
from qsweep.launch.flow import Flow
from qsweep.launch.job import Job, JobResult
from qsweep.launch.local.client import PRELOAD, ForkServer
from qsweep.launch.local.schedule import Runner
from qsweep.launch.local.slots import Slots, place_job, why_unplaceable
from qsweep.launch.logs import tail_of
from qsweep.launch.queue.claims import Claim, Claims
from qsweep.launch.queue.database import QueueAway
from qsweep.launch.queue.launcher import QUEUE_VARIABLE
from qsweep.launch.queue.leases import Leases

# What is asked of a queue that has nothing to take, ever more rarely.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 1.0
# A scheduler ends all processes of a job at once, and this one may hear of it last.
_TERMINATED = f"killed by signal {signal.SIGTERM.value} "
_TOGETHER_S = 1.0
# On the way out after a signal: jobs are dead by then, and the half minute of Slurm is running.
_GIVE_BACK_S = 5.0


@dataclass
class Pause:
    """When to ask again: later each time that there was nothing."""

    longest_s: float = _LONGEST_PAUSE_S
    next_s: float = _FIRST_PAUSE_S
    until: float = field(default_factory=time.monotonic)

    def over(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self.until

    def begin(self) -> None:
        """There was nothing."""
        self.until = time.monotonic() + self.next_s
        self.next_s = min(2 * self.next_s, self.longest_s)

    def reset(self) -> None:
        """There was something."""
        self.until, self.next_s = time.monotonic(), _FIRST_PAUSE_S


@dataclass
class _Taken:
    """A claim, and the job as it runs here: under an id and with a log of this worker's own."""

    claim: Claim
    job: Job
    result: JobResult | None = None
    """Set once it has ended."""
    began: float = field(default_factory=time.monotonic)
    ended: float = math.inf

    @property
    def was_terminated(self) -> bool:
        """Whether it was ended from outside a moment ago: perhaps with all else on this machine."""
        reason = (self.result and self.result.reason) or ""
        return reason.startswith(_TERMINATED) and time.monotonic() - self.ended < _TOGETHER_S


class Worker:
    """Drains a queue; ends when it is finished, or has had nothing to take for ``idle_s``.

    At SIGXCPU its time is up: it gives back what it has, as at any signal, and what had most of its
    time has lost an attempt by that.

    Args:
        claims: The queue, as this worker sees it.
        slots: How many jobs at once, and on which devices.
        own_logs: Whether the head's paths mean nothing here: logs go into a folder of the worker's
            own, and with the result into the queue.
        idle_s: None: wait for as long as more jobs may come.
        most: After how many jobs it ends; None: none is too many.
        patience_s: How long the database may be away before it is given up.
        say: Told what a person may want to know.
        preload: What is imported once for all jobs.
    """

    def __init__(
        self,
        claims: Claims,
        slots: Slots,
        *,
        own_logs: bool = False,
        idle_s: float | None = None,
        most: int | None = None,
        patience_s: float = 600.0,
        say: Callable[[str], None] = print,
        preload: Sequence[str] = PRELOAD,
    ):
        self._claims, self._slots = claims, slots
        self._own_logs, self._idle_s, self._patience_s = own_logs, idle_s, patience_s
        self._say, self._most = say, most
        self._server = ForkServer(preload, withheld=(QUEUE_VARIABLE,))
        self._flow = Flow([], on_done=self._ended)
        self._runner = Runner(slots, self._server, self._flow)
        self._leases = Leases(claims)
        self._taken: dict[str, _Taken] = {}
        self._folder: ScratchFolder | None = None
        self._asking, self._handing_in = Pause(), Pause(longest_s=10.0)
        self._began = self._busy = time.monotonic()
        self._away = self._waited = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.cleanup()

    def run(self) -> str:
        """Work; returns why it ended, in one line.

        Raises:
            QueueAway: the database was away for too long.
            QueueRefused: it does not take what it is given, whenever that is.
            QsweepError: no process can be started here.
            KeyboardInterrupt: after every job was killed and given back.
        """
        self._server.start()
        try:
            with self._leases:
                why = self._work()
            with contextlib.suppress(DatabaseError):
                self._claims.leave()
            return why
        except BaseException as error:
            interrupts.acknowledge()
            self._server.close()
            self._give_back(time_is_up=getattr(error, "number", None) == signal.SIGXCPU)
            raise

    def _work(self) -> str:
        while True:
            interrupts.check()
            self._kill_lost()
            self._hand_in()
            if self._most == 0 and not self._taken:
                return "has taken as many jobs as it was to take"
            if self._has_room() and self._asking.over() and (why := self._take()):
                return why
            if self._leases.refused is not None:
                raise self._leases.refused
            if self._leases.away_s > self._patience_s:
                raise QueueAway(
                    f"the queue has not answered for {self._leases.away_s:.0f} s; start the worker "
                    "again when it does"
                )
            if self._runner.stuck:
                raise QsweepError(
                    "no process can be started here any more; jobs are given back to the queue"
                )
            self._wait()

    def _wait(self) -> None:
        """Until a job reports something, or there is something to ask for."""
        left = max(self._asking.until - time.monotonic(), 0.01) if self._has_room() else 1.0
        if any(one.result for one in self._taken.values()):
            left = min(left, max(self._handing_in.until - time.monotonic(), 0.01))
        if self._flow:
            self._runner.step(min(left, 1.0))
        else:
            time.sleep(min(left, 1.0))

    def _has_room(self) -> bool:
        return self._most != 0 and len(self._flow_jobs()) < self._slots.count

    def _flow_jobs(self) -> list[_Taken]:
        return [one for one in self._taken.values() if one.result is None]

    def _devices(self) -> list[str]:
        """What jobs may ask for that could begin here now."""
        taken = list(self._runner.running.values())
        every = ["auto", "cpu", "cuda", "all", *(f"cuda:{n}" for n in range(len(self._slots.gpus)))]
        return [
            device
            for device in every
            if why_unplaceable(self._slots, device) is None
            and place_job(self._slots, device, taken) is not None
        ]

    def _take(self) -> str | None:
        """Take one job more, if there is one; else say whether it is time to end, and why."""
        try:
            claim = self._claims.take(self._devices())
            over = self._claims.look_after() if claim is None else False
            if over is None and not self._waited:
                self._say_what_is_waited_for()
        except QueueAway as error:
            if not self._away:
                self._say(f"{error}; trying again for {self._patience_s:.0f} s")
            self._away = True
            self._asking.begin()
            return None
        self._away = False
        if claim is not None:
            self._start(claim)
            return None
        self._asking.begin()
        if self._taken:
            return None
        if over:
            return f"sweep {self._claims.sweep} is finished"
        if self._idle_s is not None and time.monotonic() - self._busy >= self._idle_s:
            return f"nothing to do for {self._idle_s:g} s"
        return None

    def _say_what_is_waited_for(self) -> None:
        others = self._claims.open_sweeps()
        there = (
            f"; there {'is' if len(others) == 1 else 'are'} {', '.join(others)}" if others else ""
        )
        self._say(f"waiting for sweep {self._claims.sweep}, which is not in the queue yet{there}")
        self._waited = True

    def _start(self, claim: Claim) -> None:
        self._asking.reset()
        self._most = self._most and self._most - 1
        self._leases.hold(claim)
        job = claim.job
        # Not its own id: it may be taken anew while what is left of it here is still being killed.
        here = replace(job, id=f"{job.id}:{claim.number}", log=self._log_of(claim))
        self._taken[here.id] = _Taken(claim, here)
        self._say(f"started {job.name}")
        self._flow.add(here)
        self._runner.step(0.0)

    def _log_of(self, claim: Claim) -> Path:
        log = claim.job.log
        if not self._own_logs and log.parent.parent.is_dir():
            return log
        if self._folder is None:
            self._folder = ScratchFolder()
        return Path(self._folder.name) / f"{claim.number}-{log.name}"

    def _ended(self, job: Job, result: JobResult) -> None:
        self._taken[job.id].result = result
        self._taken[job.id].ended = time.monotonic()
        self._handing_in.reset()
        self._busy = time.monotonic()

    def _kill_lost(self) -> None:
        for claim in self._leases.lost():
            for id, one in list(self._taken.items()):
                if one.claim is claim:
                    self._say(f"withdrawn, or taken by another worker: {one.job.name}")
                    self._runner.kill(id)

    def _hand_in(self) -> None:
        if self._runner.stuck:
            return  # no fault of the jobs
        ended = [
            one for one in self._taken.values() if one.result is not None and not one.was_terminated
        ]
        if not ended or not self._handing_in.over():
            return
        for one in ended:
            assert one.result is not None
            try:
                written = self._claims.hand_in(one.claim, one.result, tail_of(one.job.log))
            except QueueAway:
                self._handing_in.begin()
                return
            self._leases.let_go(one.claim)
            del self._taken[one.job.id]
            self._flow.results.pop(one.job.id, None)
            told = written or one.result
            line = f"{told.status} {one.job.name}{f': {told.reason}' if told.reason else ''}"
            self._say(line if written else f"too late, it is no longer this worker's: {line}")
        self._handing_in.reset()
        self._asking.reset()

    def _give_back(self, time_is_up: bool) -> None:
        """Let others have what this one will not end; what has ended is handed in."""
        give_up = time.monotonic() + _GIVE_BACK_S
        self._handing_in.reset()
        with contextlib.suppress(DatabaseError):
            stuck = self._runner.stuck
            killed = [
                one
                for one in self._taken.values()
                if one.result is None or stuck or one.was_terminated
            ]
            self._hand_in()
            if time.monotonic() < give_up:
                life_s = time.monotonic() - self._began
                late = [
                    one for one in killed if time_is_up and one.began - self._began < life_s / 2
                ]
                self._claims.run_out_of_time([one.claim for one in late])
                self._claims.give_back([one.claim for one in killed if one not in late])
                if killed:
                    self._say(f"given back to the queue: {len(killed)}")
            self._claims.leave()
