"""Runs on Dask: the server's side (backend, scheduler, run) and the Dask workers' (worker, lease, drain)."""
