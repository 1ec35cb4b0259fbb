"""The sandbox: which environment, files and processes a notebook can access."""
