"""Screenshots of exported HTML in a real browser."""
