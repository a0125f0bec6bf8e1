"""What is printed: by a call, on its way to the side that called; of an exception."""

import io
from typing import Any

# What a call may print and hand back with its result; more goes to the output at once.
_PRINTED = 32768


class PrintCapture(io.TextIOBase):
    """Collects what is printed, up to a bound; the rest goes where it would have gone."""

    def __init__(self, beyond: Any):
        self._parts: list[str] = []
        self._size = 0
        self._beyond = beyond

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, text: str) -> int:
        """Collect it, or pass it on."""
        if self._size + len(text) > _PRINTED:
            self._beyond.write(text)
        else:
            self._size += len(text)
            self._parts.append(text)
        return len(text)

    def text(self) -> str:
        """What was collected."""
        return "".join(self._parts)


def print_last_frames() -> None:
    """Where the exception that is being handled was raised, to the standard error."""
    import traceback  # which most programs do without

    traceback.print_exc(limit=-3)
