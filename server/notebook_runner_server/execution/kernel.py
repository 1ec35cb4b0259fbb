"""One kernel for one run: started over IPC sockets in a private folder, watched, never used again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_client.manager import AsyncKernelManager

from notebook_runner_server.execution.client import KernelClient
from notebook_runner_server.execution.processes import orphans

if TYPE_CHECKING:
    from notebook_runner_server.execution.interface import Job

READY_TIMEOUT = 60.0
"""Seconds that a kernel may take until it answers; nbclient's `startup_timeout`."""

DRAIN_SECONDS = 1.0
"""How long what an ended kernel has sent may take to be received."""

_QUIET_MS = 10

# Told to ipykernel before anything of the notebook. A kernel that prints faster than it is read drops what
# its socket cannot hold (1000 messages); with XPUB_NODROP it waits. A message with text that is no Unicode (a
# lone surrogate) cannot be encoded: printed text is lost, and an exception is told as another one; as an
# escape of JSON it can be.
_PREPARATION = """
import json
import zmq
from jupyter_client.jsonutil import json_default
kernel = get_ipython().kernel
kernel.iopub_thread.socket.setsockopt(zmq.XPUB_NODROP, 1)
pack = kernel.session.pack
def pack_any(message):
    try:
        return pack(message)
    except UnicodeEncodeError:
        return json.dumps(message, default=json_default).encode()
kernel.session.pack = pack_any
"""
# In a namespace of its own: the notebook's stays empty.
_PREPARE = f"--IPKernelApp.exec_lines=exec({_PREPARATION!r}, {{'get_ipython': get_ipython}})"
OWN_PREFIX = "NOTEBOOK_RUNNER_"
_LOG_TAIL_BYTES = 8192
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Kernel:
    """A kernel process and the client that talks to it.

    Attributes:
        manager: jupyter_client's manager of it.
        client: jupyter_client's client of it, after `start`.

    Args:
        job: The run that it is for.
        folder: Where the private folder for its sockets is made: short, for a socket's path may have 107
            bytes at the most.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="", dir=folder))
        self._job = job
        self._log = self._folder / "log"
        self.manager: AsyncKernelManager = AsyncKernelManager(
            kernel_name=job.kernel_name,
            transport="ipc",
            ip=str(self._folder / "k"),
            connection_file=str(self._folder / "kernel.json"),
            client_factory=KernelClient,
        )
        self.client: KernelClient | None = None
        self._pidfd: int | None = None

    async def start(self, on_death: Callable[[], None], address_space: int = 0) -> None:
        """Start the process and wait until it answers.

        Args:
            on_death: Called once, as soon as the process has ended.
            address_space: How many bytes of address space it may have, and what it starts; zero: any.

        Raises:
            TimeoutError: It did not get ready.
        """
        options: dict[str, Any] = {}
        if getattr(self.manager, "ipykernel", False):
            # As nbclient does: no run finds the history of another.
            options["extra_arguments"] = ["--HistoryManager.hist_file=:memory:", _PREPARE]
        orphans.paused = True
        with self._log.open("wb") as log:
            await self.manager.start_kernel(
                cwd=self._job.working_folder, env=self._environment(), stdout=log, stderr=log, **options
            )
        self._watch(on_death, address_space)
        orphans.paused = False
        orphans.reap()
        client = self.manager.client()
        assert isinstance(client, KernelClient)  # noqa: S101 - the manager was told so
        self.client = client
        # No heartbeat: the process itself is watched.
        client.start_channels(hb=False)
        await client.until_ready(READY_TIMEOUT)
        client.allow_stdin = False

    async def interrupt(self) -> None:
        """Interrupt the cell that is executed, in the way the kernelspec names."""
        await self.manager.interrupt_kernel()

    async def drain(self, reader: asyncio.Future[Any]) -> None:
        """Let the task that reads the kernel's messages take what the kernel sent before its end."""
        channel = getattr(self.client, "_iopub_channel", None)
        end = time.monotonic() + DRAIN_SECONDS
        while channel is not None and not reader.done() and time.monotonic() < end:
            if not await channel.socket.poll(_QUIET_MS):
                break
            await asyncio.sleep(0)

    def exit_code(self) -> int | None:
        """Return the exit code of the dead process, negative: the signal that ended it."""
        process = getattr(self.manager.provisioner, "process", None)
        return process.poll() if process else None

    def log_tail(self) -> str:
        """Return the end of what the process itself wrote: a fatal error, a failed import."""
        if not self._log.exists():
            return ""
        with self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - _LOG_TAIL_BYTES))
            return plain(file.read().decode(errors="replace"))

    def close(self) -> None:
        """Close the sockets and remove the private folder; the process must have ended."""
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
        orphans.paused = True
        if self.client is not None:
            self.client.stop_channels()
        self.manager.cleanup_connection_file()
        self.manager.context.destroy(linger=0)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(OWN_PREFIX)}
        own = {OWN_PREFIX + "RUN_ID": self._job.run_id, OWN_PREFIX + "RUN_DIR": self._job.run_folder}
        return {**inherited, **self._job.environment, **own}

    def _watch(self, on_death: Callable[[], None], address_space: int) -> None:
        """Learn of the end of the process at once; jupyter_client would poll each second."""
        process = getattr(self.manager.provisioner, "process", None)
        if process is None:
            return
        orphans.spared = process.pid
        if address_space:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_AS, (address_space, address_space))
        loop = asyncio.get_running_loop()
        self._pidfd = descriptor = os.pidfd_open(process.pid)

        def ended() -> None:
            loop.remove_reader(descriptor)
            on_death()

        loop.add_reader(descriptor, ended)


def plain(text: str) -> str:
    """Return text without terminal colours and without what no protocol can carry."""
    return _ANSI.sub("", text).encode(errors="replace").decode()
