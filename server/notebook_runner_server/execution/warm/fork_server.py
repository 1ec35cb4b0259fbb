"""The program of a fork server: it imports ipykernel, and forks a kernel for each request.

The interpreter of the kernelspec executes it, which need not have this package: only the standard library and
ipykernel are imported here. It has one thread, no ZeroMQ socket and no event loop, so forks are safe.

    python fork_server.py DESCRIPTOR HIDE [MODULE …]

DESCRIPTOR is a connected stream socket. With HIDE 1 no other process can inspect the fork server; its kernels
are ordinary processes again. After the imports it sends a line of JSON, `{"failed": {module: why}}`.

Each request is a length (`!I`) and that many bytes of JSON, with descriptors beside the length: the control
socket of the new kernel, its standard output and error, and a ruleset of Landlock if it is confined. The
answer is a line with the kernel's process id (0: no process could be created). The kernel is handed to the
nearest subreaper. It writes `ready` on its control socket when it has restricted itself and bound its
sockets, waits there for one more request of this form, which assigns it to a run, answers `done`, and closes
the socket.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[0] = str(Path(__file__).parents[2] / "confinement")

if TYPE_CHECKING:
    from notebook_runner_server.confinement import confine
else:
    import confine

confine.remove_from_sys_path()

import contextlib  # noqa: E402 - after the path is restored
import gc  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import socket  # noqa: E402
import struct  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402

# What a kernel imports while it starts and for its first cell, beyond what ipykernel.kernelapp brings.
_KERNEL_MODULES = (
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "ipykernel.zmqshell",
    "ipykernel.debugger",
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.core.oinspect",
    "IPython.extensions.storemagic",
    "sqlite3",
    "faulthandler",
    "tornado.platform.asyncio",
    "encodings.idna",
)


def main() -> None:
    """Import, report that, and fork until the other side is gone; in a fork, run the kernel."""
    link = socket.socket(fileno=int(sys.argv[1]))
    if int(sys.argv[2]):
        confine.set_dumpable(False)
    modules = sys.argv[3:]
    failed = _imported(modules)
    link.sendall(json.dumps({"failed": failed}).encode() + b"\n")
    # All forks share the objects of now: a garbage collection must not touch, and so copy, their pages.
    gc.collect()
    gc.freeze()
    while True:
        received = _received(link)
        if received is None:
            return
        request, (control, output, *rulesets) = received
        try:
            is_kernel = _forked(link, output)
        except OSError:
            link.sendall(b"0\n")
            is_kernel = False
        if is_kernel:
            _run_kernel(request, socket.socket(fileno=control), rulesets)
            return
        for descriptor in (control, output, *rulesets):
            os.close(descriptor)


def _imported(modules: list[str]) -> dict[str, str]:
    """Import all modules; return those that failed, and why."""
    for name in _KERNEL_MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    failed = {}
    before = set(os.listdir("/proc/self/fd"))
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - a module may raise anything
            failed[name] = f"{type(error).__name__}: {error}"
    if kept_open := set(os.listdir("/proc/self/fd")) - before:
        failed["*"] = f"the modules keep {len(kept_open)} files open, which all kernels would share"
    if threading.active_count() > 1:
        names = ", ".join(
            sorted(one.name for one in threading.enumerate() if one is not threading.main_thread())
        )
        failed["*"] = f"the modules started threads, which a fork would not have: {names}"
    return failed


def _received(link: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Return a request and its descriptors; None: the other side is gone."""
    head, descriptors, *_ = socket.recv_fds(link, 4, 3)
    if not head:
        return None
    return json.loads(_exactly(link, struct.unpack("!I", head)[0])), descriptors


def _exactly(link: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += link.recv(size - len(data)) or sys.exit()
    return data


def _forked(link: socket.socket, output: int) -> bool:
    """Fork twice, so that the kernel becomes the subreaper's child; return whether this is the kernel."""
    between = os.fork()
    if between:
        os.waitpid(between, 0)
        return False
    try:
        pid = os.fork()
    except OSError:
        pid = -1
    if pid:
        link.sendall(b"%d\n" % max(0, pid))
        os._exit(0)
    link.close()
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    return True


def _run_kernel(request: dict[str, Any], control: socket.socket, rulesets: list[int]) -> None:
    """Start ipykernel's application, as `python -m ipykernel_launcher` does."""
    from ipykernel.kernelapp import IPKernelApp  # noqa: PLC0415 - after the fork server's own imports
    from tornado.ioloop import IOLoop  # noqa: PLC0415 - the same

    for ruleset in rulesets:
        # Before any other thread exists, which would keep its rights.
        confine.restrict(ruleset)
    confine.set_dumpable(True)
    _apply_context(request["context"])
    _reseed()
    launcher = importlib.util.find_spec(request["module"])
    sys.argv = [launcher.origin if launcher and launcher.origin else "", *request["arguments"]]
    app: Any = IPKernelApp.instance()
    # The user's start-up files may use folder and variables.
    start_up = app._run_startup_files  # noqa: SLF001 - there is no other way
    app._run_startup_files = lambda: None  # noqa: SLF001 - as above
    if rulesets:
        confine.restrict_peer_pid(app, request["client"])
    app.initialize(request["arguments"])
    loop = IOLoop.current()

    def assigned(*_: object) -> None:
        loop.remove_handler(control)
        with control:
            received = _received(control)
            if received is None:
                # The worker is gone, and no run will use this kernel.
                os._exit(0)
            context, more = received
            for ruleset in more:
                confine.restrict(ruleset)
            _apply_context(context)
            _update_shell(app.shell)
            start_up()
            control.sendall(b"done\n")

    loop.add_handler(control, assigned, IOLoop.READ)
    control.sendall(b"ready\n")
    app.start()


def _apply_context(context: dict[str, Any]) -> None:
    """Set folder and environment as if the process had been started with them."""
    os.chdir(context["folder"])
    for name in context["unset"]:
        os.environ.pop(name, None)
    os.environ.update(context["set"])
    time.tzset()
    if "tempfile" in sys.modules:
        vars(sys.modules["tempfile"])["tempdir"] = None


def _update_shell(shell: Any) -> None:
    """Update what IPython noted of the folder when it started."""
    shell.starting_dir = os.getcwd()
    shell.user_ns["_dh"][:] = [type(one)(os.getcwd()) for one in shell.user_ns["_dh"][:1]]


def _reseed() -> None:
    """Reseed random generators that would otherwise repeat in each fork; `random` reseeds itself."""
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "multiprocessing.process" in sys.modules:
        sys.modules["multiprocessing.process"].current_process().authkey = os.urandom(32)


if __name__ == "__main__":
    main()
