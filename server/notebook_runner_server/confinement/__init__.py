"""What a notebook can reach: environment, files, other processes."""
