"""qsweep for scripts and notebooks: what ``import qsweep`` offers, each imported when it is used."""
