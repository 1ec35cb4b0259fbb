"""Notebooks that are read from, and written to, places that a URI names."""
