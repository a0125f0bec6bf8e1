"""One worker process: started, listened to, timed, and ended with all that it started."""

import contextlib
import json
import os
import selectors
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsweep.base.errors import TrialFailed
from qsweep.base.progress import Progress
from qsweep.launch import tree
from qsweep.launch.reasons import explain_exit
from qsweep.quantizers.environments.interpreter import clean_environment

WORKERS = Path(__file__).with_name("workers")
_POLL_S = 0.5


def run_worker(
    python: Path,
    worker: Path,
    request: Mapping[str, Any],
    folder: Path,
    log: Path,
    progress: Progress,
    timeout_s: float | None = None,
) -> dict[str, Any]:
    """Run a worker to its end and return its answer.

    Args:
        python: The interpreter of the worker's environment.
        worker: The script.
        request: What :class:`qsweep_worker.Job` holds.
        folder: Takes the request and the answer.
        log: Takes what the worker prints.
        progress: Told of the worker's steps.
        timeout_s: Seconds after which it is ended.

    Raises:
        TrialFailed: It died, ran out of time, or gave no answer: one line.
    """
    result = folder / "result.json"
    order = folder / "request.json"
    order.write_text(json.dumps({**request, "result": str(result)}), encoding="utf-8")
    reading, writing = os.pipe()
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - the user's or this project's own script
                [str(python), str(worker), str(order)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[writing],
                start_new_session=True,
                cwd=folder,
                env=_environment(str(request["device"]), writing),
            )
    except OSError as error:
        os.close(reading)
        raise TrialFailed(f"{python}: cannot be started ({error.strerror or error})") from error
    finally:
        os.close(writing)
    name = worker.stem.removeprefix("run_")
    try:
        ended = _listen(process, reading, progress, timeout_s)
    finally:
        # Its group, too: what it started must not outlive it.
        tree.kill_group(process.pid)
        process.wait()
        os.close(reading)
    if not ended:
        raise TrialFailed(f"{name}: ended after {timeout_s:g} s (quant.env.timeout_s)")
    return _answer(name, result, process.returncode, log)


def _answer(name: str, result: Path, status: int, log: Path) -> dict[str, Any]:
    try:
        answer = json.loads(result.read_text(encoding="utf-8"))
    except OSError as error:
        why = explain_exit(status, kernel_oom=False, log=log)
        raise TrialFailed(f"{name}: the worker {why}{_last_line(log)}") from error
    except ValueError as error:
        raise TrialFailed(f"{name}: the worker's answer is not JSON") from error
    if not isinstance(answer, dict) or not {"settings", "mismatch", "error"} & answer.keys():
        raise TrialFailed(f"{name}: the worker's answer lacks settings")
    if "error" in answer:
        raise TrialFailed(f"{name}: {answer['error']}")
    return answer


def _listen(
    process: subprocess.Popen[bytes], reading: int, progress: Progress, timeout_s: float | None
) -> bool:
    # Until the process ends (True) or its time is up (False).
    give_up = None if timeout_s is None else time.monotonic() + timeout_s
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        while process.poll() is None:
            if give_up is not None and time.monotonic() > give_up:
                return False
            if not selector.select(_POLL_S):
                continue
            chunk = os.read(reading, 65536)
            if not chunk:  # every writer has gone, so the process is about to
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
                continue
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                _report(line, progress)
    return True


def _report(line: bytes, progress: Progress) -> None:
    try:
        step, done = json.loads(line)
        progress(str(step), None if done is None else float(done))
    except (ValueError, TypeError):
        return  # not a report; the descriptor is anybody's in that process


def _environment(device: str, progress: int) -> dict[str, str]:
    variables = clean_environment() | {
        "PYTHONPATH": str(WORKERS),
        "PYTHONUNBUFFERED": "1",
        "QSWEEP_PROGRESS": str(progress),
        # Everything is on this disk; a library that asks a hub asks for the wrong thing.
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if device == "cpu":
        # These libraries take a GPU wherever they see one.
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return variables


def _last_line(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(file.seek(0, 2) - 4096, 0))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    printable = ("".join(c for c in line if c.isprintable()).strip() for line in lines)
    last = next((line for line in reversed(list(printable)) if line), "")
    return f"; it last wrote: {last[:160]}" if last else ""
