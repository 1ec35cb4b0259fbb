"""Tests of notebooks and results by URI."""
