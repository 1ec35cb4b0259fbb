"""Executes a command as an ordinary user: root becomes nobody, everybody else stays who they are."""

import os
import subprocess
import sys

from tests.support.processes import NOBODY
from tests.support.unprivileged import as_nobody, unprivileged_home

if __name__ == "__main__":
    with unprivileged_home() as home:
        environment = {**os.environ}
        if os.geteuid() == 0:
            os.chown(home, NOBODY, NOBODY)
            environment |= {"HOME": str(home), "TMPDIR": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
            for name in [name for name in environment if name.startswith("XDG_")]:
                del environment[name]
        sys.exit(subprocess.run([*as_nobody(home), *sys.argv[1:]], env=environment, check=False).returncode)
