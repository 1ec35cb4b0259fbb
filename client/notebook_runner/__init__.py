"""The client of notebook-runner, a service that executes Jupyter notebooks.

::

    from notebook_runner import Client

    with Client("127.0.0.1:50051") as client:
        run = client.run("report.ipynb", parameters={"region": "north"})
        print(run.text)
        run.save("report.html")

What calls return has the message of the contract in its attribute `pb`.
"""

from ._contents import Image, Output
from ._info import Kernel, ServerInfo, Share, WebhookReceiver
from ._ipython import load_ipython_extension as load_ipython_extension
from ._ipython import register
from ._requests import StartOptions
from ._retry_policy import Retry
from ._snapshot import Failure, KillResult, RunSnapshot
from ._states import CellOutcome, FailureCause, RunState
from ._version import __version__
from .aio import AsyncClient, AsyncRun
from .changes import Change, ExistingSent, RunChange, RunDeleted
from .client import Client, Run
from .errors import (
    AccessDenied,
    CursorExpired,
    FieldViolation,
    InvalidRequest,
    LoginFailed,
    NotebookRunnerError,
    NotOwner,
    QuotaExceeded,
    RpcFailed,
    RunExpired,
    RunFailed,
    RunnerBusy,
    RunNotFound,
    Unavailable,
)
from .events import (
    CellFinished,
    CellRaised,
    CellStarted,
    Displayed,
    Event,
    OutputCleared,
    OutputCut,
    Printed,
    ResultValue,
    StateChanged,
)

__all__ = [
    "AccessDenied",
    "AsyncClient",
    "AsyncRun",
    "CellFinished",
    "CellOutcome",
    "CellRaised",
    "CellStarted",
    "Change",
    "Client",
    "CursorExpired",
    "Displayed",
    "Event",
    "ExistingSent",
    "Failure",
    "FailureCause",
    "FieldViolation",
    "Image",
    "InvalidRequest",
    "Kernel",
    "KillResult",
    "LoginFailed",
    "NotOwner",
    "NotebookRunnerError",
    "Output",
    "OutputCleared",
    "OutputCut",
    "Printed",
    "QuotaExceeded",
    "ResultValue",
    "Retry",
    "RpcFailed",
    "Run",
    "RunChange",
    "RunDeleted",
    "RunExpired",
    "RunFailed",
    "RunNotFound",
    "RunSnapshot",
    "RunState",
    "RunnerBusy",
    "ServerInfo",
    "Share",
    "StartOptions",
    "StateChanged",
    "Unavailable",
    "WebhookReceiver",
    "__version__",
]

register()
