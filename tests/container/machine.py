"""A machine with systemd: the real program, first process of its own namespaces, starts one unit.

The service's root is the image's, where the program is at the path that the unit names.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.container.podman import podman
from tests.support.pages import REPOSITORY
from tests.support.server import PROGRAM

PACKAGING = REPOSITORY / "packaging/systemd"
UNIT = PACKAGING / "notebook-runner-server.service"
USERS = PACKAGING / "notebook-runner.conf"
SYSUSERS = shutil.which("systemd-sysusers") or "systemd-sysusers"
UNSHARE = shutil.which("unshare") or "unshare"
SECONDS = 120.0
# What units have for granted; the machine starts nothing else.
TARGETS = ("sysinit", "basic", "shutdown", "network-online")
# Nothing that systemd mounts or changes is outside of these namespaces: it has its own cgroups, /run, /var
# and /etc, and may not change the kernel's settings.
OUTER = """
set -eu
mount -t cgroup2 cgroup2 "$FOLDER/cgroup"
group=$FOLDER/cgroup/$NAME
mkdir "$group"
sh -c 'echo $$ > "$1/cgroup.procs"; shift; exec "$@"' - "$group" \
  unshare --cgroup --pid --fork --mount-proc --ipc --uts sh -c "$INNER" || true
find "$group" -depth -type d -exec rmdir {} +
"""
INNER = """
set -eu
mount -t tmpfs tmpfs "$FOLDER/over"
layered() { # LOWER TARGET
  over=$FOLDER/over/$(basename "$2")
  mkdir -p "$over/upper" "$over/work"
  mount -t overlay -o "lowerdir=$1,upperdir=$over/upper,workdir=$over/work" overlay "$2"
}
layered "$IMAGE" "$FOLDER/image"
layered /etc /etc
cd "$FOLDER"
mkdir -p /etc/notebook-runner image/srv/notebooks var/lib var/cache var/tmp
cp "$FOLDER/etc/passwd" "$FOLDER/etc/group" /etc
cp /etc/passwd /etc/group /etc/hosts "$FOLDER/image/etc"
cp "$FOLDER/etc/tokens" /etc/notebook-runner
mount --bind "$FOLDER/var" /var
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount --bind /dev/null /dev/console
exec env -i container=test PATH="$PATH" SYSTEMD_UNIT_PATH="$FOLDER/units" /lib/systemd/systemd --system \\
  --unit=test.target --log-target=null --show-status=0
"""


def name(process: int) -> str:
    """The name of a process."""
    return Path(f"/proc/{process}/comm").read_text().strip()


def descendants(process: int) -> list[int]:
    """All processes that a process has started, and that they have started."""
    files = Path(f"/proc/{process}/task").glob("*/children")
    children = [int(child) for file in files for child in file.read_text().split()]
    return children + [one for child in children for one in descendants(child)]


class Machine:
    """A machine between `with` and its end.

    Args:
        folder: Where its files are.
        image: The image whose root the service has.
        environment: Settings of the server, as an operator adds them.

    Attributes:
        token: The token of a caller.
        log: The server's log.
    """

    def __init__(self, folder: Path, image: str, environment: Mapping[str, str]) -> None:
        self._folder, self._image = folder, image
        for name in ("cgroup", "over", "image", "units", "etc", "var"):
            (folder / name).mkdir()
        self.log = folder / "server.log"
        self._users()
        tokens = folder / "etc/tokens"
        command = [str(PROGRAM), "--tokens-file", str(tokens), "--new-token", "test:run"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
        self.token: str = done.stdout.strip()
        tokens.chmod(0o644)
        self._units(environment)

    def _users(self) -> None:
        for file in ("passwd", "group"):
            shutil.copy(f"/etc/{file}", self._folder / "etc")
        command = [SYSUSERS, f"--root={self._folder}", str(USERS)]
        subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)

    def _units(self, environment: Mapping[str, str]) -> None:
        units = self._folder / "units"
        shutil.copy(UNIT, units)
        for target in TARGETS:
            (units / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        (units / "test.target").write_text(f"[Unit]\nWants={UNIT.name}\n")
        settings = "".join(f"Environment={name}={value}\n" for name, value in environment.items())
        drop_in = units / f"{UNIT.name}.d/test.conf"
        drop_in.parent.mkdir()
        drop_in.write_text(
            f"[Service]\nRootDirectory={self._folder / 'image'}\nStandardError=append:{self.log}\n{settings}"
        )

    def __enter__(self) -> Self:
        root = podman("image", "mount", self._image).strip()
        variables = {"FOLDER": str(self._folder), "NAME": f"nbr-{os.getpid()}", "IMAGE": root, "INNER": INNER}
        self._process = subprocess.Popen(
            [UNSHARE, "--mount", "sh", "-c", OUTER],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
        )
        return self

    def __exit__(self, *_: object) -> None:
        # The first process takes all others with it.
        os.kill(self._first, signal.SIGKILL)
        code = self._process.wait(SECONDS)
        podman("image", "unmount", self._image)
        assert code == 0

    @property
    def _first(self) -> int:
        (first,) = [one for one in descendants(self._process.pid) if name(one) == "systemd"]
        return first

    def processes(self) -> list[int]:
        """All processes of the service, by the numbers that they have outside."""
        return descendants(self._first)

    def commands(self) -> list[str]:
        """The commands of these processes."""
        return [Path(f"/proc/{one}/cmdline").read_text().replace("\0", " ") for one in self.processes()]

    def systemctl(self, *arguments: str) -> str:
        """What systemctl of the machine prints."""
        command = ["nsenter", f"--target={self._first}", "--mount", "--pid", "systemctl", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return str(done.stdout)
