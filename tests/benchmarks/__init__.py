"""Benchmarks: each measures ours and a baseline in the same run and gives their ratio. `make bench` runs them all."""
