"""Text that is measured or calibrated on: corpora, their sources, windows of tokens."""
