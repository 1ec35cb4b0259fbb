"""Where notebooks are executed: the backend interface, the process pool, and what runs in a worker."""
