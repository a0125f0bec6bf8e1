"""A queue with real workers, whose jobs are the light ones of ``tests/launch/launch_targets.py``."""

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from helpers.machine import wait_until
from qsweep.launch import Event, Job, JobResult
from qsweep.launch.queue import QueueLauncher

LAUNCH = Path(__file__).parents[1] / "launch"


class Field:
    """A queue, its head in a thread of this process, and workers that are processes."""

    def __init__(self, folder: Path, url: str | None = None, **options):
        self.folder = folder
        options = {"lease_s": 2.0, "queue": url, "outputs_dir": folder} | options
        options["sweep"] = self.sweep = folder.name  # no two tests share a server's queue
        self.launcher = QueueLauncher(**options)
        self.url = self.launcher.url
        self.workers: list[subprocess.Popen[str]] = []
        self.events: list[Event] = []
        self.done: list[tuple[str, JobResult]] = []
        self._threads = ThreadPoolExecutor(1)

    def job(self, id: str, function: str = "echo", payload=None, **options) -> Job:
        log = self.folder / "logs" / f"{id}.log"
        return Job(id, id.upper(), f"launch_targets:{function}", payload or {}, log, **options)

    def sleeper(self, id: str, seconds: float, **options) -> Job:
        """A job that writes its process id into a file of its name, and sleeps."""
        payload = {"seconds": seconds, "pid_file": str(self.folder / id)}
        return self.job(id, "sleep", payload, **options)

    def pid_of(self, id: str, seconds: float = 20.0) -> int:
        """The process of a sleeper, once it is there."""
        file = self.folder / id
        assert wait_until(lambda: file.exists() and file.read_text(), seconds)
        return int(file.read_text())

    def run(self, *jobs: Job, **hooks) -> "Future[dict[str, JobResult]]":
        """Run jobs, in a thread."""
        hooks = {"on_event": self.events.append, "on_done": self._note} | hooks
        return self._threads.submit(self.launcher.run, jobs, **hooks)

    def _note(self, job: Job, result: JobResult) -> None:
        self.done.append((job.id, result))

    def worker(self, *options: str, **environment: str) -> subprocess.Popen[str]:
        """Start a worker."""
        number = len(self.workers)
        path = environment.pop("PYTHONPATH", None)
        script = str(LAUNCH / "queue" / "light_worker.py")
        own = {"PYTHONPATH": os.pathsep.join(filter(None, [path, str(LAUNCH)]))}
        with open(self.folder / f"worker-{number}.txt", "w") as log:
            worker = subprocess.Popen(
                [sys.executable, script, self.sweep, "--queue", self.url, *options],
                env=os.environ | own | environment,
                stdout=log,
                stderr=log,
                text=True,
            )
        self.workers.append(worker)
        return worker

    def said(self, number: int = 0) -> str:
        """What a worker has printed."""
        return (self.folder / f"worker-{number}.txt").read_text()

    def close(self) -> None:
        self.launcher.close()
        for worker in self.workers:
            if worker.poll() is None:
                worker.terminate()
        for worker in self.workers:
            try:
                worker.wait(15)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        self._threads.shutdown()


@contextmanager
def field(folder: Path, url: str | None = None, **options):
    """A :class:`Field`, of which nothing is left behind."""
    opened = Field(folder, url, **options)
    try:
        yield opened
    finally:
        opened.close()
