"""Tests of the gRPC layer."""
