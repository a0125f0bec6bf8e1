"""What sensitivities depend on beside model, text and artifact; without torch."""

VERSION = 1
"""Raised when a change may move one of the numbers."""

# How much of the calibration text is read: docs/sensitivity.md says what more would change.
SAMPLES = 8
LENGTH = 512
