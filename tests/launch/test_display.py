"""The display on a real pseudo-terminal of 80 columns, and without one."""

import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path

import pytest

from qsweep.launch.display import Board, PlainDisplay, clock_of, open_display
from qsweep.launch.job import Event, Job, JobResult

SOURCE = Path(__file__).resolve().parents[2] / "src"

SHOW = """
import sys, time
from pathlib import Path
from qsweep.launch import Event, Job, JobResult, open_display

def job(name):
    return Job(name, name, "m:f", {}, Path("x.log"))

long = "awq 4-bit g128 calibrated on a text with quite a long name"
with open_display(4, "pocket-bits", slots=2) as display:
    print(type(display).__name__)
    display.record("gguf 7-bit", JobResult("skipped", reason="GGUF has no 7-bit type"))
    for name in ("gptq 4-bit g128", long):
        display.event(Event("started", job(name)))
    display.event(Event("progress", job("gptq 4-bit g128"), "quantize layer 3", 0.42))
    display.event(Event("progress", job(long), "search the scales of layer 2", None))
    time.sleep(0.5)
    result = JobResult("finished", {}, None, 12.34)
    display.event(Event("done", job("gptq 4-bit g128"), result=result))
    display.event(Event("started", job("[red]rtn[/red] 4-bit")))
    display.event(Event("restarted", job("[red]rtn[/red] 4-bit"), "its node died (n1)"))
    time.sleep(0.5)
    result = JobResult("failed", None, "timed out after 60 s")
    display.event(Event("done", job(long), result=result))
    time.sleep(0.3)
print("after")
"""


def show_on_terminal(columns, term="xterm-256color"):
    """What a terminal gets to see, with its escape sequences."""
    main, side = pty.openpty()
    ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "TERM": term}
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-c", SHOW], stdin=side, stdout=side, stderr=side, env=environment
    )
    os.close(side)
    seen = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # the other side was closed
            break
        if not part:
            break
        seen += part
    os.close(main)
    assert process.wait() == 0
    return seen.decode()


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def left_on_screen(text):
    """The lines that a terminal shows at the end: follows the few sequences that rich uses."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x1b]", text):
        if token == "\r":
            column = 0
        elif token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token.endswith("A") and token.startswith("\x1b"):
            row -= int(token[2:-1] or 1)
        elif token.endswith("K") and token.startswith("\x1b"):
            lines[row] = ""
        elif not token.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines if line.strip()]


def test_live_board_at_80_columns():
    raw = show_on_terminal(80)
    text = plain(raw)
    assert "LiveDisplay" in text
    for line in text.replace("\r", "\n").split("\n"):
        assert len(line) <= 80, line
    board = text[text.index("pocket-bits") :]
    assert re.search(r"pocket-bits +1/4 +1 skipped +0:0\d", board)
    assert re.search(r"gptq 4-bit g128 +quantize layer 3 .* 42% +0:0\d", board)
    assert re.search(r"awq 4-bit g128 calibrated on… +search the scales …", board)
    assert re.search(r"2/4 +1 finished .*, about 0:(0|1)\d left", board)
    assert "[red]rtn[/red] 4-bit" in board


def test_live_board_leaves_only_the_results():
    assert left_on_screen(show_on_terminal(80)) == [
        "LiveDisplay",
        "[1/4] gguf 7-bit  skipped: GGUF has no 7-bit type",
        "[2/4] gptq 4-bit g128  finished  12.3 s",
        "[red]rtn[/red] 4-bit  starts again: its node died (n1)",
        "[3/4] awq 4-bit g128 calibrated on a text with quite a long name  failed: timed",
        "out after 60 s",
        "after",
    ]


def test_live_board_survives_a_narrow_terminal():
    for line in plain(show_on_terminal(50)).replace("\r", "\n").split("\n"):
        assert len(line) <= 50, line


def test_dumb_terminals_get_plain_lines():
    text = show_on_terminal(80, term="dumb")
    assert "\x1b" not in text
    assert "PlainDisplay" in text and "[2/4] gptq 4-bit g128  finished  12.3 s" in text


def test_without_a_terminal_one_line_per_trial():
    done = subprocess.run(
        [sys.executable, "-c", SHOW],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        check=True,
    )
    assert done.stdout.splitlines() == ["PlainDisplay", "after"]
    assert done.stderr.splitlines() == [
        "[1/4] gguf 7-bit  skipped: GGUF has no 7-bit type",
        "[2/4] gptq 4-bit g128  finished  12.3 s",
        "[red]rtn[/red] 4-bit  starts again: its node died (n1)",
        "[3/4] awq 4-bit g128 calibrated on a text with quite a long name  failed: "
        "timed out after 60 s",
    ]


def test_rich_is_not_imported_where_it_is_not_needed():
    code = (
        "import io, sys; from qsweep.launch import open_display\n"
        "open_display(1, stream=io.StringIO())\n"
        "print(any(name.split('.')[0] in ('rich', 'torch') for name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        check=True,
    )
    assert done.stdout == "False\n"


def event(kind, name, **options):
    return Event(kind, Job(name, name, "m:f", {}, Path("x.log")), **options)


def test_estimate_of_the_rest():
    board = Board(total=7, slots=2)
    assert board.seconds_left(0.0) is None
    board.count("cached", JobResult("finished"))  # ran no process: says nothing about the others
    board.count("impossible", JobResult("skipped", reason="no"))
    assert board.seconds_left(0.0) is None
    board.count("a", JobResult("finished", seconds=10.0))
    board.count("b", JobResult("finished", seconds=20.0))
    board.count("dead", JobResult("failed", seconds=1000.0))
    assert board.seconds_left(0.0) == pytest.approx(2 * 15.0 / 2)
    board.take(event("started", "c"), now=100.0)
    # One waits (15 s), one has run for 5 of its 15 s, and two run at once.
    assert board.seconds_left(105.0) == pytest.approx((15.0 + 10.0) / 2)
    # One that takes longer than the others may be done at any moment.
    assert board.seconds_left(200.0) == pytest.approx(15.0 / 2)
    board.take(event("started", "d"), now=200.0)
    board.take(event("done", "c", result=JobResult("finished", seconds=1.0)), now=200.0)
    # The last one alone: the other slot has nothing left to do.
    board.count("c", JobResult("finished", seconds=15.0))
    assert board.seconds_left(205.0) == pytest.approx(10.0)


def test_running_jobs_are_followed():
    board = Board(total=1)
    board.take(event("progress", "unknown", step="x"), now=0.0)
    assert board.running == {}
    board.take(event("started", "a"), now=1.0)
    board.take(event("progress", "a", step="evaluate", share=0.5), now=2.0)
    assert (board.running["a"].step, board.running["a"].share) == ("evaluate", 0.5)
    board.take(event("restarted", "a"), now=3.0)
    assert (board.running["a"].since, board.running["a"].share) == (3.0, None)


def test_plain_lines_come_at_once():
    stream = io.StringIO()
    display = open_display(2, stream=stream)
    assert isinstance(display, PlainDisplay)
    with display:
        display.event(event("started", "a"))
        assert stream.getvalue() == ""
        display.event(event("done", "a", result=JobResult("finished", seconds=0.5)))
        assert stream.getvalue() == "[1/2] a  finished  0.5 s\n"


def test_clock():
    assert [clock_of(s) for s in (-1, 7.4, 725, 3723)] == ["0:00", "0:07", "12:05", "1:02:03"]
