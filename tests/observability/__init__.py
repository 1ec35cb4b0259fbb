"""Tests of log lines, metrics and traces."""
