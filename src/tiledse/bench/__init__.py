"""Timings as ratios in one run: the operator, and whole networks."""
