"""Checks of the sources that no linter has; `make check` runs them."""
