"""MLflow: a run per sweep, a child run per trial. Nothing outside this package knows MLflow.

Results are on disk before anything is logged, and what is logged is noted beside them
(``tracking.json``), so that a tracker that goes away, or a sweep that is killed, loses and doubles
nothing: the next run of any sweep, or ``qsweep sync``, logs exactly what is missing.
"""

from qsweep.tracking.mlflow.journal import sweep_uid, ui_page
from qsweep.tracking.mlflow.runs import fingerprint
from qsweep.tracking.mlflow.tracker import Tracker
from qsweep.tracking.settings import TrackerError, TrackingConfig, ui_line

__all__ = [
    "Tracker",
    "TrackerError",
    "TrackingConfig",
    "fingerprint",
    "sweep_uid",
    "ui_line",
    "ui_page",
]
