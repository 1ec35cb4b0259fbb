"""The program that starts a confined kernel: it restricts itself, and then executes the kernel.

    python -I -S launch.py RULESET ENVIRONMENT COMMAND [ARGUMENT …]

RULESET is a descriptor that it has inherited, as `confine.restrict` takes it. ENVIRONMENT is the descriptor
of a file of JSON: the kernel's variables, some of which are the caller's. An interpreter, and the system's
loader before it, execute what variables name (`PYTHONPATH`, `LD_PRELOAD`), so this program has none of the
caller's: they are there when the kernel's own program is executed, which has been restricted by then.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

# Isolated, an interpreter does not look here.
sys.path.insert(0, os.path.dirname(__file__))

if TYPE_CHECKING:
    from notebook_runner_server.confinement import confine
else:
    import confine


def main() -> None:
    """Apply the ruleset, and execute the kernel."""
    ruleset, environment, *command = sys.argv[1:]
    with open(int(environment), encoding="utf-8") as file:
        variables = json.load(file)
    confine.restrict(int(ruleset))
    os.execvpe(command[0], command, variables)  # noqa: S606 - the command of a kernelspec


if __name__ == "__main__":
    main()
