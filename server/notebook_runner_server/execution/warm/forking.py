"""A jupyter_client provisioner that forks ipykernel from a fork server, in a fifth of the time of a start.

The fork server (`fork_server.py`) is a process that has imported ipykernel and the preloaded modules. The
interpreter of the kernelspec executes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from notebook_runner_server.confinement import confine
from notebook_runner_server.confinement.environment import inherited
from notebook_runner_server.confinement.policy import Ruleset
from notebook_runner_server.execution.ipykernel_args import ARGUMENTS, SETUP


class ForkedProcess:
    """A child of this process that the fork server forked, with the part of Popen that jupyter_client uses.

    Attributes:
        pid: The process id.
        returncode: The exit code (negative: the signal that killed it), None while it runs.
        is_lost: Whether the exit code is unknown.
    """

    stdin = stdout = stderr = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.is_lost = False
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code (negative: the signal that killed it), None while it runs."""
        return self._wait(os.WNOHANG)

    def wait(self) -> int:
        """Wait for the process to end, and return its exit code."""
        return self._wait(0) or 0

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            try:
                found, status = os.waitpid(self.pid, options)
            except ChildProcessError:
                # Other code has reaped it. A Popen returns 0 then, too.
                self.returncode, self.is_lost = 0, True
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if found else None
        return self.returncode


IMPORT_SECONDS = 60.0
"""Seconds that a fork server may take to import its modules."""

FORK_SECONDS = 2.0
"""Seconds that a fork may take; it takes some milliseconds."""

ASSIGN_SECONDS = 2.0
"""Seconds that a kernel may take to change its folder and environment."""

_READY, _DONE = b"ready\n", b"done\n"
_PROGRAM = Path(__file__).with_name("fork_server.py")
_CONFINEMENT = Path(__file__).parents[2] / "confinement"
# Isolated from variables, the working folder and packages, some of which a caller can choose.
_LAUNCHER = [sys.executable, "-I", "-S", str(_CONFINEMENT / "launch.py")]
_KERNEL = _CONFINEMENT / "ipython_kernel.py"
_MODULES = ("ipykernel_launcher", "ipykernel")

# Read only when an interpreter starts or a library is imported, so that they cannot be set in a running
# process. The libraries are those that are often preloaded.
_READ_AT_START = "PYTHON LD_ LC_ LANG MALLOC_ GLIBC_ HOME XDG_ IPYTHON JUPYTER JPY_ R_ JULIA_ BASH_"
_READ_AT_IMPORT = """
OMP_ KMP_ GOMP_ OPENBLAS_ GOTO_ MKL_ BLIS_ VECLIB_ NUMEXPR_ NUMBA_ NPY_ MPL PANDAS_ ARROW_ POLARS_ RAYON_
DUCKDB_ TORCH_ PYTORCH_ CUDA_ NCCL_ NVIDIA_ JAX_ XLA_ TF_ KERAS_ HF_ TRANSFORMERS_ TOKENIZERS_ OPENSSL_ SSL_
REQUESTS_ CURL_ AWS_ GOOGLE_ AZURE_ DASK_ RAY_ SPARK_ PYSPARK_ GDAL_ PROJ_ SKLEARN_ JOBLIB_ LOKY_
"""


class ForkServerError(RuntimeError):
    """A fork server, or a kernel that it forked, failed."""


def can_set(names: Iterable[str], *, imported: bool) -> bool:
    """Return whether variables take effect in a running process.

    Args:
        names: The variables.
        imported: Whether the process has imported unknown modules.
    """
    read = tuple((_READ_AT_START + (_READ_AT_IMPORT if imported else "")).split())
    return not any(name.startswith(read) for name in names)


class ForkServer:
    """A process that forks kernels.

    Args:
        command: The interpreter and its options.
        preload: Modules to import.
        environment: The environment variables of the process.
        hide: Make the process non-dumpable, so that other processes cannot inspect it.
    """

    def __init__(
        self, command: Sequence[str], preload: Sequence[str], environment: Mapping[str, str], *, hide: bool
    ) -> None:
        # The kernels become children of this process, which can then wait for them.
        confine.become_subreaper()
        self._environment = {**environment, "JPY_PARENT_PID": str(os.getpid())}
        self._link, far = socket.socketpair()
        self._lines = self._link.makefile("rb", buffering=0)
        self._link.sendall(b"".join(_framed({"arguments": ARGUMENTS, "setup": SETUP})))
        with far:
            self.process = subprocess.Popen(  # noqa: S603 - the command of a kernelspec
                [*command, str(_PROGRAM), str(far.fileno()), str(int(hide)), *preload],
                pass_fds=[far.fileno()],
                env=self._environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def wait_ready(self) -> dict[str, str]:
        """Wait until the imports are done; return the modules that failed, and why.

        Raises:
            ForkServerError: The process died, or took too long.
        """
        failed: dict[str, str] = json.loads(self._line(IMPORT_SECONDS))["failed"]
        return failed

    def fork(
        self,
        module: str,
        arguments: Sequence[str],
        folder: str,
        environment: Mapping[str, str],
        output: int,
        ruleset: Ruleset | None,
    ) -> tuple[ForkedProcess, socket.socket]:
        """Fork a kernel.

        Args:
            module: The module of the kernel.
            arguments: The module's arguments.
            folder: The working folder.
            environment: All environment variables.
            output: The descriptor of standard output and error.
            ruleset: What the kernel may access; None: whatever the user may.

        Returns:
            The process, and its control socket.

        Raises:
            ForkServerError: The fork server died, or took too long.
            BlockingIOError: No more processes can be created.
        """
        near, far = socket.socketpair()
        request = {
            "module": module,
            "arguments": list(arguments),
            "context": self._context(folder, environment),
            "client": os.getpid(),
        }
        descriptors = [output, *([ruleset.fileno()] if ruleset is not None else [])]
        try:
            with far:
                length, body = _framed(request)
                socket.send_fds(self._link, [length], [far.fileno(), *descriptors])
                self._link.settimeout(FORK_SECONDS)
                self._link.sendall(body)
            pid = int(self._line(FORK_SECONDS))
        except (OSError, ForkServerError) as error:
            near.close()
            raise ForkServerError(f"the fork server does not fork: {error}") from error
        if not pid:
            near.close()
            raise BlockingIOError("no more processes can be created")
        return ForkedProcess(pid), near

    def _context(self, folder: str, environment: Mapping[str, str]) -> dict[str, Any]:
        mine = self._environment
        changed = {name: value for name, value in environment.items() if mine.get(name) != value}
        missing = [name for name in mine if name not in environment and name != "JPY_PARENT_PID"]
        return {"folder": folder, "set": changed, "unset": missing}

    def _line(self, seconds: float) -> bytes:
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        if not poll.poll(round(seconds * 1000)):
            raise ForkServerError(f"no answer from the fork server within {seconds:g} s")
        line = self._lines.readline()
        if not line:
            raise ForkServerError(f"the fork server exited with code {self.process.wait()}")
        return line

    def close(self) -> None:
        """End the process."""
        self._lines.close()
        self._link.close()
        self.process.kill()
        self.process.wait()


class ForkProvisioner(LocalProvisioner):
    """Forks ipykernel from a fork server; starts other kernels as LocalProvisioner does.

    Attributes:
        fork_server: The fork server; None: it is not used.
        ruleset: What the kernel may access; None: whatever the user may.
    """

    fork_server: ForkServer | None = None
    ruleset: Ruleset | None = None
    # A Popen or a ForkedProcess.
    process: Any
    _control: socket.socket | None = None
    _heard = b""

    @property
    def forked(self) -> bool:
        """Whether the process was forked by the fork server."""
        return isinstance(self.process, ForkedProcess)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the kernel; `stdout` is the file for output of the process itself.

        Raises:
            ForkServerError: The fork server failed.
        """
        parts = split(cmd)
        if parts is None or self.fork_server is None:
            if self.ruleset is None:
                return await super().launch_kernel(cmd, **kwargs)
            with _environment_file(kwargs["env"]) as environment:
                descriptors = [self.ruleset.fileno(), environment.fileno()]
                cmd = [*_LAUNCHER, *map(str, descriptors), *_kernel_command(cmd)]
                return await super().launch_kernel(
                    cmd, **{**kwargs, "env": inherited(), "pass_fds": descriptors}
                )
        _, module, arguments = parts
        folder = str(kwargs.get("cwd") or os.getcwd())
        process, self._control = self.fork_server.fork(
            module, arguments, folder, kwargs["env"], kwargs["stdout"].fileno(), self.ruleset
        )
        self._control.setblocking(False)
        # It leads a session, and so a group.
        self.process, self.pid, self.pgid, self.cwd = process, process.pid, process.pid, folder
        return self.connection_info

    @property
    def control(self) -> socket.socket | None:
        """The socket of a forked kernel, readable when it is ready or has ended; None: it is assigned."""
        return self._control

    def is_ready(self) -> bool:
        """Return whether a forked kernel has bound its sockets."""
        with contextlib.suppress(BlockingIOError):
            if self._control is not None:
                self._heard += self._control.recv(64)
        return self._heard.startswith(_READY)

    async def assign(self, folder: str, environment: Mapping[str, str], ruleset: Ruleset | None) -> None:
        """Assign a forked kernel to a run.

        Args:
            folder: The working folder.
            environment: The variables to set.
            ruleset: What its main thread may access from now on; None: no change.

        Raises:
            ForkServerError: The kernel died, or does not answer.
        """
        control, self._control = self._control, None
        if control is None:
            raise ForkServerError("the kernel is already assigned")
        length, body = _framed({"folder": folder, "set": dict(environment), "unset": []})
        descriptors = [ruleset.fileno()] if ruleset is not None else []
        loop = asyncio.get_running_loop()
        try:
            with control:
                async with asyncio.timeout(ASSIGN_SECONDS):
                    socket.send_fds(control, [length], descriptors)
                    await loop.sock_sendall(control, body)
                    while not self._heard.endswith(_DONE):
                        piece = await loop.sock_recv(control, 64)
                        if not piece:
                            raise ForkServerError("the kernel has ended")
                        self._heard += piece
        except (OSError, TimeoutError) as error:
            raise ForkServerError(f"the kernel cannot be assigned: {error!r}") from error


def _framed(message: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Return a message to a fork server or its kernel: its length, and the message."""
    body = json.dumps(message).encode()
    return struct.pack("!I", len(body)), body


@contextlib.contextmanager
def _environment_file(environment: Mapping[str, str]) -> Iterator[IO[bytes]]:
    """Open an unnamed file with the variables of a kernel, which may be secrets."""
    with open(os.memfd_create("environment"), "w+b") as file:
        file.write(json.dumps({**environment, "JPY_PARENT_PID": str(os.getpid())}).encode())
        file.seek(0)
        yield file


def _kernel_command(command: Sequence[str]) -> list[str]:
    """Return the command of a kernel; ipykernel then accepts connections only from this process."""
    parts = split(command)
    if parts is None:
        return list(command)
    options, module, arguments = parts
    return [*options, str(_KERNEL), str(os.getpid()), module, *arguments]


def interpreter(command: Sequence[str]) -> list[str]:
    """Return the command of an interpreter as jupyter_client starts it: `python` is this process's own."""
    version = sys.version_info
    own = {"python", f"python{version[0]}", f"python{version[0]}.{version[1]}"}
    return [sys.executable if command[0] in own else command[0], *command[1:]]


def split(command: Sequence[str]) -> tuple[list[str], str, list[str]] | None:
    """Split a kernel's command into interpreter, module and arguments; None: it is not ipykernel."""
    parts = list(command)
    with contextlib.suppress(ValueError, IndexError):
        at = parts.index("-m")
        if parts[at + 1] in _MODULES:
            return parts[:at], parts[at + 1], parts[at + 2 :]
    return None
