"""What a person is told to type works as it stands, and shows no password."""

from pathlib import Path

import pytest

from qsweep.launch.queue.hints import command

HERE = Path("outputs").absolute()
OPEN, SECRET = "postgresql://me@db/q", "postgresql://me:hush@db/q"


@pytest.mark.parametrize(
    ("verb", "queue", "outputs", "says"),
    [
        ("worker", None, Path("/o"), "qsweep worker night --outputs=/o"),
        ("worker", OPEN, Path("/o"), f"qsweep worker night --queue={OPEN}"),
        ("worker", SECRET, Path("/o"), "QSWEEP_QUEUE=URL qsweep worker night"),
        ("status", OPEN, HERE, f"qsweep status night --queue={OPEN}"),
        ("status", OPEN, Path("/o"), f"qsweep status night --outputs=/o --queue={OPEN}"),
        ("status", SECRET, Path("/o"), "QSWEEP_QUEUE=URL qsweep status night --outputs=/o"),
    ],
)
def test_a_command_finds_the_queue_and_shows_no_password(verb, queue, outputs, says):
    assert command(verb, "night", queue, outputs) == says


def test_a_name_with_spaces_is_quoted():
    assert command("worker", "my sweep", OPEN, HERE).startswith("qsweep worker 'my sweep'")
