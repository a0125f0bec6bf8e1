"""Limits that a process in the sandbox puts upon itself before it runs anything.

Resource limits bind processes, and the kernel charges some memory to none of them: files without a
name (memfd_create), System V's shared memory, shared anonymous pages that nobody has mapped any
more, file systems mounted in a namespace of one's own. A seccomp filter refuses the system calls
that lead there, and those that look into other processes. See seccomp(2), and the kernel's
Documentation/userspace-api/seccomp_filter.rst.
"""

import contextlib
import errno
import os
import resource
import struct
from typing import Any

# Numbers from the kernel's tables: arch/x86/entry/syscalls/syscall_64.tbl, and
# include/uapi/asm-generic/unistd.h for 64-bit ARM.
_SHARED_NUMBERS = {
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432,
    "fspick": 433, "mount_setattr": 442, "io_uring_setup": 425, "memfd_secret": 447,
    "pidfd_getfd": 438,
}  # fmt: skip
_REFUSED: dict[str, dict[str, int]] = {
    "x86_64": _SHARED_NUMBERS | {
        "memfd_create": 319, "shmget": 29, "shmat": 30, "msgget": 68, "semget": 64, "unshare": 272,
        "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "bpf": 321,
        "perf_event_open": 298, "userfaultfd": 323, "ptrace": 101, "process_vm_readv": 310,
        "process_vm_writev": 311, "keyctl": 250, "add_key": 248, "request_key": 249,
    },
    "aarch64": _SHARED_NUMBERS | {
        "memfd_create": 279, "shmget": 194, "shmat": 196, "msgget": 186, "semget": 190,
        "unshare": 97, "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41, "bpf": 280,
        "perf_event_open": 241, "userfaultfd": 282, "ptrace": 117, "process_vm_readv": 270,
        "process_vm_writev": 271, "keyctl": 219, "add_key": 217, "request_key": 218,
    },
}  # fmt: skip
_CLONE3 = 435
# By machine: AUDIT_ARCH_*, clone, mmap, socket.
_MACHINES = {"x86_64": (0xC000003E, 56, 9, 41), "aarch64": (0xC00000B7, 220, 222, 198)}
# AF_UNIX, AF_INET, AF_INET6 end at the network namespace. Others do not: AF_VSOCK reaches the host
# of a virtual machine from every one, AF_ALG the kernel's own ciphers.
_NAMESPACED_FAMILIES = (1, 2, 10)
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET: see clone(2).
_NEW_NAMESPACE = 0x7E020000
_MAP_SHARED = 0x01
_X32 = 0x40000000

# struct seccomp_data: number, architecture, instruction pointer, six arguments of eight bytes.
_NUMBER, _ARCHITECTURE = 0, 4
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2


def confine(order: dict[str, Any]) -> None:
    """Take the limits of ``order``, refuse what escapes them, go to the scratch directory."""
    # A program that reads its input finds none, and not this order either.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if order["filter"]:
        with contextlib.suppress(ImportError, OSError):
            refuse_system_calls()
    for name, value in order["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    os.chdir(order["scratch"])


def can_filter() -> bool:
    """Whether this kind of machine has a filter here."""
    machine = os.uname()
    return machine.sysname == "Linux" and machine.machine in _MACHINES


def refuse_system_calls() -> None:
    """Install the filter, for this process and all that it will start.

    Raises:
        ImportError: This Python has no ctypes.
        OSError: The kernel refuses, or the machine is of an unknown kind.
    """
    import ctypes

    if not can_filter():
        raise OSError(errno.ENOSYS, "no filter for this kind of machine")
    program = _program(os.uname().machine)
    code = ctypes.create_string_buffer(program)
    # struct sock_fprog: how many instructions, where they are.
    filter_ = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(filter_), 0, 0),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")


def _program(machine: str) -> bytes:
    architecture, clone, mmap, socket = _MACHINES[machine]
    lines = [
        _load(_ARCHITECTURE),
        *_unless(_EQUAL, architecture, errno.EPERM),
        _load(_NUMBER),
        *_where(_AT_LEAST, _X32, errno.EPERM),
        # Its flags lie in memory, where a filter cannot look; libc then takes clone instead.
        *_where(_EQUAL, _CLONE3, errno.ENOSYS),
    ]
    for number in sorted(set(_REFUSED[machine].values())):
        lines += _where(_EQUAL, number, errno.EPERM)
    lines += _with_argument(clone, 0, _NEW_NAMESPACE)
    lines += _with_argument(mmap, 3, _MAP_SHARED)
    lines += _with_one_of(socket, 0, _NAMESPACED_FAMILIES)
    return b"".join([*lines, _step(_RETURN, _ALLOW)])


def _with_argument(number: int, argument: int, bits: int) -> list[bytes]:
    """Refuse a system call one of whose arguments has any of these bits, of its lower 32."""
    refuse = _where(_ANY_BIT, bits, errno.EPERM)
    body = [_load(16 + 8 * argument), *refuse, _load(_NUMBER)]
    return [_step(_EQUAL, number, 0, len(body)), *body]


def _with_one_of(number: int, argument: int, values: tuple[int, ...]) -> list[bytes]:
    """Refuse a system call one of whose arguments is, in its lower 32 bits, none of these."""
    tests = [_step(_EQUAL, value, len(values) - i) for i, value in enumerate(values)]
    refuse = _step(_RETURN, _REFUSE | errno.EAFNOSUPPORT)
    body = [_load(16 + 8 * argument), *tests, refuse, _load(_NUMBER)]
    return [_step(_EQUAL, number, 0, len(body)), *body]


def _where(test: int, value: int, error: int) -> list[bytes]:
    return [_step(test, value, 0, 1), _step(_RETURN, _REFUSE | error)]


def _unless(test: int, value: int, error: int) -> list[bytes]:
    return [_step(test, value, 1, 0), _step(_RETURN, _REFUSE | error)]


def _load(offset: int) -> bytes:
    return _step(_LOAD, offset)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    # struct sock_filter
    return struct.pack("@HBBI", code, if_true, if_false, value)
