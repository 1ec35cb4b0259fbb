"""Runs on a Dask cluster: the server's side (backend, link, run), and the Dask workers' (worker, lease)."""
