"""A sweep: its typed configuration, its plan, its artifacts, its trials, one session."""
