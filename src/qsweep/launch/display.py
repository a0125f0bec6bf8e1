"""What the person sees while jobs run: a live board on a terminal, one line per job elsewhere."""

import sys
import time
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TextIO

from qsweep.launch.job import Event, JobResult

_STYLES = {"finished": "green", "failed": "bold red", "skipped": "yellow"}


class Display(Protocol):
    """Shows a sweep's progress between ``__enter__`` and ``__exit__``."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(self, *_: object) -> None:
        """Leave the screen to others."""

    def event(self, event: Event) -> None:
        """Show what :func:`~qsweep.launch.local.schedule.run_jobs` reports; fits its ``on_event``."""

    def record(self, name: str, result: JobResult, *, counts: bool = True) -> None:
        """Show a job that is done, also one that never needed a process; count it if it is a trial."""


def open_display(
    total: int, title: str = "", slots: int = 1, stream: TextIO | None = None
) -> Display:
    """The display that suits ``stream`` (stderr): live on a terminal, plain lines otherwise.

    ``total`` is the number of trials to come, ``slots`` how many run at once.
    """
    stream = sys.stderr if stream is None else stream
    board = Board(total=total, title=title, slots=slots)
    if stream.isatty():
        from rich.console import Console

        console = Console(file=stream, highlight=False)
        if console.is_terminal and not console.is_dumb_terminal:
            return LiveDisplay(board, console)
    return PlainDisplay(board, stream)


@dataclass
class Running:
    """A job under way. ``since`` is in seconds of the monotonic clock."""

    name: str
    since: float
    step: str = "starting"
    share: float | None = None
    counts: bool = True


@dataclass
class Board:
    """What is known of a sweep's progress."""

    total: int
    title: str = ""
    slots: int = 1
    since: float = field(default_factory=time.monotonic)
    counts: dict[str, int] = field(
        default_factory=lambda: {"finished": 0, "failed": 0, "skipped": 0}
    )
    running: dict[str, Running] = field(default_factory=dict)
    durations: list[float] = field(default_factory=list)

    @property
    def done(self) -> int:
        """How many trials are done, however they ended."""
        return sum(self.counts.values())

    def take(self, event: Event, now: float) -> None:
        """Follow a job that starts, reports, or ends."""
        if event.kind in ("started", "restarted"):
            self.running[event.job.id] = Running(event.job.name, now, counts=event.job.counts)
        elif event.kind == "progress" and event.job.id in self.running:
            running = self.running[event.job.id]
            running.step, running.share = event.step, event.share
        elif event.kind == "done":
            self.running.pop(event.job.id, None)

    def count(self, name: str, result: JobResult) -> str:
        """Count a trial that is done; returns the line that says so."""
        self.counts[result.status] += 1
        if result.status == "finished" and result.seconds > 0:
            self.durations.append(result.seconds)
        return f"[{self.done}/{self.total}] {line_of(name, result)}"

    def seconds_left(self, now: float) -> float | None:
        """An estimate from the trials that ran to their end; None before the first did."""
        if not self.durations:
            return None
        mean = sum(self.durations) / len(self.durations)
        running = [one for one in self.running.values() if one.counts]
        waiting = max(self.total - self.done - len(running), 0)
        work = mean * waiting
        for one in running:
            work += max(mean - (now - one.since), 0.0)
        return work / max(min(self.slots, waiting + len(running)), 1)


class PlainDisplay:
    """One line per trial that is done, or that has to begin anew, and nothing else."""

    def __init__(self, board: Board, stream: TextIO) -> None:
        self.board = board
        self.stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def event(self, event: Event) -> None:
        """Show a job that is done, or that has to begin anew."""
        self.board.take(event, time.monotonic())
        if event.kind == "restarted":
            print(line_of_restart(event), file=self.stream, flush=True)
        if event.kind == "done" and event.result is not None:
            self.record(event.job.name, event.result, counts=event.job.counts)

    def record(self, name: str, result: JobResult, *, counts: bool = True) -> None:
        """Show what is done, and count it if it is a trial."""
        line = self.board.count(name, result) if counts else line_of(name, result)
        print(line, file=self.stream, flush=True)


class LiveDisplay:
    """A board at the bottom of the terminal; trials that are done scroll away above it."""

    def __init__(self, board: Board, console: Any) -> None:
        from rich.live import Live
        from rich.spinner import Spinner

        self.board = board
        self.console = console
        self._spinner = Spinner("dots")
        self._live = Live(
            console=console,
            get_renderable=self._render,
            refresh_per_second=5,
            transient=True,
            # Standard output may be a file, whose text must not end up on the terminal.
            redirect_stdout=sys.stdout.isatty(),
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def event(self, event: Event) -> None:
        """Show how a job goes on."""
        self.board.take(event, time.monotonic())
        if event.kind == "restarted":
            self.console.print(line_of_restart(event), markup=False)
        if event.kind == "done" and event.result is not None:
            self.record(event.job.name, event.result, counts=event.job.counts)

    def record(self, name: str, result: JobResult, *, counts: bool = True) -> None:
        """Show what is done, and count it if it is a trial."""
        from rich.text import Text

        text = Text(self.board.count(name, result) if counts else line_of(name, result))
        text.highlight_words([f"  {result.status}"], _STYLES[result.status])
        self.console.print(text)

    def _render(self) -> Any:
        from rich.console import Group

        now = time.monotonic()
        rows = list(self.board.running.values())
        # A board taller than the terminal could not be redrawn in place.
        room = max(self.console.height - 4, 1)
        parts = [self._head(now), *([self._jobs(rows[:room], now)] if rows else [])]
        return Group(*parts)

    def _head(self, now: float) -> Any:
        from rich.table import Table
        from rich.text import Text

        board = self.board
        left = board.seconds_left(now)
        title = f"{board.title}  " if board.title else ""
        numbers = Text(f"{board.done}/{board.total}", "bold")
        for status, count in board.counts.items():
            if count:
                numbers.append(f"  {count} {status}", _STYLES[status])
        clock = clock_of(now - board.since)
        if left is not None:
            clock += f", about {clock_of(left)} left"
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        head.add_column(no_wrap=True)
        head.add_column(no_wrap=True, justify="right")
        head.add_row(Text(title, "bold cyan"), numbers, Text(clock, "dim"))
        return head

    def _jobs(self, rows: list[Running], now: float) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        wide = self.console.width >= 70
        table = Table.grid(expand=True, padding=(0, 1))
        table.add_column(width=1)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=3)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=2)
        if wide:
            table.add_column(width=14)
        table.add_column(width=5, justify="right", no_wrap=True)
        table.add_column(width=7, justify="right", no_wrap=True)
        for row in rows:
            share = row.share
            bar = ProgressBar(100, (share or 0) * 100, width=14, pulse=share is None)
            percent = "" if share is None else f"{share:.0%}"
            clock = clock_of(now - row.since)
            # As Text, since a string may be taken for markup.
            texts = Text(row.name), Text(row.step)
            table.add_row(self._spinner, *texts, *([bar] if wide else []), percent, clock)
        return table


def line_of(name: str, result: JobResult) -> str:
    """What became of a job, in one line."""
    line = f"{name}  {result.status}"
    if result.seconds >= 0.05:
        line += f"  {result.seconds:.1f} s"
    return f"{line}: {result.reason}" if result.reason else line


def line_of_restart(event: Event) -> str:
    """What happened to a job that begins anew, in one line."""
    return f"{event.job.name}  starts again: {event.step}"


def clock_of(seconds: float) -> str:
    """``0:07``, ``12:05`` or ``1:02:03``."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
