"""What the operator has decided about what a notebook can reach, and what the system can do of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from notebook_runner_server.confinement import confine
from notebook_runner_server.confinement.policy import SandboxPolicy, caches, exposed

WHOLE = 6
"""The version of Landlock since which signals and abstract sockets can be denied (Linux 6.12)."""


class SandboxError(ValueError):
    """The operator requires what this system cannot do."""


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """How kernels are kept apart from the server and from each other.

    Attributes:
        mode: "auto": as far as the system can; "require": not without all of it; "off": not at all.
        kernel_environment: Names of variables that kernels find beside those that they always may.
        hidden: Files and folders that no kernel may read, beside the state folder and the kernels' sockets.
        writable: Folders that each kernel may write.
        root: The folder that notebooks are in; None: none.
    """

    mode: str = "auto"
    kernel_environment: tuple[str, ...] = ()
    hidden: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    root: Path | None = None

    @property
    def is_on(self) -> bool:
        """Whether anything is done."""
        return self.mode != "off"

    def confinement(self, state: Path, sockets: Path) -> SandboxPolicy | None:
        """Return what holds for kernels; None: they cannot be, or shall not be, confined.

        Args:
            state: The folder for history and results.
            sockets: The folder for the kernels' sockets.
        """
        if not self.is_on or not confine.landlock_version():
            return None
        # Resolved once, before any notebook runs: later one may have put a link where it may write.
        writable = tuple(one.resolve() for one in self.writable)
        root = self.root and self.root.resolve()
        places = state.resolve() / "places"
        return SandboxPolicy(places, (state, sockets, *self.hidden), writable, root, caches())

    def protections(self, confinement: SandboxPolicy | None) -> dict[str, object]:
        """Return what is active, for the log.

        Raises:
            SandboxError: All of it is required, and something is missing.
        """
        version = confine.landlock_version() if confinement else 0
        seen = [str(one) for one in exposed(confinement)] if confinement else []
        if self.mode == "require" and (version < WHOLE or seen):
            why = f"these would not be hidden: {', '.join(seen)}" if seen else f"version {version} is there"
            raise SandboxError(f"--sandbox require needs Landlock in version {WHOLE} (Linux 6.12): {why}")
        return {
            "mode": self.mode,
            "processes_hidden": self.is_on,
            "landlock": version,
            "files": version > 0,
            "signals": version >= WHOLE,
            "exposed": seen,
        }
