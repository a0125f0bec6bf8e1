"""MLflow: a run per sweep, a child run per trial."""
