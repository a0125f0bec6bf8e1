"""What is said of a trial by margins: ``margins`` are read, ``measures`` found, ``pages`` written."""
