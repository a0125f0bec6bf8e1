"""Ctrl-C, SIGTERM, SIGHUP and SIGXCPU: one way to end a command, at whatever moment, within seconds.

The first signal raises :class:`Interrupted` in the main thread, so that whatever is under way is
left as tidily as after an error: children are killed, results and report are written, the tracker's
run is closed. A thread watches that this comes to an end. A main thread that does not hear (it is
in a call that does not return, or a library has swallowed the exception) is ended with everything
that it started; so is all of it by a second signal, and by one that has taken too long.

Everything that a sweep has finished is on disk before, so that nothing measured is lost by that.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from qsweep.launch import tree

# Terminals, Slurm's scancel, Kubernetes and docker stop; a connection that ends; a time that is up.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU)
# By then children are dead, whatever the main thread does, and it must have begun to end.
_CHILDREN_S = 4.0
# An interrupt that a library swallowed is raised once more after this.
_REMIND_S = 2.0
# For all of it: less than the half minute that Slurm and Kubernetes wait before they kill.
_END_S = 20.0
# A terminal and a wrapper (uv run) may both deliver the same Ctrl-C.
_SAME_S = 1.0


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """As shells have it: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP, 152 for SIGXCPU."""
        return 128 + self.number


class _Watch:
    """The handlers, and the thread that sees to it that they lead to an end."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.shields = 0
        self._acknowledged = False
        self._reminder = ""
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before: dict[int, Any] = {}
        self._wakeup = -1
        self._main = threading.get_ident()
        self._thread = threading.Thread(
            target=self._watch_signals, name="qsweep-interrupts", daemon=True
        )

    def open(self) -> None:
        for number in SIGNALS:
            # What is ignored stays so: that is how nohup and a shell's background jobs ask for it.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._on_signal)
        # Written by the C handler, so the thread hears even while the main thread is in a long call.
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread.start()

    def close(self) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._write)
        self._thread.join()  # it sees the end of the pipe
        os.close(self._read)

    def acknowledge(self) -> None:
        """The main thread is on its way out: nothing is raised any more."""
        self._acknowledged = self._acknowledged or self.number is not None

    def raise_pending(self) -> None:
        if self.number is not None and not self.shields and not self._acknowledged:
            raise Interrupted(self.number)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        # Once, and once more as a reminder: what cleans up must not be interrupted itself.
        if self.number is None or self._reminder == "sent":
            self.number = self.number or number
            self._reminder = self._reminder and "received"
            self.raise_pending()

    def _watch_signals(self) -> None:
        """The thread: wait for the first signal, then for what comes of it."""
        first, since = self._next_signal(None), time.monotonic()
        mine = 0  # signals of this thread's own that it has yet to hear
        while first is not None:
            again, passed = self._next_signal(0.1), time.monotonic() - since
            if again is None:
                return  # the command has ended
            if again and mine:
                mine -= 1
            elif again and passed > _SAME_S:
                kill_all_and_exit(128 + first)
            acknowledged = self._acknowledged or self.shields > 0
            if passed > _REMIND_S and not acknowledged and not self._reminder:
                self._reminder = "sent"
                mine += 1
                signal.pthread_kill(self._main, first)
            if passed > _CHILDREN_S:
                tree.kill_descendants()
            if passed > (_END_S if acknowledged else _CHILDREN_S):
                kill_all_and_exit(128 + first)

    def _next_signal(self, timeout: float | None) -> int | None:
        """The number of a signal, 0 if none comes in time; None when the watch is closed."""
        while select.select([self._read], [], [], timeout)[0]:
            heard = os.read(self._read, 1)
            if not heard:
                return None
            if heard[0] in self._before:
                return heard[0]
        return 0


_watch: _Watch | None = None


def _forget_in_fork() -> None:
    # A forked worker ends by SIGTERM as usual, and what it gets is nobody else's.
    global _watch
    if _watch is not None:
        signal.set_wakeup_fd(-1)
        for number in _watch._before:
            signal.signal(number, signal.SIG_DFL)
        _watch = None


os.register_at_fork(after_in_child=_forget_in_fork)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """While this is open, signals end the command as described above; in the main thread alone."""
    global _watch
    if _watch is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _watch = _Watch()
    _watch.open()
    try:
        yield
    finally:
        watch, _watch = _watch, None
        watch.close()


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """What must not be cut short, such as writing results: a signal is raised when it is done."""
    watch = _watch
    if watch is None:
        yield
        return
    watch.acknowledge()
    watch.shields += 1
    try:
        yield
    finally:
        watch.shields -= 1
    watch.raise_pending()


def interrupted() -> bool:
    """Whether a signal has come, raised or not."""
    return _watch is not None and _watch.number is not None


def check() -> None:
    """Raise the interrupt that a library has swallowed, if there was one."""
    if _watch is not None:
        _watch.raise_pending()


def acknowledge() -> None:
    """Say that the main thread is ending because of an interrupt: from now on none is raised."""
    if _watch is not None:
        _watch.acknowledge()


def kill_all_and_exit(code: int) -> None:
    """End this process and everything that it started, without another word."""
    tree.kill_descendants()
    os._exit(code)
