"""Artefacts of a notebook in the formats of nbconvert."""
