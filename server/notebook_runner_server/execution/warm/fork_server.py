"""The program of a fork server: it prepares ipykernel, and forks a kernel for each request.

The interpreter of the kernelspec executes it, which need not have this package: only the standard library and
ipykernel are imported here. It has one thread, no ZeroMQ socket and no event loop, so forks are safe.

    python fork_server.py DESCRIPTOR HIDE [MODULE …]

DESCRIPTOR is a connected stream socket. With HIDE 1 no other process can inspect the fork server; its kernels
are ordinary processes again. It first receives a length (`!I`) and that many bytes of JSON: the arguments
that kernels are usually started with, and the code that these have them execute first. When everything is
prepared, it sends a line of JSON, `{"failed": {module: why}}`.

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
    from collections.abc import Callable

    from notebook_runner_server.confinement import confine
else:
    import confine

confine.remove_from_sys_path()

import atexit  # noqa: E402 - after the path is restored
import contextlib  # noqa: E402
import gc  # noqa: E402
import importlib.util  # noqa: E402
import inspect  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import struct  # noqa: E402
import tempfile  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402

# What a kernel imports while it starts, for its first cell and for its first traceback, beyond what
# ipykernel.kernelapp brings.
_KERNEL_MODULES = (
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "ipykernel.zmqshell",
    "ipykernel.debugger",
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.core.logger",
    "IPython.core.oinspect",
    "IPython.extensions.storemagic",
    "sqlite3",
    "faulthandler",
    "tornado.platform.asyncio",
    "encodings.idna",
    "pygments.formatters.terminal256",
    "stack_data",
)

# A kernel needs some 0.1 s for its start and first cell.
_REHEARSAL_SECONDS = 20


def main() -> None:
    """Prepare, report that, and fork until the other side is gone; in a fork, run the kernel."""
    link = socket.socket(fileno=int(sys.argv[1]))
    if int(sys.argv[2]):
        confine.set_dumpable(False)
    modules = sys.argv[3:]
    received = _received(link)
    if received is None:
        return
    usual, _ = received
    failed = _imported(modules)
    prepared = PreparedKernel(**usual) if _can_prepare(**usual) else None
    if prepared is not None:
        prepared.fill_caches()
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
            _run_kernel(request, socket.socket(fileno=control), rulesets, prepared)
            return
        for descriptor in (control, output, *rulesets):
            os.close(descriptor)


def _imported(modules: list[str]) -> dict[str, str]:
    """Import all modules; return those that failed, and why."""
    for name in _KERNEL_MODULES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    failed = {}
    before = _descriptors()
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - a module may raise anything
            failed[name] = f"{type(error).__name__}: {error}"
    if kept_open := _descriptors() - before:
        failed["*"] = f"the modules keep {len(kept_open)} files open, which all kernels would share"
    if threading.active_count() > 1:
        names = ", ".join(
            sorted(one.name for one in threading.enumerate() if one is not threading.main_thread())
        )
        failed["*"] = f"the modules started threads, which a fork would not have: {names}"
    return failed


def _descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


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


def _run_kernel(
    request: dict[str, Any], control: socket.socket, rulesets: list[int], prepared: PreparedKernel | None
) -> None:
    """Start ipykernel's application, as `python -m ipykernel_launcher` does."""
    from tornado.ioloop import IOLoop  # noqa: PLC0415 - after the fork server's own imports

    for ruleset in rulesets:
        # Before any other thread exists, which would keep its rights.
        confine.restrict(ruleset)
    confine.set_dumpable(True)
    _apply_context(request["context"])
    _reseed()
    launcher = importlib.util.find_spec(request["module"])
    sys.argv = [launcher.origin if launcher and launcher.origin else "", *request["arguments"]]
    client = request["client"] if rulesets else None
    app, start_up = _initialized(request["arguments"], client, prepared)
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


def _initialized(
    arguments: list[str], client: int | None, prepared: PreparedKernel | None
) -> tuple[Any, Callable[[], None]]:
    """Return the application, initialized but for the user's start-up files, and what executes these.

    Args:
        arguments: Its command line.
        client: The only process that may connect; None: any may.
        prepared: What was prepared before the fork.
    """
    from ipykernel.kernelapp import IPKernelApp  # noqa: PLC0415 - after the fork server's own imports

    def postponed(app: Any) -> Callable[[], None]:
        # The user's start-up files may use folder and variables.
        start_up: Callable[[], None] = app._run_startup_files  # noqa: SLF001 - there is no other way
        app._run_startup_files = lambda: None  # noqa: SLF001 - as above
        if client is not None:
            confine.restrict_peer_pid(app, client)
        return start_up

    if prepared is not None:
        if prepared.suits(arguments):
            start_up = postponed(prepared.app)
            with contextlib.suppress(ConfigurationFoundError):
                prepared.initialize(arguments)
                return prepared.app, start_up
        prepared.discard()
    app: Any = IPKernelApp.instance()
    start_up = postponed(app)
    app.initialize(arguments)
    return app, start_up


class ConfigurationFoundError(Exception):
    """A user has configured IPython, so a kernel cannot use what was prepared without that configuration."""


class PreparedKernel:
    """The part of an ipykernel that is the same in all kernels, created before the fork.

    This is the application with its parsed command line, and IPython's shell. The kernel object, its sockets,
    threads and identifiers are created in the fork, by the application's own `initialize`. Where that would
    create the shell, it gets this one, after the shell got what its constructor takes from the process:
    variables, folders, streams, a history.

    A user's configuration is code, which the fork server must not execute, and any object may depend on it: a
    fork that finds a configuration file creates everything again.

    Tried with ipykernel 6.29, 7.0, 7.3 and 7.4, IPython 8.39 and 9.18, and Python 3.10, 3.11 and 3.13.

    Args:
        arguments: The command line, without connection file.
        setup: The code of its `exec_lines`.
    """

    def __init__(self, arguments: list[str], setup: str) -> None:
        from ipykernel.kernelapp import IPKernelApp  # noqa: PLC0415 - after the fork server's own imports
        from IPython.core.profiledir import ProfileDir  # noqa: PLC0415 - the same

        self._arguments = arguments
        self._setup = compile(setup, "<string>", "exec")
        environment = dict(os.environ)
        with tempfile.TemporaryDirectory() as folder:
            # IPython creates its folder and profile together with the shell.
            os.environ["IPYTHONDIR"] = folder
            try:
                app: Any = IPKernelApp.instance()
                app.parse_command_line(["-f", "", *arguments])
                app.init_pdb()
                kernel = app.kernel_class.instance(
                    parent=app,
                    log=app.log,
                    profile_dir=ProfileDir(location=os.path.join(folder, "profile")),
                    user_ns=app.user_ns,
                )
            finally:
                os.environ.clear()
                os.environ.update(environment)
        self.app, self._shell = app, kernel.shell
        # Each fork has a kernel of its own, which does this again.
        type(kernel).clear_instance()
        self._shell.configurables.remove(kernel.comm_manager)
        self._shell.kernel, self._shell.parent = None, app
        # No process may use a database of SQLite that was opened before a fork.
        self._shell.history_manager.db.close()
        # Only a kernel has something to clean up.
        atexit.unregister(self._shell.atexit_operations)

    def fill_caches(self) -> None:
        """Compile the patterns that the first cell needs, and find the modules for the first traceback."""
        self._shell.transform_cell("pass\n")
        inspect.getmodule(self._setup)

    def suits(self, arguments: list[str]) -> bool:
        """Return whether a kernel with this command line can use what was prepared."""
        return arguments[:1] == ["-f"] and arguments[2:] == self._arguments

    def initialize(self, arguments: list[str]) -> None:
        """Initialize the application, with the shell.

        Raises:
            ConfigurationFoundError: The kernel cannot use what was prepared.
        """
        app, shell_class = self.app, type(self._shell)
        replaced = {
            "parse_command_line": self._set_command_line,
            "load_config_file": self._find_configuration,
            # The configuration is that of the command line.
            "update_config": lambda _: None,
            "_run_exec_lines": self._run_setup,
        }
        vars(app).update(replaced)
        shell_class.instance = staticmethod(self._adopted)
        try:
            app.initialize(arguments)
        finally:
            del shell_class.instance
            for name in replaced:
                del vars(app)[name]

    def rehearse(self) -> bool:
        """Become a kernel; return whether it executes a cell."""
        with tempfile.TemporaryDirectory() as folder:
            os.environ["IPYTHONDIR"] = folder
            # The path of a socket has at most 107 bytes.
            os.chdir(folder)
            self.app.transport, self.app.ip = "ipc", "kernel"
            # No other process may connect to a kernel that is not confined.
            confine.restrict_peer_pid(self.app, os.getpid())
            self.app._run_startup_files = lambda: None  # noqa: SLF001 - they are the user's
            self.initialize(["-f", os.path.join(folder, "kernel.json"), *self._arguments])
            is_connected = (
                self.app.shell is self._shell
                and self._shell.kernel is self.app.kernel
                and self._shell.displayhook.session is self._shell.display_pub.session is self.app.session
            )
            return is_connected and bool(self._shell.run_cell("pass").success)

    def discard(self) -> None:
        """Have the process create everything again."""
        self._shell.restore_sys_module_state()
        type(self._shell).clear_instance()
        type(self.app).clear_instance()

    def _set_command_line(self, arguments: list[str]) -> None:
        self.app.argv = list(arguments)
        self.app.connection_file = arguments[1]
        for config in (self.app.config, self.app.cli_config):
            config.IPKernelApp.connection_file = type(config.IPKernelApp.connection_file)(arguments[1])

    def _find_configuration(self) -> None:
        names = {name.removesuffix(".py") for name in ("ipython_config.py", *self.app.config_files)}
        for folder in self.app.config_file_paths:
            for name in names:
                if any(os.path.exists(os.path.join(folder, name + end)) for end in (".py", ".json")):
                    raise ConfigurationFoundError

    def _adopted(self, *, kernel: Any, profile_dir: Any, **_: Any) -> Any:
        """Return the shell, after everything that its constructor takes from the process."""
        shell = self._shell
        shell.parent = shell.kernel = kernel
        shell.init_ipython_dir(None)
        shell.init_profile_dir(profile_dir)
        if "db" in vars(shell):
            # Before version 9, IPython opens it immediately.
            shell.db = type(shell.db)(os.path.join(profile_dir.location, "db"))
        shell.init_environment()
        shell.init_virtualenv()
        shell.init_pushd_popd_magic()
        main = shell._orig_sys_modules_main_mod  # noqa: SLF001 - there is no other way
        shell.save_sys_module_state()
        shell._orig_sys_modules_main_mod = main  # noqa: SLF001 - as above
        shell.history_manager.init_db()
        shell.history_manager.new_session()
        _update_shell(shell)
        atexit.register(shell.atexit_operations)
        return shell

    def _run_setup(self) -> None:
        # As IPython executes `exec_lines`, without parsing and compiling them in each fork.
        exec(self._setup, {"get_ipython": self._shell.get_ipython})  # noqa: S102 - the server's own code


def _can_prepare(arguments: list[str], setup: str) -> bool:
    """Return whether this ipykernel can be prepared: a fork does all of it, and executes a cell."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1] == 0
    code = 1
    signal.alarm(_REHEARSAL_SECONDS)
    try:
        before = _descriptors()
        prepared = PreparedKernel(arguments, setup)
        if _descriptors() == before and threading.active_count() == 1:
            code = 0 if prepared.rehearse() else 1
    finally:
        os._exit(code)


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
