"""The client of notebook-runner, a service that executes Jupyter notebooks.

::

    from notebook_runner import Client

    with Client("127.0.0.1:50051") as client:
        result = client.run("report.ipynb", parameters={"region": "north"})
        result.save_output("report.html", format="html")

The messages that calls answer are those of the contract, in `notebook_runner.v1.notebook_runner_pb2`.
"""

from ._requests import StartOptions
from ._version import __version__
from .aio import AsyncClient
from .client import Client
from .errors import (
    AccessDenied,
    FieldViolation,
    InvalidRequest,
    NotebookRunnerError,
    RpcFailed,
    RunFailed,
    RunnerBusy,
    RunNotFound,
    Unavailable,
)
from .results import AsyncRunResult, RunResult

__all__ = [
    "AccessDenied",
    "AsyncClient",
    "AsyncRunResult",
    "Client",
    "FieldViolation",
    "InvalidRequest",
    "NotebookRunnerError",
    "RpcFailed",
    "RunFailed",
    "RunNotFound",
    "RunResult",
    "RunnerBusy",
    "StartOptions",
    "Unavailable",
    "__version__",
]
