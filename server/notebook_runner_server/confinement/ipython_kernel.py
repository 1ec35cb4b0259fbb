"""The program of a cold ipykernel: `python -m MODULE` with sockets that accept only one process.

    python ipython_kernel.py PID MODULE [ARGUMENT …]

The interpreter of the kernelspec executes it after `launch.py` has restricted the process. PID is the process
whose connections the kernel accepts.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

# Options of the interpreter may exclude this folder.
sys.path.insert(0, os.path.dirname(__file__))

if TYPE_CHECKING:
    from notebook_runner_server.confinement import confine
else:
    import confine

confine.remove_from_sys_path()


def main() -> None:
    """Become ipykernel."""
    from ipykernel.kernelapp import IPKernelApp  # noqa: PLC0415 - when this folder is forgotten

    pid, module, *arguments = sys.argv[1:]
    launcher = importlib.util.find_spec(module)
    sys.argv = [launcher.origin if launcher and launcher.origin else "", *arguments]
    app: Any = IPKernelApp.instance()
    confine.restrict_peer_pid(app, int(pid))
    app.initialize(arguments)
    app.start()


if __name__ == "__main__":
    main()
