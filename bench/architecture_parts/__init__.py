"""What ``bench/architectures.py`` consists of."""
