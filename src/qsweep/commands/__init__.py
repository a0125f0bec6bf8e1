"""One file per command; Hydra and command lines end here."""
