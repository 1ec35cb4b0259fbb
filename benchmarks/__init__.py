"""Benchmark this service and its competitors: `python -m benchmarks`."""
