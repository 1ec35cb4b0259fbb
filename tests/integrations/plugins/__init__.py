"""Plugins for the tests of other programs."""
