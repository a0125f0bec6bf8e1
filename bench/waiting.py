"""A job that only waits, for bench/cluster.py: it imports nothing that would be counted."""

import time
from typing import Any


def wait(payload: dict[str, Any], progress: Any) -> dict[str, Any]:
    """A job's target: do nothing for a while."""
    time.sleep(payload["seconds"])
    return {}
