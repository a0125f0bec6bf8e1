"""Calls of a tracker: whatever goes wrong in one line, and answers that come page by page."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from qsweep.base.databases import driver_advice, driver_message, is_database
from qsweep.base.numbers import one_line
from qsweep.base.secrets import scrubbed
from qsweep.tracking.settings import RefusedError, TrackerError, public_uri

_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "REQUEST_LIMIT_EXCEEDED")


@contextlib.contextmanager
def tracker_errors(uri: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes a TrackerError of one line, without the password."""
    label = public_uri(uri)
    try:
        yield
    except TrackerError:
        raise
    except ImportError as error:
        # A database driver, more often than MLflow itself.
        raise TrackerError(
            f"MLflow at {label}: {one_line(error)}; {driver_advice(uri, error.name)}, "
            "or set tracking=none"
        ) from error
    except Exception as error:
        # Whatever a tracker, its database driver or the network comes up with.
        text = driver_message(error) if is_database(uri) else str(error)
        line = f"MLflow at {label}: {_gist(scrubbed(one_line(text), uri))}"
        if getattr(error, "error_code", None) in _REFUSED:
            raise RefusedError(line) from error
        raise TrackerError(line) from error


def pages(search: Callable[[str | None], Any]) -> Iterator[Any]:
    """What a paged search finds, page after page; ``search`` takes the token of a page."""
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


def _gist(text: str) -> str:
    # urllib3 wraps the one telling sentence in three layers of exceptions.
    for sign, meaning in (
        ("refused", "connection refused"),
        ("timed out", "it does not answer in time"),
        ("Name or service not known", "no such host"),
        ("name resolution", "no such host"),
        ("database is locked", "its database is locked by another process"),
        ("disk is full", "no space left on the disk"),
        ("No space left", "no space left on the disk"),
    ):
        if sign in text:
            return meaning
    return text if len(text) <= 200 else f"{text[:197]}..."
