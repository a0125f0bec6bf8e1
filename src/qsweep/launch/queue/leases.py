"""Keeps a worker's leases while the worker itself is busy: a thread of its own."""

import math
import threading
import time

from qsweep.launch.queue.claims import Claim, Claims
from qsweep.launch.queue.database import QueueAway, QueueRefused

# A job that was withdrawn, or taken by another, ends within about this many seconds.
_LOOK_EVERY_S = 2.0
# A worker that has nothing to do says that often that it is there.
_IDLE_S = 10.0
# Leases are renewed this often in their length, so that a lost renewal or two cost nothing.
_RENEWALS = 4


class Leases:
    """The claims that a worker holds, renewed until they are let go.

    Between two renewals it looks whether they are still its own, which is cheaper.
    """

    def __init__(self, claims: Claims):
        self._claims = claims
        self._lock = threading.Lock()
        self._held: set[Claim] = set()
        self._lost: set[Claim] = set()
        self._stop = threading.Event()
        self._renewed = -math.inf
        self._answered = time.monotonic()
        self.refused: QueueRefused | None = None
        """Why leases cannot be kept, and never will."""
        self._thread = threading.Thread(target=self._keep, name="qsweep-leases", daemon=True)

    def __enter__(self) -> "Leases":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5.0)

    @property
    def held(self) -> list[Claim]:
        """The claims that are kept."""
        with self._lock:
            return list(self._held)

    @property
    def away_s(self) -> float:
        """Seconds since the database last answered."""
        return time.monotonic() - self._answered

    def hold(self, claim: Claim) -> None:
        """Keep a claim from now on."""
        with self._lock:
            self._held.add(claim)

    def let_go(self, claim: Claim) -> None:
        """Keep a claim no longer."""
        with self._lock:
            self._held.discard(claim)
            self._lost.discard(claim)

    def lost(self) -> list[Claim]:
        """Those that others have, or nobody wants any more; each is told once."""
        with self._lock:
            found, self._lost = list(self._lost), set()
            return found

    def _keep(self) -> None:
        while not self._stop.wait(self._pause()):
            try:
                self._look()
            except QueueAway:
                self._renewed = -math.inf  # at once when it is back
            except QueueRefused as error:
                self.refused = error
                return

    def _pause(self) -> float:
        lengths = [claim.lease_s for claim in self.held]
        return min(_LOOK_EVERY_S, min(lengths, default=_LOOK_EVERY_S) / _RENEWALS)

    def _look(self) -> None:
        held = self.held
        now = time.monotonic()
        every = min((claim.lease_s / _RENEWALS for claim in held), default=_IDLE_S)
        if now - self._renewed >= min(every, _IDLE_S):
            self._claims.renew(held)
            self._renewed = now
        ours = self._claims.still_held(held)
        self._answered = time.monotonic()
        with self._lock:
            gone = (set(held) - ours) & self._held
            self._held -= gone
            self._lost |= gone
