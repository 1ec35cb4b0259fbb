"""Attacks by callers and by notebooks."""
