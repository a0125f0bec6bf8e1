"""Reference packs: a file with all that a comparison needs of a reference."""
