"""Runs: their state machine, event log, store and life from Start to the last event."""
