"""Tests of the contract from another language."""
