"""The real server's command, that ends itself with SIGKILL where NBR_TEST_KILLED says.

refused   when the start is refused, before anything is undone
stopping  when what was begun is being undone
"""

import os
import signal
from typing import Any

VARIABLE = "NBR_TEST_KILLED"


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Runs the server."""
    from notebook_runner_server.__main__ import main as serve  # noqa: PLC0415 - a worker needs none of it
    from notebook_runner_server.app import App  # noqa: PLC0415 - as above
    from notebook_runner_server.runs.manager import RunManager  # noqa: PLC0415 - as above

    owner, name = {"refused": (App, "shutdown"), "stopping": (RunManager, "close")}[os.environ[VARIABLE]]
    setattr(owner, name, _die)
    serve()


if __name__ == "__main__":
    main()
