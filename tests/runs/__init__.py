"""Tests of runs without a server: state machine, event log, store, lifecycle."""
