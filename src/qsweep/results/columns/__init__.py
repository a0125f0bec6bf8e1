"""One table of all figures and facts: ``table`` has the rows, ``views`` what outputs take of it."""
