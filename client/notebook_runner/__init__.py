"""The client of notebook-runner, a service that executes Jupyter notebooks.

::

    from notebook_runner import Client

    with Client("127.0.0.1:50051") as client:
        result = client.run("report.ipynb", parameters={"region": "north"})
        result.save_output("report.html", format="html")

The messages that calls answer are those of the contract, in `notebook_runner.v1.notebook_runner_pb2`.
"""

from ._ipython import load_ipython_extension as load_ipython_extension
from ._ipython import register
from ._requests import StartOptions
from ._version import __version__
from .aio import AsyncClient, AsyncRunResult
from .client import Client, RunResult
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

register()
