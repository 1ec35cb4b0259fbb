"""Webhooks: tell other services of the starts and ends of runs."""
