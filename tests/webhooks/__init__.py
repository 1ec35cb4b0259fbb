"""Tests of webhooks that need no server."""
