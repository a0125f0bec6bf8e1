"""Artifacts, and one file per container: how codes of weights lie in files, and the way back."""
