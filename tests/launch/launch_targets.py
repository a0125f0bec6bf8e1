"""What the launcher's tests have it run. Imported by name in the jobs' processes."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

from qsweep.base.errors import IncompatibleTrial


def echo(payload, progress):
    return payload


def surroundings(payload, progress):
    torch = sys.modules.get("torch")
    return {
        "pid": os.getpid(),
        "sid": os.getsid(0),
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "torch_threads": torch and torch.get_num_threads(),
        "threads": len(os.listdir("/proc/self/task")),
        "main": sys.modules["__main__"].__dict__.get("__file__"),
        "marker": getattr(sys.modules["__main__"], "MARKER", None),
        "cuda": torch and torch.cuda.is_initialized(),
    }


def faults(payload, progress):
    """Page faults of a tensor of 64 MB."""
    import resource

    import torch

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return {"faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before}


def steps(payload, progress):
    for n in range(payload["steps"]):
        progress(f"step {n}", n / payload["steps"])
        time.sleep(payload.get("pause", 0))
    progress("last", 1.0)
    return {}


def flood(payload, progress):
    for n in range(5000):
        progress(f"step {n}", None)
    return {"done": True}


def speak(payload, progress):
    print("python out")
    print("python err", file=sys.stderr)
    os.write(1, b"descriptor out\n")
    subprocess.run(["sh", "-c", "echo shell err >&2"], check=True)
    warnings.warn("mind the gap", stacklevel=1)
    return {}


def write_much(payload, progress):
    for n in range(20_000):
        print(f"line {n}")
    print("the end")
    return {}


def fail(payload, progress):
    raise RuntimeError("the first line\nthe second line")


def skip(payload, progress):
    raise IncompatibleTrial("GGUF has no 7-bit type")


def leave(payload, progress):
    sys.exit(payload["code"])


def leave_hard(payload, progress):
    os._exit(payload["code"])


def kill_itself(payload, progress):
    os.kill(os.getpid(), payload["signal"])
    time.sleep(60)


def segfault(payload, progress):
    ctypes.string_at(0)


def not_json(payload, progress):
    return {"x": object()}


def not_a_dict(payload, progress):
    return [1]


def big(payload, progress):
    return {"text": "x" * payload["bytes"]}


def multiply(payload, progress):
    import torch

    square = torch.ones(512, 512)
    return {"sum": float((square @ square).sum()), "threads": torch.get_num_threads()}


def beyond_the_limit(payload, progress):
    if payload["how"] == "torch":
        import torch
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
    if payload["how"] == "python":
        bytearray(1 << 30)
    elif payload["how"] == "torch":
        torch.empty(1 << 30, dtype=torch.uint8)
    else:  # to the last byte, in small pieces, held by the frame that fails
        hoard = []
        while True:
            hoard.append(bytearray(4096))
    return {}


def hold_memory(payload, progress):
    block = bytearray(payload["bytes"])
    return {"sum": sum(block[:: 1 << 20])}


def sleep(payload, progress):
    if "pid_file" in payload:
        Path(payload["pid_file"]).write_text(str(os.getpid()))
    progress("sleeping", None)
    time.sleep(payload["seconds"])
    return {}


def sleep_and_tell(payload, progress):
    """Wait for the file ``go``, and tell whose worker runs it."""
    folder, mark = Path(payload["folder"]), os.environ["MARK"]
    (folder / mark).write_text(str(os.getpid()))
    while not (folder / "go").exists():
        time.sleep(0.02)
    return {"mark": mark}


def count(payload, progress):
    """Leave a line for every run."""
    with open(payload["file"], "a") as file:
        file.write(f"{payload.get('id', 'a')}\n")
    return {}


def fail_after(payload, progress):
    while not Path(payload["flag"]).exists():
        time.sleep(0.02)
    raise RuntimeError("as asked")


def hang_in_c(payload, progress):
    """Stop every signal that can be stopped, and never come back to Python."""
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                continue
    Path(payload["pid_file"]).write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(300)  # PyDLL keeps the interpreter locked


def have_children(payload, progress):
    """A shell with a child, one in a session of its own, and one that was only forked."""
    folder = Path(payload["folder"])
    pids = []
    for own_session in (False, True):
        shell = subprocess.Popen(
            ["sh", "-c", "sleep 300 & echo $!; wait"],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=own_session,
        )
        pids += [shell.pid, int(shell.stdout.readline())]
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.fork() == 0:
            (folder / "forked").write_text(str(os.getpid()))
            time.sleep(300)
        os._exit(0)
    os.waitpid(pid, 0)
    while not (folder / "forked").exists() or not (folder / "forked").read_text():
        time.sleep(0.01)
    pids.append(int((folder / "forked").read_text()))
    pids.append(os.getpid())
    partial = folder / "pids.partial"
    partial.write_text(" ".join(map(str, pids)))
    partial.rename(folder / "pids")
    time.sleep(payload["seconds"])
    return {"pids": pids}


def kill_server_once(payload, progress):
    """Kill the fork server at the first attempt, be done at the second."""
    flag = Path(payload["flag"])
    if not flag.exists() or payload.get("always"):
        flag.touch()
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return {"attempt": 2}


def import_failure(payload, progress):
    import a_module_that_is_not_there  # noqa: F401
