"""The program that starts a kernel confined: it takes rights from itself, and becomes the kernel.

It is executed by the interpreter that the kernelspec names, if it is ipykernel, and by the server's for any
other kernel.

    python launch.py RULES PID MODULE [ARGUMENT …]     become ipykernel
    python launch.py RULES PID -- COMMAND [ARGUMENT …]  execute a command

RULES is a file of JSON, as `confine.restrict` takes it. PID is the one process that ipykernel listens to.
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

import json  # noqa: E402 - as said


def main() -> None:
    """Read the rules, and obey them."""
    path, pid, module, *arguments = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        rules = json.load(file)
    if module == "--":
        confine.restrict(rules)
        os.execvp(arguments[0], arguments)  # noqa: S606 - the command of a kernelspec
    _become(module, arguments, rules, int(pid))


def _become(module: str, arguments: list[str], rules: dict[str, object], pid: int) -> None:
    import importlib.util  # noqa: PLC0415 - not for other kernels

    from ipykernel.kernelapp import IPKernelApp  # noqa: PLC0415 - the same

    confine.make_profile()
    confine.restrict(rules)
    launcher = importlib.util.find_spec(module)
    sys.argv = [launcher.origin if launcher and launcher.origin else "", *arguments]
    app: Any = IPKernelApp.instance()
    confine.answer_only(app, pid)
    app.initialize(arguments)
    app.start()


if __name__ == "__main__":
    main()
