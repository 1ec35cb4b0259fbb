"""Tests of exported formats."""
