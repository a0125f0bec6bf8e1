"""What a machine can tell of processes by their names."""

import subprocess
import sys

from qsweep.launch.queue.machines import is_dead, own_name


def test_only_a_process_of_this_machine_is_known_to_be_dead():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host, pid, rest = own_name().split(":")
    namespace, _, random = rest.partition("-")
    assert not is_dead(f"{host}:{pid}:{rest}")
    assert is_dead(f"{host}:{ended.pid}:{rest}")
    assert not is_dead(f"elsewhere:{ended.pid}:{rest}")
    # Another container, whose processes are not seen from here.
    assert not is_dead(f"{host}:{ended.pid}:{namespace}1-{random}")
