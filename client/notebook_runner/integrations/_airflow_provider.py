"""What Airflow asks its providers for: the connection type, and the form of its connections."""

from __future__ import annotations

from typing import Any

__all__ = ["get_provider_info"]

_TEXT = {"type": ["string", "null"]}


def get_provider_info() -> dict[str, Any]:
    """Return the description of this provider. Imports nothing, because every process of Airflow calls it."""
    return {
        "package-name": "notebook-runner",
        "name": "notebook-runner",
        "description": "Executes Jupyter notebooks on a server.",
        "connection-types": [
            {
                "connection-type": "notebook_runner",
                "hook-class-name": "notebook_runner.integrations.airflow.NotebookRunnerHook",
                "hook-name": "notebook-runner",
                "ui-field-behaviour": {
                    "hidden-fields": ["schema", "login"],
                    "relabeling": {"password": "Token"},
                    "placeholders": {"host": "127.0.0.1", "port": "50051"},
                },
                "conn-fields": {
                    "token_file": {
                        "label": "Token file",
                        "description": "File with the token, instead of the token itself",
                        "schema": _TEXT,
                    },
                    "tls_ca": {
                        "label": "CA certificates",
                        "description": "PEM file of CA certificates to trust; turns TLS on",
                        "schema": _TEXT,
                    },
                    "tls_cert": {
                        "label": "Client certificate",
                        "description": "PEM file with the client's certificate chain",
                        "schema": _TEXT,
                    },
                    "tls_key": {
                        "label": "Client key",
                        "description": "PEM file with the private key of the client certificate",
                        "schema": _TEXT,
                    },
                },
            }
        ],
    }
