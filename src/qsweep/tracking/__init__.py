"""Keeps results beside the sweeps' folders; ``tracking=mlflow`` or ``none`` chooses where.

Results are on disk before anything is logged, and what is logged is noted beside them
(``tracking.json``), so that a tracker that goes away, or a sweep that is killed, loses and doubles
nothing: the next run of any sweep, or ``qsweep sync``, logs exactly what is missing.
"""

from qsweep.tracking.identity import fingerprint, sweep_uid
from qsweep.tracking.protocol import SweepFolder, Tracker
from qsweep.tracking.settings import TrackerError, TrackingConfig, ui_line

__all__ = [
    "SweepFolder",
    "Tracker",
    "TrackerError",
    "TrackingConfig",
    "fingerprint",
    "sweep_uid",
    "ui_line",
]
