"""Programs that hide memory, or claim a pass that they have not earned."""

import os
import platform
import subprocess

import pytest

from qsweep.tasks.sandbox import Limits, Sandbox, cgroup, run_program
from qsweep.tasks.sandbox.inside.confine import can_filter
from qsweep.tasks.sandbox.run import _probe

LIMITS = Limits(cpu_s=10, wall_s=20, memory_mb=256)


@pytest.fixture(params=["bubblewrap", "unshare"])
def sandbox(request):
    if reason := _probe(request.param):
        pytest.skip(f"{request.param}: {reason}")
    return Sandbox(request.param)


# Each keeps 8 x 100 MB alive, by memory that no process is charged with, and returns how much.
HIDDEN = {
    "files without a name": """
import os
def attack():
    held = 0
    for _ in range(27):
        file = os.memfd_create('x')
        for _ in range(30):
            held += os.write(file, bytes(1 << 20))
    return held
""",
    "detached shared memory of System V": """
import ctypes
def attack():
    libc, held = ctypes.CDLL(None), 0
    libc.shmat.restype = ctypes.c_void_p
    for _ in range(8):
        segment = libc.shmget(0, 100 << 20, 0o1600)
        place = libc.shmat(segment, None, 0)
        ctypes.memset(place, 1, 100 << 20)
        libc.shmdt(ctypes.c_void_p(place))
        held += 100 << 20
    return held
""",
    "shared pages that sleepers map and never touch": """
import mmap, os, time
def attack():
    held = 0
    for _ in range(5):
        pages = mmap.mmap(-1, 100 << 20)
        pages.write(b'x' * (100 << 20))
        held += 100 << 20
        if os.fork() == 0:
            time.sleep(60)
        pages.close()
    time.sleep(1)
    return held
""",
    "a file system in a namespace of its own": """
import ctypes, os
def attack():
    libc = ctypes.CDLL(None)
    uid = os.getuid()
    assert libc.unshare(0x10020000) == 0, 'unshare'
    open('/proc/self/uid_map', 'w').write(f'0 {uid} 1')
    assert libc.mount(b'none', b'/tmp', b'tmpfs', 0, b'size=2g') == 0, 'mount'
    held = 0
    for i in range(8):
        held += open(f'/tmp/{i}', 'wb').write(bytes(30 << 20))
    return held
""",
    "many processes that each hold a little": """
import os, time
def attack():
    held = 0
    for _ in range(6):
        if os.fork() == 0:
            data = b'x' * (60 << 20)
            time.sleep(60)
        held += 60 << 20
    time.sleep(2)
    return held
""",
}


@pytest.mark.parametrize("way", HIDDEN)
def test_memory_cannot_be_hidden(sandbox, way):
    if not can_filter() and not cgroup.available():
        pytest.skip("neither control groups nor filters here")
    outcome = run_program(sandbox, HIDDEN[way], LIMITS, test="assert attack() > 256 << 20")
    assert not outcome.passed, outcome


@pytest.mark.parametrize("way", ["files without a name", "detached shared memory of System V"])
def test_memory_cannot_be_hidden_by_either_means_alone(sandbox, way, monkeypatch):
    if cgroup.available():
        monkeypatch.setattr("qsweep.tasks.sandbox.run._common", _unfiltered)
        outcome = run_program(sandbox, HIDDEN[way], LIMITS, test="assert attack() > 256 << 20")
        assert outcome.reason == "held more than 256 MB of memory", outcome
    monkeypatch.undo()
    if can_filter():
        monkeypatch.setattr(cgroup, "_parent", lambda: None)
        outcome = run_program(sandbox, HIDDEN[way], LIMITS, test="assert attack() > 256 << 20")
        assert not outcome.passed and "held more" not in outcome.reason, outcome


def _unfiltered(*args):
    from qsweep.tasks.sandbox.process import resource_limits

    return {
        "scratch": "/tmp",  # noqa: S108
        "limits": resource_limits(LIMITS, confined=True),
        "filter": False,
    }


@pytest.mark.parametrize("grouped", [True, False])
def test_empty_files_have_a_bound(sandbox, grouped, monkeypatch):
    if not grouped:
        monkeypatch.setattr(cgroup, "_parent", lambda: None)
    elif not cgroup.available():
        pytest.skip("no control group can be made here")
    program = (
        "def attack():\n"
        "    for i in range(2_000_000): open(f'/tmp/{i}', 'w').close()\n"
        "    return True\n"
    )
    outcome = run_program(sandbox, program, LIMITS, test="assert attack()")
    words = ("No space left", "held more than 256 MB of memory", "processor time")
    assert not outcome.passed and any(word in outcome.reason for word in words), outcome


# Each wants `check` of a wrong answer to pass.
WRONG = "def answer(): return 41\n"
CHEATS = {
    "walking the frames to what says passed": """
import sys, os
def answer():
    frame = sys._getframe()
    while frame is not None:
        for value in list(frame.f_locals.values()):
            if isinstance(value, dict):
                for word in list(value.values()):
                    if isinstance(word, str) and len(word) == 32:
                        for descriptor in range(3, 64):
                            try: os.write(descriptor, word.encode())
                            except OSError: pass
        frame = frame.f_back
    return 41
""",
    "searching the garbage collector": """
import gc, os
def answer():
    for found in gc.get_objects():
        if isinstance(found, dict):
            for word in list(found.values()):
                if isinstance(word, str) and len(word) == 32 and not word.strip('0123456789abcdef'):
                    for descriptor in range(3, 64):
                        try: os.write(descriptor, word.encode())
                        except OSError: pass
    return 41
""",
    "replacing the candidate by a trace function": """
import sys
def trace(frame, event, argument):
    if 'candidate' in frame.f_locals:
        frame.f_locals['candidate'] = lambda: 42
    for name in ('check', 'answer'):
        if name in frame.f_globals:
            frame.f_globals[name] = lambda *args: 42
    return trace
sys.settrace(trace)
def answer(): return 41
""",
    "replacing os.write": """
import os
real = os.write
def write(descriptor, content):
    return real(descriptor, b'0' * 32 if content.startswith(b'!') else content)
os.write = write
def answer(): return 41
""",
    "replacing AssertionError and the built-in functions": """
import builtins
builtins.AssertionError = type('Never', (BaseException,), {})
builtins.exec = builtins.compile = builtins.__build_class__ = lambda *a, **k: None
def answer(): return 41
""",
    "leaving at once with success": "import os\ndef answer(): os._exit(0)\n",
    "a thread that leaves with success": """
import os, threading, time
threading.Thread(target=lambda: (time.sleep(0.3), os._exit(0)), daemon=True).start()
def answer():
    time.sleep(1)
    return 41
""",
    "speaking the protocol by itself": """
import json, os, socket
def say(message):
    text = json.dumps(message).encode()
    for descriptor in range(3, 64):
        try: os.write(descriptor, len(text).to_bytes(8, 'big') + text)
        except OSError: pass
def answer():
    for message in ({'answer': {'raised': None}}, {'answer': []}, {'answer': {'value': {}}}):
        say(message)
    os._exit(0)
""",
    "having the test's process run its code": """
import json, os, socket
def answer():
    order = ['call', {'is': 'reference', 'of': ['builtin', 'exec']},
             ['import os; os._exit(0)'], {}]
    text = json.dumps({'ask': order}).encode()
    for descriptor in range(3, 64):
        try: os.write(descriptor, len(text).to_bytes(8, 'big') + text)
        except OSError: pass
    return 41
""",
    "changing what the test compares with": """
class Sneaky(list):
    def __eq__(self, other): raise SystemExit(0)
def answer(): return Sneaky()
""",
}


@pytest.mark.parametrize("test", ["assert answer() == 42", "def check(candidate):\n    assert "
                                  "candidate() == 42\ncheck(answer)\n"])  # fmt: skip
@pytest.mark.parametrize("way", CHEATS)
def test_a_wrong_answer_cannot_be_passed_off(sandbox, way, test):
    if sandbox.name == "unshare" and "check" in test:
        pytest.skip("once is enough")
    assert not run_program(sandbox, WRONG, LIMITS, test=test).passed
    outcome = run_program(sandbox, CHEATS[way], LIMITS, test=test)
    assert not outcome.passed, outcome
    assert run_program(sandbox, WRONG.replace("41", "42"), LIMITS, test=test).passed


# Finds what says passed in the process that runs it.
LEAVE = """
import os, sys
frame = sys._getframe()
while frame is not None:
    order = frame.f_locals.get('order')
    if isinstance(order, dict) and 'token' in order:
        os.write(order['verdict'], order['token'].encode())
        os._exit(0)
    frame = frame.f_back
"""
ROUND_TRIPS = {
    "exec by its name": "decode = exec",
    "exec as a result": "def decode(text): return exec",
    "eval in a container": "decode = [eval][0]\ndef pick(): return {'f': eval}['f']",
    "a class whose instances are made of a text": "from timeit import Timer as decode",
    "the loads of pickle": "import pickle\ndecode = pickle.loads",
    "a function among defaults": "import functools\ndecode = functools.partial(exec)",
}


@pytest.mark.parametrize("way", ROUND_TRIPS)
def test_what_the_program_calls_a_function_never_runs_in_the_tests_process(sandbox, way):
    # A test of a round trip hands the program's text to what the program calls a function.
    program = f"def encode(text): return {LEAVE!r}\n{ROUND_TRIPS[way]}\n"
    test = "found = decode(encode('abc'))\nif callable(found): found = found(encode('abc'))\n"
    outcome = run_program(sandbox, program, LIMITS, test=test + "assert found == 'abc'\n")
    assert not outcome.passed, outcome


def test_no_socket_leads_past_the_walls(sandbox):
    if not can_filter():
        pytest.skip("no filter for this kind of machine")
    # AF_VSOCK, which no network namespace bounds; AF_NETLINK, AF_PACKET, AF_ALG, AF_BLUETOOTH.
    program = (
        "import errno, socket\n"
        "def refused(family):\n"
        "    try: socket.socket(family, socket.SOCK_STREAM)\n"
        "    except OSError as error: return error.errno == errno.EAFNOSUPPORT\n"
        "def works(family): return socket.socket(family).close() is None\n"
        "def talks():\n"
        "    one, other = socket.socketpair()\n"
        "    one.send(b'x')\n"
        "    return other.recv(1) == b'x'\n"
    )
    test = (
        "assert all(refused(family) for family in (40, 16, 17, 38, 31))\n"
        "assert all(works(family) for family in (1, 2, 10)) and talks()\n"
        "import asyncio\nasync def nothing(): return 1\nassert asyncio.run(nothing()) == 1\n"
    )
    outcome = run_program(sandbox, program, LIMITS, test=test)
    assert outcome.passed, outcome


def test_a_program_that_dies_fails_though_the_test_catches_everything(sandbox):
    program = "import os\ndef f(x):\n    os._exit(0)\n"
    test = "try:\n    f(1)\n    raise SystemError\nexcept BaseException:\n    pass\n"
    outcome = run_program(sandbox, program, LIMITS, test=test)
    assert not outcome.passed and "ended early" in outcome.reason


def test_the_tests_process_does_not_take_orders(sandbox):
    # A function that the test hands over may be called; what hangs on it may not be reached.
    program = (
        "def f(callback):\n"
        "    try: callback.__globals__\n"
        "    except TypeError as error: return [callback(20), str(error)]\n"
    )
    test = (
        "found = f(lambda x: x + 1)\n"
        "assert found == [21, 'an object of the test is used for more than calling it'], found\n"
    )
    outcome = run_program(sandbox, program, LIMITS, test=test)
    assert outcome.passed, outcome


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_mount_below_what_is_read_only_is_read_only_too(sandbox, tmp_path):
    # One with a space and an octal escape in its name.
    for name in ("qsweep-test-mount", "qsweep test mount"):
        place = f"/usr/local/share/{name}"
        os.makedirs(place, exist_ok=True)
        try:
            if subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "mode=1777,noexec", "t", place]
            ).returncode:
                pytest.skip("mounting is not permitted here")
            outcome = run_program(sandbox, f"open({place + '/written'!r}, 'w').write('x')", LIMITS)
            assert not outcome.passed
            assert "Read-only" in outcome.reason or "No such file" in outcome.reason, outcome
        finally:
            subprocess.run(["umount", place], stderr=subprocess.DEVNULL)
            os.rmdir(place)


@pytest.mark.skipif(platform.system() != "Linux", reason="control groups are Linux's")
def test_control_groups_are_removed(sandbox):
    if not cgroup.available():
        pytest.skip("no control group can be made here")
    run_program(sandbox, "pass", LIMITS)
    left = [p for p in cgroup._parent().glob(f"qsweep-sandbox-{os.getpid()}-*")]
    assert left == []
