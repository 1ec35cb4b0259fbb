"""Tests that kill, stop, starve or delay a part of a real server."""
