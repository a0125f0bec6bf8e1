"""Jobs that wait for one another: which may start, and what becomes of those that never can.

What every launcher has in common, whoever runs the jobs: it takes what is at the :meth:`heads`,
says that it has :meth:`started` it, and tells how it :meth:`ended`. No step looks at all jobs, so
that ten thousand of them cost ten thousand times one.
"""

import graphlib
import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from qsweep.launch.job import Event, Job, JobResult
from qsweep.launch.protocol import ignore, no_retry


class Flow:
    """The jobs of one call of a launcher's ``run``; its arguments are those of that.

    Raises:
        ValueError: ids that occur twice, needs that are not among the jobs, or that form a circle.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        on_event: Callable[[Event], None] = ignore,
        on_done: Callable[[Job, JobResult], None] = ignore,
        retry: Callable[[Job, JobResult], Sequence[Job]] = no_retry,
    ):
        _check(jobs)
        self.on_event = on_event
        self.results: dict[str, JobResult] = {}
        """What became of each job that is done, by id."""
        self._on_done, self._retry = on_done, retry
        self._waiting: dict[str, Job] = {}
        self._names: dict[str, str] = {}
        self._running: set[str] = set()
        self._needed_by: dict[str, set[str]] = {}
        # What may start, by the device that it asks for: one that finds no place must not keep
        # back what wants another. What is no longer true in a heap is passed over.
        self._ready: dict[str, list[tuple[int, str]]] = {}
        self._places: dict[str, int] = {}
        self._last = itertools.count()
        self._first = 0
        for job in jobs:
            self._place(job, next(self._last))
        for job in jobs:
            self._look(job.id)

    def add(self, job: Job) -> None:
        """One more job, after all others; it needs nothing, or what is among them.

        Raises:
            ValueError: there is one of its id, or it needs what is not there.
        """
        known = self._waiting.keys() | self._running | self.results.keys()
        if job.id in known:
            raise ValueError("two jobs have the same id")
        if unknown := set(job.needs) - known:
            raise ValueError(f"job {job.id} needs unknown jobs: {', '.join(sorted(unknown))}")
        self._place(job, next(self._last))
        self._look(job.id)

    @property
    def waiting(self) -> list[Job]:
        """Those that have not started, in no order."""
        return list(self._waiting.values())

    def __bool__(self) -> bool:
        """Whether anything is left to wait for."""
        return bool(self._waiting or self._running)

    def heads(self) -> list[Job]:
        """For each device that is asked for, the first job that may start; in their order."""
        found = []
        for device, heap in list(self._ready.items()):
            while heap and self._places.get(heap[0][1]) != heap[0][0]:
                heapq.heappop(heap)
            if heap:
                found.append(heap[0])
            else:
                del self._ready[device]
        return [self._waiting[id] for _, id in sorted(found)]

    def started(self, job: Job) -> None:
        """A job was handed to whoever runs it."""
        self._take(job)
        self._running.add(job.id)

    def restarted(self, job: Job, why: str) -> None:
        """A job was lost through no fault of its own, and waits again, before all others."""
        self._running.discard(job.id)
        self._put_first([job])
        self.on_event(Event("restarted", job, step=why))

    def ended(self, job: Job, result: JobResult) -> None:
        """A job that ran has a result; one that did not finish may be tried again in parts."""
        self._running.discard(job.id)
        if result.status != "finished" and (instead := self._retry(job, result)):
            result = replace(result, reason=f"{result.reason}; tried again in parts")
            self._put_first(instead)
        self.finish(job, result)

    def passed_over(self, job: Job, result: JobResult) -> None:
        """A job did not finish, and what waits for it goes on without it."""
        self._running.discard(job.id)
        needing = self._which_need(job)
        for one in needing:
            others = tuple(need for need in one.needs if need != job.id)
            self._waiting[one.id] = replace(one, needs=others)
        self.finish(job, result)
        for one in needing:
            self._look(one.id)

    def finish(self, job: Job, result: JobResult) -> None:
        """A job has a result, whether it ran or not; and so have those that it was needed for."""
        # No recursion: a chain may be as long as a sweep.
        done, known = [(job, result)], {job.id}
        for one, its in done:  # grows as it goes
            self._take(one)
            self._running.discard(one.id)
            self.results[one.id] = its
            self._on_done(one, its)
            self.on_event(Event("done", one, result=its))
            for waiting in self._which_need(one):
                if its.status == "finished":
                    self._look(waiting.id)
                elif waiting.id not in known:
                    known.add(waiting.id)
                    done.append((waiting, for_want_of(self._names[one.id], its)))

    def finish_all(self, result: JobResult) -> None:
        """Nothing can be started any more: all that waits has this result."""
        for job in self.waiting:
            if job.id in self._waiting:  # not with another that it needs
                self.finish(job, result)

    def _put_first(self, jobs: Sequence[Job]) -> None:
        self._first -= len(jobs)
        for place, job in enumerate(jobs, self._first):
            self._place(job, place)
        for job in jobs:
            self._look(job.id)

    def _place(self, job: Job, place: int) -> None:
        for need in job.needs:
            if need not in self.results:
                self._needed_by.setdefault(need, set()).add(job.id)
        self._waiting[job.id], self._places[job.id] = job, place
        self._names[job.id] = job.name

    def _which_need(self, job: Job) -> list[Job]:
        """Those that wait for a job, in their order."""
        ids = [id for id in self._needed_by.pop(job.id, ()) if id in self._waiting]
        found = [self._waiting[id] for id in sorted(ids, key=self._places.__getitem__)]
        # One that stands in for another may no longer need what that did.
        return [one for one in found if job.id in one.needs]

    def _look(self, id: str) -> None:
        """Offer a job if all that it needs has finished; end it if one of that did not."""
        job = self._waiting[id]
        for need in job.needs:
            result = self.results.get(need)
            if result is None:
                return
            if result.status != "finished":
                self.finish(job, for_want_of(self._names[need], result))
                return
        heapq.heappush(self._ready.setdefault(job.device, []), (self._places[id], id))

    def _take(self, job: Job) -> None:
        self._waiting.pop(job.id, None)
        self._places.pop(job.id, None)


def for_want_of(name: str, result: JobResult) -> JobResult:
    """What becomes of a job that needs one of this name, which did not finish."""
    became = "failed" if result.status == "failed" else "was skipped"
    return JobResult(result.status, reason=f"needs {name}, which {became}: {result.reason}")


def _check(jobs: Iterable[Job]) -> None:
    jobs = list(jobs)
    known = {job.id: set(job.needs) for job in jobs}
    if len(known) < len(jobs):
        raise ValueError("two jobs have the same id")
    for job in jobs:
        unknown = {need for need in job.needs if need not in known}
        if unknown:
            raise ValueError(f"job {job.id} needs unknown jobs: {', '.join(sorted(unknown))}")
    try:
        graphlib.TopologicalSorter(known).prepare()
    except graphlib.CycleError as error:
        circle = sorted(set(error.args[1]))
        raise ValueError(f"jobs need each other in a circle: {', '.join(circle)}") from error
