"""Tests of whole runs through a real server over a real socket."""
