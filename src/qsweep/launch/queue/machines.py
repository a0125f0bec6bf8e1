"""Names of processes that meet in a queue, and what a machine can tell of its own."""

import os
import secrets
import socket

import psutil


def own_name() -> str:
    """A name for this process that no other has, nor had: ``HOST:PID:NAMESPACE-RANDOM``."""
    return f"{host_name()}:{os.getpid()}:{_namespace()}-{secrets.token_hex(4)}"


def host_name() -> str:
    """This machine's name."""
    return socket.gethostname().replace(":", "-") or "localhost"


def is_dead(name: str) -> bool:
    """Whether a process of such a name was this machine's, and is no more."""
    host, pid, rest = name.split(":")
    here = host == host_name() and rest.partition("-")[0] == _namespace()
    return here and not psutil.pid_exists(int(pid))


def _namespace() -> str:
    """The number of the namespace that process ids are of: containers may share a host's name."""
    try:
        return "".join(filter(str.isdigit, os.readlink("/proc/self/ns/pid")))
    except OSError:
        return ""
