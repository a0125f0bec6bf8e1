"""What a call leaves of the process that it was made in: everything as it was."""

import contextlib
import os
from collections.abc import Iterator

from qsweep.base.disk import disk_errors


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Take back what libraries were told by environment variables; errors of disks become ours.

    Raises:
        QsweepError: see :func:`~qsweep.base.disk.disk_errors`.
    """
    before = dict(os.environ)
    try:
        with disk_errors():
            yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
