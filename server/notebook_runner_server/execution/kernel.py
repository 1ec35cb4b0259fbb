"""One kernel for one run: started over IPC sockets in a private folder, watched, never used again.

The private folder also has what a kernel would otherwise share: its temporary files, and the directories of
IPython and Jupyter. The environment names them, so that each process of the notebook has them too.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import zmq
from jupyter_client.manager import AsyncKernelManager

from notebook_runner_server import folder_tree
from notebook_runner_server.confinement import denial
from notebook_runner_server.confinement.environment import inherited
from notebook_runner_server.confinement.policy import KernelRules, Ruleset, SandboxPolicy, narrowed, rules
from notebook_runner_server.execution import input_files
from notebook_runner_server.execution.failures import plain
from notebook_runner_server.execution.interface import InputFile
from notebook_runner_server.execution.ipykernel_args import ARGUMENTS, MESSAGES_ON_THE_WAY
from notebook_runner_server.execution.kernel_client import KernelClient, UnfitKernelError
from notebook_runner_server.execution.kernel_specs import KernelSpecs
from notebook_runner_server.execution.own_peak import own_peak
from notebook_runner_server.execution.runtime_dir import subfolder
from notebook_runner_server.execution.warm import languages
from notebook_runner_server.execution.warm.forking import ForkProvisioner, ForkServer, ForkServerError, split

READY_TIMEOUT = 60.0
"""Seconds until a kernel must answer; nbclient's `startup_timeout`."""

LEAST_TIMEOUT = 5.0
"""The same for a kernel that was started before the run."""

DRAIN_SECONDS = 1.0
"""Seconds to receive the last messages of a dead kernel."""

LOST_SOCKETS = "its sockets have disappeared"
"""Why a running kernel cannot be reached."""

_REMOVED = ".removed"
_QUIET_MS = 10
_LOG_TAIL_BYTES = 8192


class KernelDiedError(UnfitKernelError):
    """The process ended before the kernel was ready."""


class Kernel:
    """A kernel process and its client.

    A cold kernel is launched in the working folder of its run, and then connected. A warm kernel is launched
    without a run and warmed up, which connects it, and assigned to a run later.

    Attributes:
        name: Its kernelspec.
        manager: jupyter_client's manager of it.
        client: jupyter_client's client of it, after `warm_up` or `connect`.

    Args:
        name: The kernelspec.
        folder: The folder to create its private folder in; short, because the path of a socket has at
            most 107 bytes.
        fork_server: Forks it; None: it is started as a new process.
        policy: What it may access; None: whatever the user may.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        fork_server: ForkServer | None = None,
        policy: SandboxPolicy | None = None,
    ) -> None:
        self.name = name
        self._folder = subfolder(folder)
        self._log = KernelLog(self._folder)
        self.manager: AsyncKernelManager = AsyncKernelManager(
            kernel_name=name,
            kernel_spec_manager=KernelSpecs(),
            transport="ipc",
            ip=str(self._folder / "k"),
            connection_file=str(self._folder / "kernel.json"),
            client_factory=KernelClient,
        )
        self.manager.context.setsockopt(zmq.RCVHWM, MESSAGES_ON_THE_WAY)
        self._fork_server = fork_server
        self._policy = policy
        self._rules: KernelRules | None = None
        # The folders that it may write; those of the run are added when a warm kernel is assigned.
        self._writable: Sequence[Path] = ()
        self._staging_dir: StagingDir | None = None
        self.client: KernelClient | None = None
        self._pidfd: int | None = None
        self._setup_code = ""
        self._launched = 0.0

    def prepare_ahead(self) -> None:
        """Create the staging folder and the rules of a warm kernel; blocks.

        Separate from `launch_ahead`, during which a Kill has to wait: with hundreds of entries above hidden
        paths this takes tens of milliseconds.

        Raises:
            OSError: The folder cannot be created, or there can be no rule for a path.
        """
        if self._policy is not None:
            self._staging_dir = StagingDir(self._policy.staging_folder)
            # Its notebook may be anywhere in the root.
            root = self._policy.root
            own = [self._staging_dir.path, *([root] if root is not None and root.exists() else [])]
            self._rules = rules(self._policy, [self._folder, *own])

    async def launch_ahead(self) -> None:
        """Start the process of a warm kernel; `assign` follows.

        Raises:
            NoSuchKernel: The kernelspec does not exist.
            OSError, ForkServerError: The process could not be started.
        """
        await self.launch(str(self._folder.parent), {}, ())

    async def launch(self, working_folder: str, variables: Mapping[str, str], own: Iterable[Path]) -> None:
        """Start the process.

        Args:
            working_folder: Its working folder.
            variables: Environment variables in addition to those of this process.
            own: Folders that it may write, if it is confined.

        Raises:
            NoSuchKernel: The kernelspec does not exist.
            OSError, ForkServerError: The process could not be started.
        """
        spec = self.manager.kernel_spec
        options: dict[str, Any] = {}
        if spec is not None and split(spec.argv):
            options["extra_arguments"] = ARGUMENTS
        # A kernelspec may name its own provisioner, for a kernel on another machine.
        if spec is not None and "kernel_provisioner" not in spec.metadata:
            self.manager.provisioner = provisioner = ForkProvisioner(
                kernel_id=self._folder.name, kernel_spec=spec, parent=self.manager
            )
            provisioner.fork_server = self._fork_server
            if self._policy is not None:
                if self._rules is None:
                    self._rules = rules(self._policy, [self._folder, *own])
                provisioner.ruleset = self._rules.ruleset
                self._writable = self._rules.ruleset.writable
        self._launched = time.monotonic()
        # An earlier run may have made this process large, which would count as the kernel's memory.
        own_peak.forget()
        try:
            await self.manager.start_kernel(
                cwd=working_folder,
                env=self._environment(variables),
                stdin=subprocess.DEVNULL,
                stdout=self._log.file,
                stderr=self._log.file,
                **options,
            )
        finally:
            if self._rules is not None:
                self._rules.ruleset.close()

    @property
    def pid(self) -> int:
        """The process id of the launched kernel; 0: it is not on this machine."""
        process = getattr(self.manager.provisioner, "process", None)
        return process.pid if process else 0

    @property
    def control(self) -> socket.socket | None:
        """The control socket of a forked kernel, readable when the kernel is ready; None for others."""
        provisioner = self.manager.provisioner
        return provisioner.control if isinstance(provisioner, ForkProvisioner) else None

    @property
    def is_bound(self) -> bool:
        """Whether a forked kernel has restricted itself and bound its sockets."""
        provisioner = self.manager.provisioner
        return isinstance(provisioner, ForkProvisioner) and provisioner.is_ready()

    def warm_up(self, seconds: float) -> bool:
        """Connect to a warm kernel and have it answer without a trace; blocks.

        The run then finds a client that is connected, and a kernel whose first answer, which takes longest,
        is behind it.

        Args:
            seconds: The time limit.

        Returns:
            Whether it answered.
        """
        try:
            asyncio.run(self._warm_up(seconds))
        except (UnfitKernelError, TimeoutError, OSError):
            return False
        return True

    async def _warm_up(self, seconds: float) -> None:
        died = self._watch()
        try:
            await self._unless(died, self._first_answers(seconds))
        finally:
            self._unwatch()

    async def _first_answers(self, seconds: float) -> None:
        """Connect, and wait until the kernel answers, a forked one by executing nothing."""
        # With the manager's context, which limits what the sockets hold.
        client = self.manager.client(context=self.manager.context)
        assert isinstance(client, KernelClient)  # noqa: S101 - the manager's client_factory
        self.client = client
        client.open()
        await client.until_ready(seconds)
        if self.control is not None:
            await client.execute_silently("pass", seconds)

    async def _unless(self, died: asyncio.Future[None], work: Coroutine[Any, Any, None]) -> None:
        """Wait for something unless the process ends.

        Raises:
            KernelDiedError: It has ended.
        """
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, died}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise KernelDiedError("the process ended")
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        task.result()

    @property
    def is_reachable(self) -> bool:
        """Whether its sockets still exist."""
        return all(os.path.exists(f"{self.manager.ip}-{port}") for port in self.manager.ports)

    def why_unusable(self) -> str:
        """Return why a warm kernel must no longer be used; empty: it may."""
        if not self.is_reachable:
            return LOST_SOCKETS
        if self._rules is not None and not self._rules.is_current():
            return "the kernel cannot read a file or folder that is newer than itself"
        return ""

    @property
    def keeps_removed_file(self) -> bool:
        """Whether its rules keep the disk space of a file that was removed."""
        return self._rules is not None and self._rules.keeps_removed_file()

    def kill(self) -> None:
        """Kill the process, which must not have been reaped."""
        # Zero means this process's own group.
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def assign(
        self,
        working_folder: str,
        variables: Mapping[str, str],
        run_folder: str,
        files: Iterable[InputFile] = (),
    ) -> None:
        """Move a warm kernel to a run: working folder, variables, rules, and the files of its request.

        Raises:
            OSError: A file cannot be written.
            ForkServerError: It died, does not answer, or the run's folders were changed.
        """
        provisioner, spec = self.manager.provisioner, self.manager.kernel_spec
        async with contextlib.AsyncExitStack() as stack:
            ruleset: Ruleset | None = None
            if self._rules is not None and self._staging_dir is not None:
                own = self._folder, Path(working_folder), Path(run_folder)
                try:
                    self._staging_dir.move(run_folder)
                    ruleset = stack.enter_context(narrowed(self._rules.shared, own))
                except OSError as error:
                    raise ForkServerError(f"the run's folder was changed: {error}") from error
                self._writable = ruleset.writable
            # Before anything is executed in the folder, and Python remembers what it has.
            input_files.write(Path(run_folder), files)
            if isinstance(provisioner, ForkProvisioner) and provisioner.forked:
                # The user's start-up files are executed now, and may print more than the sockets hold.
                if self.client is not None:
                    await stack.enter_async_context(self.client.discarding())
                await provisioner.assign(working_folder, variables, ruleset)
            elif spec is not None:
                self._setup_code = languages.setup_code(spec.language, working_folder, variables)

    async def connect(self, address_space: int = 0) -> asyncio.Future[None]:
        """Wait until a cold kernel answers, or a warm one, which has answered, has executed its setup code.

        Args:
            address_space: How many bytes of address space it may have, and what it starts; zero: any.

        Returns:
            What is done as soon as the process has ended.

        Raises:
            UnfitKernelError: It has ended, or cannot be where it shall be.
            TimeoutError: The process did not become ready.
        """
        died = self._watch(address_space)
        # Counted from the start of the process.
        seconds = max(LEAST_TIMEOUT, READY_TIMEOUT + self._launched - time.monotonic())
        if self.client is None:
            await self._unless(died, self._first_answers(seconds))
        elif self._setup_code:
            await self._unless(died, self.client.execute_silently(self._setup_code, seconds))
        return died

    async def interrupt(self) -> None:
        """Interrupt the running cell in the way that the kernelspec names."""
        await self.manager.interrupt_kernel()

    async def drain(self, reader: asyncio.Future[Any]) -> None:
        """Let the task that reads the kernel's messages receive what the kernel sent before its end."""
        channel = getattr(self.client, "_iopub_channel", None)
        end = time.monotonic() + DRAIN_SECONDS
        while channel is not None and not reader.done() and time.monotonic() < end:
            if not await channel.socket.poll(_QUIET_MS):
                break
            await asyncio.sleep(0)

    def reap(self, wait: Callable[[int], int | None]) -> None:
        """Reap the process, if it has ended; `exit_code` knows how.

        Args:
            wait: Reaps a process, and returns its wait status; None: it has not ended.
        """
        process = getattr(self.manager.provisioner, "process", None)
        if process is not None and process.returncode is None:
            with contextlib.suppress(ChildProcessError):
                status = wait(process.pid)
                process.returncode = None if status is None else os.waitstatus_to_exitcode(status)

    def exit_code(self) -> int | None:
        """Return the exit code of the dead process (negative: the signal that killed it); None: unknown."""
        process = getattr(self.manager.provisioner, "process", None)
        code: int | None = process.poll() if process else None
        return None if getattr(process, "is_lost", False) else code

    def explain(self, text: str) -> str:
        """Return an explanation if the sandbox caused the error with this text; empty: it did not."""
        if self._rules is None or self._policy is None:
            return ""
        folder = "/"
        with contextlib.suppress(OSError):
            folder = os.readlink(f"/proc/{self.pid}/cwd")
        hidden = [Path(os.path.realpath(one)) for one in self._policy.hidden]
        return denial.explain(text, folder, self._rules.ruleset.readable, self._writable, hidden)

    def log_tail(self) -> str:
        """Return the end of the output of the process itself, such as a fatal error or a failed import."""
        return self._log.tail()

    def remove(self) -> None:
        """Rename the private folder; the process must have ended, and `close` deletes the folder.

        Deleting many files takes long, and the report of the run's end does not have to wait for it.
        """
        removed = self._folder.with_suffix(_REMOVED)
        with contextlib.suppress(OSError):
            self._folder.rename(removed)
            self._folder = removed

    def close(self) -> None:
        """Close the sockets and delete the private folder; the process must have ended."""
        self._unwatch()
        if self.control is not None:
            # The kernel was never assigned.
            self.control.close()
        if self.client is not None:
            self.client.close()
        if self._rules is not None:
            self._rules.ruleset.close()
        self._log.close()
        self.manager.cleanup_connection_file()
        self.manager.context.destroy(linger=0)
        if self._staging_dir is not None:
            self._staging_dir.remove()
        folder_tree.remove_if_possible(self._folder)

    def _environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Return the inherited variables, those that name the kernel's own folders, and the run's."""
        base = inherited()
        # The caller's variables must not choose what the worker reads, which is not confined.
        return {**base, **make_folders(self._folder, base), **variables}

    def _watch(self, address_space: int = 0) -> asyncio.Future[None]:
        """Watch for the end of the process; jupyter_client would poll once a second."""
        loop = asyncio.get_running_loop()
        died = loop.create_future()
        if not self.pid:
            return died
        if address_space:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(self.pid, resource.RLIMIT_AS, (address_space, address_space))
        self._pidfd = descriptor = os.pidfd_open(self.pid)

        def ended() -> None:
            loop.remove_reader(descriptor)
            if not died.done():
                died.set_result(None)

        loop.add_reader(descriptor, ended)
        return died

    def _unwatch(self) -> None:
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None


# What IPython writes into a profile: a database for %store, %bookmark, %cd and the like, the history, logs,
# and files of running processes. Everything else in a profile is configuration.
_PROFILE_DATA = ("db", "history.sqlite*", "log", "pid", "security")

_MOST_ENTRIES = 1000

# What Jupyter writes: connection files of kernels, and the signatures of notebooks that were saved.
_JUPYTER_DATA = ("runtime", "nbsignatures.db*", "notebook_secret")


def make_folders(folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Create the folders, and return the variables that name them.

    Args:
        folder: The kernel's private folder.
        environment: The worker's variables, which name the user's directories.
    """
    home = environment.get("HOME") or os.path.expanduser("~")
    share = environment.get("XDG_DATA_HOME") or os.path.join(home, ".local", "share")
    ipython, config, data = (_made(folder / name) for name in ("ipython", "jupyter", "jupyter-data"))
    for entry in _entries(environment.get("IPYTHONDIR") or os.path.join(home, ".ipython")):
        if entry.name.startswith("profile_") and os.path.isdir(entry):
            _link(_entries(entry), _made(ipython / entry.name), _PROFILE_DATA)
        else:
            _link([entry], ipython)
    _link(_entries(environment.get("JUPYTER_CONFIG_DIR") or os.path.join(home, ".jupyter")), config)
    _link(
        _entries(environment.get("JUPYTER_DATA_DIR") or os.path.join(share, "jupyter")), data, _JUPYTER_DATA
    )
    return {
        "TMPDIR": str(_made(folder / "tmp")),
        "IPYTHONDIR": str(ipython),
        "JUPYTER_CONFIG_DIR": str(config),
        "JUPYTER_DATA_DIR": str(data),
        "JUPYTER_RUNTIME_DIR": str(data / "runtime"),
    }


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _entries(folder: str | Path) -> Iterator[Path]:
    # Without a readable folder IPython and Jupyter use their defaults.
    with contextlib.suppress(OSError, RuntimeError):
        yield from itertools.islice(Path(folder).expanduser().absolute().iterdir(), _MOST_ENTRIES)


def _link(entries: Iterable[Path], folder: Path, data: tuple[str, ...] = ()) -> None:
    """Link the user's configuration, start-up files, extensions and kernelspecs, but no data."""
    for entry in entries:
        if not any(fnmatchcase(entry.name, pattern) for pattern in data):
            (folder / entry.name).symlink_to(entry)


class KernelLog:
    """An unnamed file for standard output and standard error of a kernel.

    Attributes:
        file: The file, for the process.

    Args:
        folder: A folder on the file system to use.
    """

    def __init__(self, folder: Path) -> None:
        # Read by this descriptor alone: under a name the kernel may put something else.
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - close() closes it

    def tail(self) -> str:
        """Return the end of the log."""
        size = os.fstat(self.file.fileno()).st_size
        tail = os.pread(self.file.fileno(), _LOG_TAIL_BYTES, max(0, size - _LOG_TAIL_BYTES))
        return plain(tail.decode(errors="replace"))

    def close(self) -> None:
        """Close the file, which removes it."""
        self.file.close()


class StagingDir:
    """A folder that a warm kernel may write, moved to the run's folder when the kernel is assigned.

    A rule of Landlock is for a folder rather than its name, and cannot be added for running threads.

    Args:
        folder: The folder to create it in.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self.path = Path(tempfile.mkdtemp(prefix="", dir=folder))

    def move(self, target: str) -> None:
        """Replace an empty folder.

        Raises:
            OSError: That folder is missing or not empty.
        """
        os.rename(self.path, target)

    def remove(self) -> None:
        """Remove it, unless it was moved."""
        with contextlib.suppress(OSError):
            self.path.rmdir()
