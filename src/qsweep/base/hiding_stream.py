"""A text stream that shows no password, whoever writes to it."""

import io

from qsweep.base.secrets import hidden


class HidingStream(io.TextIOWrapper):
    """Standard output and error of a process.

    What qsweep says is without secrets already. Tracebacks, warnings, libraries' own words and
    Hydra's prints of a configuration are not.
    """

    def write(self, text: str) -> int:
        """Write a text with ``***`` for every secret in it."""
        super().write(hidden(text))
        return len(text)
