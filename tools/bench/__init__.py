"""Benchmark: `make bench`."""
