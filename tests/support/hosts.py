"""The programs that integrations extend, each in its own environment, with this package from its wheel."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.settings import clean

REPOSITORY = Path(__file__).parents[2]
VENVS = REPOSITORY / ".venv-integrations"
SECONDS = 300.0


class MissingHostError(RuntimeError):
    """The environment of a program has not been made."""


@dataclass(frozen=True)
class Host:
    """A program with its environment, which `make integrations` makes from `requirements-integrations`.

    Attributes:
        name: The name of its lock.
    """

    name: str

    def program(self, name: str = "python") -> str:
        """The path of one of its programs.

        Raises:
            MissingHostError: There is no such environment.
        """
        home = VENVS / self.name
        if not (home / ".installed").exists():
            raise MissingHostError(f"{home} is missing. Run `make integrations HOSTS={self.name}` first.")
        return str(home / "bin" / name)

    def install(self, wheel: Path) -> None:
        """Installs this package as it is now, without what the lock has."""
        pip = [sys.executable, "-m", "pip", "--python", self.program()]
        install = [*pip, "install", "--quiet", "--no-deps", "--force-reinstall", str(wheel)]
        subprocess.run(install, check=True, capture_output=True, timeout=SECONDS)

    def run(
        self, *command: str | Path, cwd: Path, target: str = "", typed: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs one of its programs in a folder, with the address of a server in the environment."""
        return subprocess.run(
            [self.program(str(command[0])), *command[1:]],
            cwd=cwd,
            env=self.environment(target, **variables),
            input=typed,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def environment(self, target: str, **variables: str) -> dict[str, str]:
        """The environment of its programs, in which its own come first."""
        inherited = clean()
        path = f"{VENVS / self.name / 'bin'}:{inherited['PATH']}"
        return {**inherited, "PATH": path, "NOTEBOOK_RUNNER_TARGET": target, **variables}


def build_wheel(folder: Path) -> Path:
    """Builds the distribution's wheel, as it would be published."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True, timeout=SECONDS)
    (built,) = folder.glob("*.whl")
    return built
