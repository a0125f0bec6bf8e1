"""The name ``qsweep.gguf``, of which one command was in use: ``python -m qsweep.gguf.converter``."""
