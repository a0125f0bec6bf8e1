"""The Ray driver, a process of its own: hands jobs to a cluster and tells what becomes of them.

Run as a script with the descriptor of a socket whose other end is the launching process. That is
kept free of Ray's threads, signal handlers, messages and fatal errors, and whatever happens to it,
this process sees the end of the socket and takes back from the cluster what still runs there.

It imports nothing of qsweep at module level: :func:`work` and :class:`Board` are sent to the
cluster's nodes as they stand, so that a node can say that qsweep is not there.
"""

import asyncio
import contextlib
import json
import logging
import os
import platform
import shutil
import signal
import socket
import sys
import threading
import time
from typing import Any

# Ray's own processes need a moment to notice; the launching one is killed after four seconds.
_CANCEL_S = 2.0
_LOOK_AT_NODES_EVERY_S = 3.0
_NO_ANSWER_S = 5.0
_STARTS = 3
# Logs and results go through the store and in messages; objects in Ray's are few and small.
_OBJECT_STORE_BYTES = 80 << 20


def work(order: dict[str, Any], board: Any) -> dict[str, Any]:
    """The Ray task: what runs on a node for one job."""
    import platform

    import ray

    context = ray.get_runtime_context()
    where = {"node": context.get_node_id(), "host": platform.node()}
    try:
        from qsweep.launch.ray import node
    except ImportError as error:
        return {**where, "refused": f"there is no qsweep ({error})"}
    gpus = context.get_accelerator_ids().get("GPU", [])

    def tell(news: dict[str, Any]) -> None:
        board.put.remote(order["number"], {**where, **news})

    return {**where, **node.run(order, gpus, tell)}


class Board:
    """An actor that keeps the last that each job has reported until the driver comes for it."""

    def __init__(self) -> None:
        self.news: list[tuple[int, dict[str, Any]]] = []
        self.changed = asyncio.Event()

    async def put(self, number: int, news: dict[str, Any]) -> None:
        """Take a report; of one job's steps only the last is kept."""
        if "step" in news:
            self.news = [one for one in self.news if one[0] != number or "step" not in one[1]]
        self.news.append((number, news))
        self.changed.set()

    async def take(self) -> list[tuple[int, dict[str, Any]]]:
        """What has been reported since the last time; waits for up to a second until there is any."""
        try:
            await asyncio.wait_for(self.changed.wait(), 1.0)
        except TimeoutError:
            return []
        self.changed.clear()
        taken, self.news = self.news, []
        return taken


class Link:
    """Lines of JSON to and from the launching process."""

    def __init__(self, end: socket.socket) -> None:
        self._lines = end.makefile("r", encoding="utf-8")
        self._end = end
        self._lock = threading.Lock()

    def read(self) -> dict[str, Any] | None:
        """The next message; None when the launching process has closed its end, or is gone."""
        try:
            line = self._lines.readline()
        except OSError:
            return None
        # The last line of one that was killed may be cut off.
        return json.loads(line) if line.endswith("\n") else None

    def write(self, **message: Any) -> None:
        """Send a message; from any thread."""
        with self._lock, contextlib.suppress(OSError):  # nobody is there any more
            self._end.sendall(json.dumps(message).encode() + b"\n")


class Driver:
    """Runs tasks on the cluster that this process is connected to."""

    def __init__(self, link: Link) -> None:
        import ray

        self._ray = ray
        self._link = link
        self._running: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._nodes: list[dict[str, Any]] = []
        self._work = ray.remote(work)
        # Ray restarts it elsewhere when its node dies.
        board: Any = ray.remote(Board)
        self._board = board.options(num_cpus=0, max_restarts=-1).remote()
        for loop in (self._follow_board, self._follow_nodes):
            threading.Thread(target=loop, daemon=True).start()

    def start(self, order: dict[str, Any], options: dict[str, Any], near: str | None) -> None:
        """Hand a job to the cluster."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        number = order["number"]
        if near is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
                near, soft=True, _spill_on_unavailable=True
            )
        try:
            task = self._work.options(name=order["job"]["name"], max_retries=0, **options)
            reference = task.remote(order, self._board)
        except Exception as error:  # an option that Ray refuses
            self._link.write(failed=number, reason=_line(error))
            return
        with self._lock:
            self._running[number] = reference
        reference.future().add_done_callback(lambda future: self._end(number, future))

    def _end(self, number: int, future: Any) -> None:
        with self._lock:
            self._running.pop(number, None)
        error = future.exception()
        if error is None:
            self._link.write(ended=number, **future.result())
        else:
            self._link.write(**_fate(number, error))

    def _follow_board(self) -> None:
        while not self._closed:
            try:
                for number, news in self._ray.get(self._board.take.remote()):
                    self._link.write(news=number, **news)
            except Exception:  # it is being restarted, or all is over; a report may be lost
                time.sleep(1.0)

    def _follow_nodes(self) -> None:
        while not self._closed:
            time.sleep(_LOOK_AT_NODES_EVERY_S)
            # Where the head does not answer, whatever ran will be told lost.
            with contextlib.suppress(Exception):
                nodes = living_nodes(self._ray)
                if nodes != self._nodes:
                    self._nodes = nodes
                    self._link.write(nodes=nodes)

    def close(self) -> None:
        """Take back all that runs, and leave."""
        self._closed = True
        give_up = time.monotonic() + _CANCEL_S
        for force in (False, True):
            with self._lock:
                left = list(self._running.values())
            for reference in left:
                # First by an exception, which lets the node end the job's processes in order.
                with contextlib.suppress(Exception):  # it has ended
                    self._ray.cancel(reference, force=force, recursive=False)
            while self._running and time.monotonic() < give_up:
                time.sleep(0.02)
        self._ray.shutdown()


def living_nodes(ray: Any) -> list[dict[str, Any]]:
    """What is known of the nodes that are there."""
    names = ("NodeID", "NodeManagerHostname", "Resources", "Labels")
    return [{name: node.get(name) for name in names} for node in ray.nodes() if node["Alive"]]


def connect(settings: dict[str, Any]) -> None:
    """Start a cluster or join one. Raises whatever Ray does, ConnectionError where nobody answers."""
    import ray

    # Killed by Ray, a job's fork server could not end what the job has started; left alone it does.
    environment = {"env_vars": {"RAY_kill_child_processes_on_worker_exit": "0"}}
    quiet: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "runtime_env": environment,
    }
    address = settings["address"]
    if address is None:
        start_own(settings, quiet)
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        # Ray itself would try for minutes, and may end the process then.
        socket.create_connection((host.strip("[]"), int(port)), _NO_ANSWER_S).close()
    ray.init(address=address, **quiet)


def start_own(settings: dict[str, Any], quiet: dict[str, Any]) -> None:
    """Start a cluster of this machine alone. Raises whatever Ray does."""
    import ray

    # Ray gives its parts fixed times to start in; on a busy machine the next time is the quicker.
    for left in reversed(range(_STARTS)):
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                num_cpus=settings["num_cpus"],
                num_gpus=settings["num_gpus"],
                _temp_dir=settings["folder"],
                **quiet,
            )
            return
        except Exception:
            ray.shutdown()
            if not left:
                raise


def _fate(number: int, error: Any) -> dict[str, Any]:
    """What an exception of Ray's means for a job."""
    from ray import exceptions

    if isinstance(error, exceptions.OutOfMemoryError):
        return {"failed": number, "reason": "out of memory (ended by Ray's memory monitor)"}
    if isinstance(error, exceptions.TaskCancelledError):
        return {"failed": number, "reason": "cancelled in the Ray cluster"}
    if isinstance(error, exceptions.RayTaskError):
        return {"failed": number, "reason": _line(getattr(error, "cause", None) or error)}
    if isinstance(error, exceptions.NodeDiedError):
        return {"lost": number, "reason": "its node died"}
    if isinstance(error, exceptions.WorkerCrashedError):
        return {"lost": number, "reason": "its Ray worker died"}
    return {"lost": number, "reason": _line(error)}


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def main(descriptor: int) -> None:
    """Serve until the launching process closes its end of the socket or dies."""
    link = Link(socket.socket(fileno=descriptor))
    settings = link.read()
    if settings is None:
        return
    sys.path[:] = settings["sys_path"]
    from qsweep.launch import tree

    # While it connects nobody listens at the socket: let the kernel watch the parent.
    tree.die_with_parent(settings["main_thread"])
    try:
        connect(settings)
        import ray

        driver = Driver(link)
        link.write(nodes=living_nodes(ray), here=platform.node())
    except Exception as error:
        link.write(cannot=_line(error))
        os._exit(1)
    tree.die_with_parent(False)
    # Slurm sends these to every process of a job: it ends with the launching one, in order.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        while (message := link.read()) is not None:
            driver.start(**message)
    finally:
        driver.close()
        shutil.rmtree(settings["folder"], ignore_errors=True)
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
