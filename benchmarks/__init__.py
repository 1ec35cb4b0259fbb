"""Measures this service beside nbclient itself: `python -m benchmarks`."""
