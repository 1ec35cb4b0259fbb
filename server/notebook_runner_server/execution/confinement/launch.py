"""The program that starts a kernel confined: it takes rights from itself, and becomes the kernel.

It is executed by the interpreter that the kernelspec names, if it is ipykernel, and by the server's for any
other kernel.

    python launch.py RULESET PID MODULE [ARGUMENT …]     become ipykernel
    python launch.py RULESET PID -- COMMAND [ARGUMENT …]  execute a command

RULESET is a descriptor that it has inherited, as `confine.restrict` takes it. PID is the one process that
ipykernel listens to.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

# An interpreter may be told not to look here.
sys.path.insert(0, os.path.dirname(__file__))

if TYPE_CHECKING:
    from notebook_runner_server.execution.confinement import confine
else:
    import confine

confine.forget_folder()


def main() -> None:
    """Apply the ruleset, and become the kernel."""
    ruleset, pid, module, *arguments = sys.argv[1:]
    if module == "--":
        confine.restrict(int(ruleset))
        os.execvp(arguments[0], arguments)  # noqa: S606 - the command of a kernelspec
    _become(module, arguments, int(ruleset), int(pid))


def _become(module: str, arguments: list[str], ruleset: int, pid: int) -> None:
    import importlib.util  # noqa: PLC0415 - not for other kernels

    from ipykernel.kernelapp import IPKernelApp  # noqa: PLC0415 - the same

    confine.restrict(ruleset)
    launcher = importlib.util.find_spec(module)
    sys.argv = [launcher.origin if launcher and launcher.origin else "", *arguments]
    app: Any = IPKernelApp.instance()
    confine.answer_only(app, pid)
    app.initialize(arguments)
    app.start()


if __name__ == "__main__":
    main()
