"""The parts of bench/gpu.py, one subject each."""
