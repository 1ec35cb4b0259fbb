"""Tests of the documentation's pages and site."""
