"""Names of processes that meet in a queue, and what a machine can tell of its own."""

import os
import secrets
import socket

import psutil


def own_name() -> str:
    """A name for this process that no other has, nor had: ``HOST:PID:RANDOM``."""
    return f"{host_name()}:{os.getpid()}:{secrets.token_hex(4)}"


def host_name() -> str:
    """This machine's name."""
    return socket.gethostname().replace(":", "-") or "localhost"


def is_dead(name: str) -> bool:
    """Whether a process of such a name was this machine's, and is no more."""
    host, pid = name.split(":")[:2]
    return host == host_name() and not psutil.pid_exists(int(pid))
