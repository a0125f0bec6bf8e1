"""Generated programs that try to do harm, in every kind of sandbox that this machine offers."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qsweep.tasks.humaneval import problems
from qsweep.tasks.sandbox import (
    Limits,
    Sandbox,
    cgroup,
    find_sandbox,
    run_program,
    run_programs,
)
from qsweep.tasks.sandbox.run import _probe
from qsweep.tasks.task import TaskUnavailable

QUICK = Limits(cpu_s=1, wall_s=3)


@pytest.fixture(params=["bubblewrap", "unshare"])
def sandbox(request):
    if reason := _probe(request.param):
        pytest.skip(f"{request.param}: {reason}")
    return Sandbox(request.param)


def processes_that_say(mark):
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if mark.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


def test_a_program_that_does_its_work_passes(sandbox):
    outcome = run_program(sandbox, "import math, collections\nassert math.comb(4, 2) == 6", QUICK)
    assert outcome.passed, outcome


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2", "AssertionError"),
        ("1 / 0", "ZeroDivisionError"),
        ("def broken(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import os; os._exit(0)", "ended early"),
        ("import os\nif os.fork():\n    os.wait(); raise ValueError('parent')", "ValueError"),
    ],
)
def test_only_a_program_that_reaches_its_end_passes(sandbox, program, reason):
    outcome = run_program(sandbox, program, QUICK)
    assert not outcome.passed
    assert reason in outcome.reason


def test_a_fork_bomb_meets_its_limit_and_leaves_nothing(sandbox):
    program = (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    )
    started = time.monotonic()
    outcome = run_program(sandbox, program, QUICK)
    assert not outcome.passed
    assert time.monotonic() - started < 20
    counted = run_program(
        sandbox,
        "import os, time\nchildren = 0\n"
        "while children < 500:\n    try:\n        pid = os.fork()\n    except OSError:\n        break\n"
        "    if pid == 0:\n        time.sleep(60)\n    children += 1\n"
        "assert children < 12, children",
        QUICK,
    )
    assert counted.passed, counted


def test_an_endless_loop_is_ended_by_its_processor_time(sandbox):
    outcome = run_program(sandbox, "while True: pass", Limits(cpu_s=1, wall_s=20))
    assert not outcome.passed
    assert "processor time" in outcome.reason


def test_a_sleeper_is_ended_by_the_clock(sandbox):
    started = time.monotonic()
    outcome = run_program(sandbox, "import time; time.sleep(60)", Limits(wall_s=1.5))
    assert not outcome.passed and "timed out" in outcome.reason
    assert time.monotonic() - started < 10


def test_catching_every_exception_does_not_keep_a_program_alive(sandbox):
    program = (
        "import signal, sys\n"
        "for number in range(1, 32):\n"
        "    try: signal.signal(number, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "while True:\n"
        "    try:\n        while True: sys.exit(0)\n"
        "    except BaseException: pass\n"
    )
    outcome = run_program(sandbox, program, Limits(cpu_s=1, wall_s=3))
    assert not outcome.passed


def test_a_memory_bomb_meets_its_limit(sandbox):
    outcome = run_program(sandbox, "x = bytearray(4 << 30)", QUICK)
    assert not outcome.passed and "MemoryError" in outcome.reason
    # Nor through files in memory.
    fill = "for i in range(500): open(f'/tmp/{i}', 'wb').write(bytes(1 << 22))"
    outcome = run_program(sandbox, fill, QUICK)
    assert not outcome.passed and "No space left" in outcome.reason


def test_memory_is_limited_for_all_processes_together(sandbox):
    program = (
        "import os, time\n"
        "for child in range(8):\n"
        "    if os.fork() == 0:\n"
        "        {daemon}\n"
        "        held = bytearray(b'x' * (50 << 20)); time.sleep(60)\n"
        "time.sleep(60)\n"
    )
    limits = Limits(cpu_s=10, wall_s=30, memory_mb=256, processes=20)
    for daemon in ("pass", "os.setsid(); os.fork() and os._exit(0)"):
        started = time.monotonic()
        outcome = run_program(sandbox, program.format(daemon=daemon), limits)
        assert not outcome.passed and outcome.reason == "held more than 256 MB of memory"
        assert time.monotonic() - started < 10


def test_memory_that_forks_share_counts_once(sandbox):
    program = (
        "import os, time\n"
        "held = bytearray(b'x' * (100 << 20))\n"
        "for child in range(4):\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(0.5); os._exit(0)\n"
        "for child in range(4): os.wait()\n"
    )
    outcome = run_program(sandbox, program, Limits(cpu_s=10, wall_s=30, memory_mb=256))
    assert outcome.passed, outcome


def test_no_network_not_even_to_this_machine(sandbox):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=1)"
        outcome = run_program(sandbox, program, QUICK)
    assert not outcome.passed
    assert "Error" in outcome.reason


def test_neither_home_nor_environment_can_be_read(sandbox, monkeypatch, tmp_path):
    monkeypatch.setenv("QSWEEP_SECRET", "do not tell")
    secret = tmp_path / "secret.txt"
    secret.write_text("do not tell")
    home = Path.home()
    assert home.is_dir()
    program = (
        "import os, pathlib\n"
        "assert 'QSWEEP_SECRET' not in os.environ, 'environment'\n"
        f"assert not pathlib.Path({str(secret)!r}).exists(), 'file'\n"
        f"visible = set()\n"
        f"for folder in ({str(home)!r}, '/home', '/root', '/etc', '/var'):\n"
        "    try: visible |= {f'{folder}/{name}' for name in os.listdir(folder)}\n"
        "    except OSError: pass\n"
        # At most the way to Python itself is there.
        "import sys\n"
        "assert all(sys.base_prefix.startswith(place) for place in visible), visible\n"
    )
    outcome = run_program(sandbox, program, QUICK)
    assert outcome.passed, outcome


def test_nothing_can_be_written_outside_the_scratch_directory(sandbox, tmp_path):
    target = tmp_path / "written"
    places = ["/usr/written", "/written", "/dev/written", "/dev/shm/written", str(target)]  # noqa: S108
    program = (
        "open('/tmp/own', 'w').write('fine')\n"
        f"for place in {places!r} + [__import__('sys').base_prefix + '/written']:\n"
        "    try: open(place, 'w')\n"
        "    except OSError: continue\n"
        "    raise SystemError(place)\n"
    )
    outcome = run_program(sandbox, program, QUICK)
    assert outcome.passed, outcome
    assert not target.exists()
    assert not Path("/tmp/own").exists()  # noqa: S108


def test_printing_without_end_is_stopped(sandbox):
    outcome = run_program(sandbox, "while True: print('x' * 999)", Limits(cpu_s=20, wall_s=20))
    assert not outcome.passed and "printed more" in outcome.reason
    assert len(outcome.output) <= 65536


def test_a_background_child_does_not_survive(sandbox):
    seconds = f"{3000 + time.time_ns() % 1000}"
    program = (
        "import os\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        f"        os.execv('/bin/sleep', ['sleep', '{seconds}'])\n"
        "    os._exit(0)\n"
        "import time; time.sleep(0.2)\n"
    )
    assert run_program(sandbox, program, QUICK).passed
    time.sleep(0.1)
    assert not processes_that_say(f"sleep\0{seconds}")


def test_programs_die_with_the_process_that_runs_them(sandbox, tmp_path):
    seconds = f"{4000 + time.time_ns() % 1000}"
    code = (
        "from qsweep.tasks.sandbox import *\n"
        f"run_program(Sandbox({sandbox.name!r}), \"import os; os.execv('/bin/sleep', "
        f"['sleep', '{seconds}'])\", Limits(wall_s=60))"
    )
    runner = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 20
    while not processes_that_say(f"sleep\0{seconds}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_that_say(f"sleep\0{seconds}")
    runner.kill()
    runner.wait()
    deadline = time.monotonic() + 5
    while processes_that_say(f"sleep\0{seconds}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_that_say(f"sleep\0{seconds}")


def test_the_program_can_read_neither_its_order_nor_the_token(sandbox):
    program = (
        "import os, sys\n"
        "assert sys.stdin.read() == ''\n"
        "assert os.read(0, 9) == b''\n"
        "assert 'token' not in globals() and 'order' not in globals()\n"
    )
    assert run_program(sandbox, program, QUICK).passed


@pytest.mark.slow
def test_humaneval_is_scored_as_its_own_package_does():
    try:
        sandbox, found = find_sandbox(), problems()
    except TaskUnavailable as error:
        pytest.skip(str(error))
    assert len(found) == 164
    right = [(f"{p.prompt}{p.answer}\n", f"{p.test}\n") for p in found]
    outcomes = run_programs(sandbox, right)
    assert [o.reason for o in outcomes if not o.passed] == []
    wrong = [(f"{p.prompt}    return None\n", f"{p.test}\n") for p in found]
    assert sum(o.passed for o in run_programs(sandbox, wrong)) == 0


def test_without_any_sandbox_the_reason_says_what_to_install(monkeypatch):
    monkeypatch.setattr("qsweep.tasks.sandbox.run._probe", lambda name: "not permitted")
    with pytest.raises(TaskUnavailable, match=r"install bubblewrap, or set eval\.unsafe_code=true"):
        find_sandbox()
    unsafe = find_sandbox(unsafe=True)
    assert unsafe.name == "none"
    assert run_program(unsafe, "assert True", QUICK).passed
    assert not run_program(unsafe, "while True: pass", Limits(cpu_s=1, wall_s=3)).passed


def test_every_limit_reaches_the_program(sandbox):
    program = (
        "import resource\n"
        "limits = {n: resource.getrlimit(getattr(resource, n)) for n in "
        "('RLIMIT_CPU', 'RLIMIT_AS', 'RLIMIT_NPROC', 'RLIMIT_CORE')}\n"
        "import json; print(json.dumps(limits))\n"
    )
    outcome = run_program(sandbox, program, QUICK)
    assert outcome.passed
    limits = json.loads(outcome.output.strip().splitlines()[-1])
    assert limits["RLIMIT_CPU"] == [1, 1]
    assert limits["RLIMIT_AS"] == [512 << 20] * 2
    assert limits["RLIMIT_CORE"] == [0, 0]
    assert limits["RLIMIT_NPROC"][1] > 0


@pytest.mark.skipif(not cgroup.available(), reason="no control group can be made here")
def test_a_group_that_is_still_held_is_removed_later():
    parent = cgroup._parent()
    with cgroup.limited(64 << 20) as group:
        held = subprocess.Popen(group.command(["sleep", "60"]))
        while str(held.pid) not in (group.folder / "cgroup.procs").read_text().split():
            time.sleep(0.01)
    try:
        assert group.folder.exists()
    finally:
        held.kill()
        held.wait()
    with cgroup.limited(64 << 20):
        pass
    assert not group.folder.exists()
    # What a process that was killed left in a group beside is swept, too.
    beside = parent / "qsweep-test-beside"
    left = beside / f"qsweep-sandbox-{held.pid}-abc"
    try:
        left.mkdir(parents=True)
        cgroup._remove_stale(parent / "qsweep-test-other")
        assert not left.exists()
    finally:
        beside.rmdir()
