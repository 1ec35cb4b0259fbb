"""Reads and writes notebooks by URI."""
