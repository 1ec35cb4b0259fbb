"""Converts notebooks to other formats with nbconvert."""
