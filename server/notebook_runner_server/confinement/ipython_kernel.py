"""The program that a cold ipykernel is: `python -m MODULE`, but its sockets accept one process alone.

    python ipython_kernel.py PID MODULE [ARGUMENT …]

It is executed by the interpreter that the kernelspec names, when that has been restricted (`launch.py`).
PID is the one process that the kernel listens to.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

# An interpreter may be told not to look here.
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
