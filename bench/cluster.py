"""What running a sweep's jobs elsewhere costs, and how it scales: workers and Ray beside this machine.

    python bench/cluster.py --json bench/results/cluster.json
    python bench/cluster.py --parts queue overhead --json FILE

``queue``: jobs planned, claimed and handed in one after another, as many again as before: a quadratic
step would show. ``overhead``: jobs that do nothing, one after another, once all is warm. ``scaling``:
jobs that only wait, so that any number fits on any machine; the share of linear is what they would
take, spread over their slots, by what they took, from the call to the last result; Ray is told
that this machine has as many cores as slots, and has started its workers before. ``sweep``: a
grid of 24 real trials on 1, 2 and 4 workers, beside the same grid without any.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from origin import write
from qsweep.launch import Job, JobResult, Launcher
from qsweep.launch.local import LocalLauncher
from qsweep.launch.queue import QueueLauncher
from qsweep.launch.queue.claims import Claims
from qsweep.launch.queue.database import Database
from qsweep.launch.queue.orders import Orders

GRID = ["-m", "quant=rtn,gptq", "bits=2,3,4,8", "group_size=32,64,128"]
PARTS = ("queue", "overhead", "scaling", "sweep")
SLOTS = (1, 2, 4, 8, 16, 32, 64)
# A worker process has at most so many slots.
_PER_WORKER = 16
_TRIES = 20


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--launchers", nargs="+", default=["workers", "ray"])
    parser.add_argument("--slots", type=int, nargs="+", default=SLOTS)
    parser.add_argument("--seconds", type=float, default=8.0, help="of a job that waits")
    parser.add_argument("--jobs", type=int, default=3, help="that wait, for each slot")
    parser.add_argument("--quick", action="store_true", help="few jobs, few slots")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    # Jobs find their target here, wherever they run.
    here = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    rows: list[dict[str, Any]] = []
    for part in arguments.parts:
        for row in globals()[f"_{part}"](arguments):
            rows.append(row)
            print(row, flush=True)
            write(arguments.json, "workers and Ray beside this machine", rows, ["ray", "torch"])


def _queue(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for count in (100, 1000) if arguments.quick else (1000, 10_000):
        with tempfile.TemporaryDirectory() as folder:
            database = Database(f"sqlite:///{folder}/queue.db")
            orders, claims = Orders(database, "s", "h:1:x"), Claims(database, "s", "w:1:x")
            orders.take_over(60, 3)
            jobs = [_job("first", 0), *(_job(str(n), 0, "first") for n in range(count))]
            began = time.perf_counter()
            orders.submit(jobs)
            planned = time.perf_counter()
            while claim := claims.take(["auto", "cpu"]):
                claims.hand_in(claim, JobResult("finished", {}), "log")
            drained = time.perf_counter()
            while news := orders.news():
                orders.noted(news, {})
            told = time.perf_counter()
            database.close()
        spans = {"plan": planned - began, "drain": drained - planned, "tell": told - drained}
        yield {
            "part": "queue",
            "jobs": count,
            **{f"{name}_ms_per_job": round(1e3 * span / count, 3) for name, span in spans.items()},
        }


def _overhead(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    count = 10 if arguments.quick else 50
    for name in ["local", *arguments.launchers]:
        with _launcher(name, 1) as launcher:
            _run(launcher, [_job("warm", 0)])
            spent = _run(launcher, [_job(str(number), 0) for number in range(count)])
        yield {"part": "overhead", "launcher": name, "jobs": count,
               "s_per_job": round(spent / count, 4)}  # fmt: skip


def _scaling(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    seconds = 1.0 if arguments.quick else arguments.seconds
    for name in arguments.launchers:
        for slots in arguments.slots[:2] if arguments.quick else arguments.slots:
            with _launcher(name, slots) as launcher:
                _warm(launcher, slots, seconds / 4)
                jobs = [_job(str(n), seconds) for n in range(arguments.jobs * slots)]
                spent = _run(launcher, jobs)
            yield {"part": "scaling", "launcher": name, "slots": slots, "jobs": len(jobs),
                   "seconds": round(spent, 2),
                   "of_linear": round(seconds * arguments.jobs / spent, 3)}  # fmt: skip


def _warm(launcher: Launcher, slots: int, seconds: float) -> None:
    """Wait until every slot has a process: until as many jobs as slots run at the same time."""
    for _ in range(_TRIES):
        spent = _run(launcher, [_job(f"warm {n}", seconds) for n in range(slots)])
        if spent < 1.6 * seconds:
            return


def _run(launcher: Launcher, jobs: Sequence[Job]) -> float:
    """Seconds that jobs take, which must all finish."""
    began = time.perf_counter()
    done = launcher.run(jobs)
    spent = time.perf_counter() - began
    failed = [result.reason for result in done.values() if result.status != "finished"]
    if failed:
        raise SystemExit(f"a job failed: {failed[0]}")
    return spent


def _sweep(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    grid = [*GRID[:2], "bits=4", "group_size=64,128"] if arguments.quick else GRID
    ways = {"local": ["launch=local"]}
    for count in (1, 2, 4):
        ways[f"workers {count}"] = ["launch=workers", f"launch.start={count}"]
    if "ray" in arguments.launchers:
        ways["ray"] = ["launch=ray"]
    for name, options in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "qsweep", *grid, *options, f"outputs_dir={folder}"]
            began = time.perf_counter()
            done = subprocess.run(  # noqa: S603
                [*command, "tracking=none"], capture_output=True, text=True, check=False
            )
            spent = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr[-2000:]}")
        yield {"part": "sweep", "launcher": name, "seconds": round(spent, 1)}


@contextmanager
def _launcher(name: str, slots: int) -> Iterator[Launcher]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if name == "local":
            yield stack.enter_context(LocalLauncher(n_jobs=slots))
        elif name == "ray":
            from qsweep.launch.ray import RayLauncher

            address = stack.enter_context(_ray(slots))
            yield stack.enter_context(RayLauncher(address, num_cpus=1, n_jobs=slots))
        else:
            launcher = QueueLauncher(sweep="bench", outputs_dir=Path(folder), start=0)
            launcher._told = True  # who starts workers here knows how
            stack.enter_context(launcher)
            launcher.prepare()
            for place in range(-(-slots // _PER_WORKER)):
                stack.callback(_start(launcher, min(_PER_WORKER, slots - place * _PER_WORKER)))
            yield launcher


@contextmanager
def _ray(slots: int) -> Iterator[str]:
    """The address of a Ray node that was told of ``slots`` cores; jobs that wait take none to speak of."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="qs-ray-", dir="/tmp") as folder:
        said = Path(folder) / "said"
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--block", "--head"),
            *(f"--port={port}", f"--num-cpus={slots}", f"--temp-dir={folder}"),
            *("--include-dashboard=false", "--disable-usage-stats"),
        ]
        with said.open("wb") as log:
            node = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")  # noqa: S603
        try:
            while "--block" not in said.read_text():
                if node.poll() is not None:
                    raise SystemExit(said.read_text())
                time.sleep(0.2)
            yield f"127.0.0.1:{port}"
        finally:
            node.terminate()
            node.wait(60)


def _start(launcher: QueueLauncher, slots: int) -> Callable[[], None]:
    command = launcher.worker_command(launcher.sweep, launcher.url)
    worker = subprocess.Popen(  # noqa: S603
        [*command, f"--jobs={slots}", "--device=cpu"], stderr=subprocess.DEVNULL
    )

    def end() -> None:
        worker.terminate()
        worker.wait(30)

    return end


def _job(id: str, seconds: float, *needs: str) -> Job:
    log = Path(tempfile.gettempdir()) / "qsweep-bench-cluster.log"
    return Job(id, id, "waiting:wait", {"seconds": seconds}, log, needs=needs, device="cpu")


if __name__ == "__main__":
    main()
