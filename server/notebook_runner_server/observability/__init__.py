"""What an operator sees of a server: canonical log lines, metrics, traces."""
