"""The program of a template: an interpreter that has imported ipykernel, and forks a kernel when asked to.

It is executed by the interpreter that the kernelspec names, which need not have this package: nothing but
the standard library and ipykernel is imported here. It has one thread, no ZeroMQ socket and no event loop,
so a fork of it is safe.

    python fork_server.py DESCRIPTOR HIDE [MODULE …]

DESCRIPTOR is a connected stream socket. With HIDE 1 no other process can look into the template; a kernel
that it forks is an ordinary process again. The template first sends a line of JSON,
`{"failed": {module: why}}`, when it has imported ipykernel and the modules.

Each request is a length (`!I`) and so many bytes of JSON, with descriptors beside the length: a stream socket
to the new kernel, what becomes its standard output and error, and, for a kernel that is to be restricted, a
ruleset of Landlock. It is answered with a line that holds the kernel's process id (0: there can be none). The
kernel is handed to the nearest subreaper above. It writes `ready` on its socket when it has restricted itself
and bound its own, waits there, beside its ordinary work, for one more request of this form that says where it
shall be, with another ruleset or none, answers `done`, and closes it.
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

import contextlib  # noqa: E402 - as said
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
    """Import, say so, and fork until the other side is gone; in a kernel, be that kernel."""
    link = socket.socket(fileno=int(sys.argv[1]))
    if int(sys.argv[2]):
        confine.set_dumpable(False)
    modules = sys.argv[3:]
    failed = _imported(modules)
    link.sendall(json.dumps({"failed": failed}).encode() + b"\n")
    # What is there now is the same for all: a collection shall not touch, and so copy, its pages.
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
    """Import all modules; return what could not be."""
    for name in _KERNEL_MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    failed = {}
    before = set(os.listdir("/proc/self/fd"))
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - a module may raise whatever it likes
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
    """Return a request, and the descriptors that came with it; None: the other side is gone."""
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
    """Fork twice, so that the kernel becomes the subreaper's child; tell whether this is the kernel."""
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
    from ipykernel.kernelapp import IPKernelApp  # noqa: PLC0415 - not before the template's own import
    from tornado.ioloop import IOLoop  # noqa: PLC0415 - the same

    for ruleset in rulesets:
        # Before there is any other thread, which would keep what it may.
        confine.restrict(ruleset)
    confine.set_dumpable(True)
    _apply_context(request["context"])
    _reseed()
    launcher = importlib.util.find_spec(request["module"])
    sys.argv = [launcher.origin if launcher and launcher.origin else "", *request["arguments"]]
    app: Any = IPKernelApp.instance()
    # The user's own start-up files may look at folder and variables.
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
                # Whoever kept this kernel for later is gone, and nobody will ever use it.
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
    """Make folder and environment what they would be, had the process been started with them."""
    os.chdir(context["folder"])
    for name in context["unset"]:
        os.environ.pop(name, None)
    os.environ.update(context["set"])
    time.tzset()
    if "tempfile" in sys.modules:
        vars(sys.modules["tempfile"])["tempdir"] = None


def _update_shell(shell: Any) -> None:
    """Let IPython know of the folder what it noted when it started."""
    shell.starting_dir = os.getcwd()
    shell.user_ns["_dh"][:] = [type(one)(os.getcwd()) for one in shell.user_ns["_dh"][:1]]


def _reseed() -> None:
    """Give this process randomness of its own; the standard library's `random` sees to itself."""
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "multiprocessing.process" in sys.modules:
        sys.modules["multiprocessing.process"].current_process().authkey = os.urandom(32)


if __name__ == "__main__":
    main()
