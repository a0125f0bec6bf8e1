"""MLflow: a run per sweep, a child run per trial. Nothing outside this package knows MLflow."""

from qsweep.tracking.mlflow.tracker import MLflowTracker

__all__ = ["MLflowTracker"]
