"""Catches a lost factor of 1.3 without looking at a clock: `python -m benchmarks.guard`."""
