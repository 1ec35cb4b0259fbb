"""A server that an ordinary user runs, whoever runs the tests, with a home of its own."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from typing_extensions import override

from tests.support.killable import KillableServer
from tests.support.processes import NOBODY, limit

# An interpreter below a folder that only root may enter is shown at its place, in a name space of its own.
_SHOWN = """
set -e
mount --bind "$2" "$3"
mount -t tmpfs -o mode=755 none "$1"
mkdir -p "$2"
mount --bind "$3" "$2"
umount "$3"
shift 3
exec "$@"
"""


class UnprivilegedServer(KillableServer):
    """The server as an ordinary user where the tests are run by root, and else as their user.

    Its folders are below `home`: `notebooks` is the notebook root, the state folder is at its default place.

    Args:
        home: The user's home.
        environment: More variables.
        umask: The user's umask.
        user: Root's choice of the user; nobody has other programs as well.
    """

    def __init__(
        self,
        home: Path,
        *options: str,
        environment: Mapping[str, str] | None = None,
        umask: int = 0o22,
        user: int = NOBODY,
    ) -> None:
        self.home = home
        self._user = user
        self.root = home / "notebooks"
        self.root.mkdir(exist_ok=True)
        state = home / ".local" / "state" / "notebook-runner"
        own = {"HOME": str(home), **(environment or {})}
        super().__init__(state, *options, "--notebook-root", str(self.root), environment=own)
        self.give(home)
        self._command[:0] = [*as_nobody(home, user), "sh", "-c", f'umask {umask:o}; exec "$@"', "sh"]
        if os.geteuid() == 0:
            self._command[:0] = ["prlimit", f"--rss={limit(self.mark)}:", "--"]

    @override
    def _mark_process(self) -> None:
        """Its command does that: root without CAP_SYS_RESOURCE cannot, once it has another user."""
        if os.geteuid() != 0:
            super()._mark_process()

    def give(self, path: Path) -> None:
        """Makes a file or folder, with all that is in it, the server's own."""
        if os.geteuid() == 0:
            command = ["chown", "-hR", f"{self._user}:{self._user}", str(path)]
            subprocess.run(command, check=True)

    @property
    def secrets(self) -> Path:
        """The history."""
        return self.state_dir / "notebook-runner.db"


def as_nobody(home: Path, user: int = NOBODY) -> list[str]:
    """What a command begins with that is executed as a server of this user at this home is."""
    if os.geteuid() != 0:
        return []
    command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--"]
    interpreter = Path(sys.executable).resolve()
    closed = [one for one in reversed(interpreter.parents) if not one.stat().st_mode & 0o001]
    if not closed:
        return command
    shown = closed[0] / interpreter.relative_to(closed[0]).parts[0]
    between = home.parent / f"{home.name}-interpreter"
    between.mkdir(exist_ok=True)
    return [
        "unshare",
        "--mount",
        "sh",
        "-c",
        _SHOWN,
        "sh",
        str(closed[0]),
        str(shown),
        str(between),
        *command,
    ]


@contextmanager
def unprivileged_home() -> Iterator[Path]:
    """A folder that every user may enter, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="plain-"))
    folder.chmod(0o755)
    try:
        home = folder / "home"
        home.mkdir()
        yield home
    finally:
        # Not Python's own, which does not come to the ground of what some notebooks nest.
        for command in (["chmod", "-R", "u+rwX", str(folder)], ["rm", "-rf", str(folder)]):
            subprocess.run(command, check=True)
