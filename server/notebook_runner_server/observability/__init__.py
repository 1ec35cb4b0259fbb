"""Canonical log lines, metrics and traces: observers of calls and runs."""
