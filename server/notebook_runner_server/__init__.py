"""The notebook-runner server: executes Jupyter notebooks on demand over gRPC."""
