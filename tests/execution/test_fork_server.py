"""What a fork server prepares: kernels use it, and start without it where it would not suit them."""

import ctypes
import json
import os
import sys
from ast import literal_eval
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import zmq
from jupyter_client.blocking.client import BlockingKernelClient

from notebook_runner_server.confinement import confine
from notebook_runner_server.execution.ipykernel_args import ARGUMENTS
from notebook_runner_server.execution.kernel import make_folders
from notebook_runner_server.execution.warm import forking
from notebook_runner_server.execution.warm.forking import ForkedProcess, ForkServer

pytestmark = pytest.mark.integration

SECONDS = 60.0
# Frozen objects, which are those from before the fork, are not listed.
PREPARED = "not any(one is get_ipython() for one in __import__('gc').get_objects())"


class Kernels:
    """Kernels that a fork server forks, in a folder with IPython's configuration."""

    def __init__(self, server: ForkServer, folder: Path, environment: Mapping[str, str]) -> None:
        self.profile = folder / "home" / "profile_default"
        self.profile.mkdir(parents=True)
        self._server = server
        self._folder = folder
        self._environment = {**environment, "IPYTHONDIR": str(self.profile.parent)}
        self._count = 0

    @contextmanager
    def forked(self, *arguments: str) -> Iterator[tuple[BlockingKernelClient, ForkedProcess]]:
        """A kernel with a client."""
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        environment = {**self._environment, **make_folders(folder, self._environment)}
        file = folder / "kernel.json"
        ports = {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "hb_port": 4, "control_port": 5}
        info = {"transport": "ipc", "ip": str(folder / "k"), "key": "key", **ports}
        file.write_text(json.dumps(info))
        context = zmq.Context()
        with (folder / "log").open("w+") as log:
            process, control = self._server.fork(
                "ipykernel_launcher",
                ["-f", str(file), *ARGUMENTS, *arguments],
                str(folder),
                environment,
                log.fileno(),
                None,
            )
            try:
                control.settimeout(SECONDS)
                assert control.recv(64) == b"ready\n", (folder / "log").read_text()
                client = BlockingKernelClient(connection_file=str(file), context=context)
                client.load_connection_file()
                client.start_channels(hb=False, stdin=False)
                yield client, process
                client.stop_channels()
            finally:
                control.close()
                process.kill()
                process.wait()
                context.destroy(linger=0)

    def evaluated(self, expression: str, *arguments: str) -> Any:
        """The value of an expression in a new kernel."""
        with self.forked(*arguments) as (client, _):
            return value(client, expression)


def value(client: BlockingKernelClient, expression: str) -> Any:
    """The value of an expression, as the reply has it."""
    asked = {"evaluated": f"__import__('json').dumps({expression})"}
    reply = client.execute("", silent=True, user_expressions=asked, reply=True, timeout=SECONDS)
    found = reply["content"]["user_expressions"]["evaluated"]
    assert found["status"] == "ok", found
    return json.loads(literal_eval(found["data"]["text/plain"]))


@contextmanager
def opened(environment: Mapping[str, str] | None = None) -> Iterator[Kernels]:
    """A fork server and its kernels, in a folder whose name is short enough for sockets."""
    variables = {**os.environ, **(environment or {})}
    with TemporaryDirectory(prefix="f") as folder:
        server = ForkServer([sys.executable], [], variables, hide=True)
        try:
            assert server.wait_ready() == {}
            yield Kernels(server, Path(folder), variables)
        finally:
            server.close()
            # Other tests are to find this process as it was.
            ctypes.CDLL(None).prctl(confine.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives a busy machine time for each fork."""
    monkeypatch.setattr(forking, "FORK_SECONDS", SECONDS)


@pytest.fixture
def kernels() -> Iterator[Kernels]:
    """Kernels of a fork server of their own."""
    with opened() as found:
        yield found


def test_a_kernel_uses_what_was_prepared(kernels: Kernels) -> None:
    """The shell is older than the fork, and no kernel changes it for the next one."""
    with kernels.forked() as (client, _):
        assert value(client, f"[{PREPARED}, get_ipython().ev('exec(\"variable = 1\")')]") == [True, None]
    assert kernels.evaluated(f"[{PREPARED}, 'variable' in get_ipython().user_ns]") == [True, False]


@pytest.mark.parametrize("name", ["ipython_config", "ipython_kernel_config"])
@pytest.mark.parametrize("form", ["py", "json"])
def test_a_configured_kernel_starts_without_it(kernels: Kernels, name: str, form: str) -> None:
    """The configuration holds for everything, and is executed by the kernel and no other process."""
    marker = kernels.profile / "marker"
    (kernels.profile / f"{name}.{form}").write_text(
        json.dumps({"HistoryManager": {"db_cache_size": 77}})
        if form == "json"
        else "import os\nc.HistoryManager.db_cache_size = 77\n"
        f"open({str(marker)!r}, 'a').write(f'{{os.getpid()}} {{os.environ.get(\"TERM\")}}')\n"
    )
    expression = f"[{PREPARED}, get_ipython().history_manager.db_cache_size, __import__('os').getpid()]"
    prepared, size, pid = kernels.evaluated(expression)
    assert (prepared, size) == (False, 77)
    assert form == "json" or marker.read_text() == f"{pid} {os.environ.get('TERM')}"


def test_a_kernel_with_other_arguments_starts_without_it(kernels: Kernels) -> None:
    """A kernelspec may give any."""
    expression = f"[{PREPARED}, get_ipython().cache_size]"
    assert kernels.evaluated(expression, "--InteractiveShell.cache_size=77") == [False, 77]


STRANGE = {
    "has a thread": """
def init_hooks(self):
    hooks(self)
    threading.Thread(target=threading.Event().wait, daemon=True).start()
hooks, shells.InteractiveShell.init_hooks = shells.InteractiveShell.init_hooks, init_hooks
""",
    "keeps a file open": """
def init_hooks(self):
    hooks(self)
    os.open("/dev/null", os.O_RDONLY)
hooks, shells.InteractiveShell.init_hooks = shells.InteractiveShell.init_hooks, init_hooks
""",
    "has other names": "shells.InteractiveShell.save_sys_module_state = lambda self: None",
    "keeps its first session": """
zmqshell.ZMQDisplayPublisher.session = property(
    lambda self: vars(self).get("first"), lambda self, value: vars(self).setdefault("first", value)
)
""",
    "hangs": """
alarm, signal.alarm = signal.alarm, lambda _: alarm(1)
def run_cell(self, source, *others, **options):
    if source == "pass":
        threading.Event().wait()
    return run(self, source, *others, **options)
run, zmqshell.ZMQInteractiveShell.run_cell = zmqshell.ZMQInteractiveShell.run_cell, run_cell
""",
    "fails to execute": """
def run_cell(self, source, *others, **options):
    result = run(self, source, *others, **options)
    result.error_in_exec = ValueError() if source == "pass" else result.error_in_exec
    return result
run, zmqshell.ZMQInteractiveShell.run_cell = zmqshell.ZMQInteractiveShell.run_cell, run_cell
""",
}
STRANGER = """
import os, signal, sys, threading
if "fork_server.py" in str(sys.orig_argv):
    from IPython.core import interactiveshell as shells
    from ipykernel import zmqshell
    exec({source!r})
"""


@pytest.mark.parametrize("strange", STRANGE)
def test_nothing_is_prepared_with_a_strange_ipython(tmp_path: Path, strange: str) -> None:
    """Versions with other internals get kernels as without a preparation."""
    (tmp_path / "sitecustomize.py").write_text(STRANGER.format(source=STRANGE[strange]))
    with opened({"PYTHONPATH": str(tmp_path)}) as kernels:
        assert kernels.evaluated(PREPARED) is False


IDENTITIES = """[
    get_ipython().kernel.ident,
    get_ipython().displayhook.topic.decode(),
    get_ipython().kernel.session.session,
    get_ipython().kernel.session.msg_id.partition("_")[0],
]"""


def test_two_kernels_have_nothing_in_common(kernels: Kernels) -> None:
    """Each has its own identifiers, and its messages bear them."""
    first, second = (kernels.evaluated(IDENTITIES) for _ in range(2))
    assert not set(first) & set(second)
    assert first[0] in first[1]


def test_history_begins_with_the_kernel(kernels: Kernels) -> None:
    """Its one session did not begin before the fork."""
    begun = datetime.now()  # noqa: DTZ005 - as IPython's
    count, start = kernels.evaluated(
        "[get_ipython().history_manager.session_number,"
        " str(get_ipython().history_manager.get_session_info(0)[1])]"
    )
    assert count == 1
    assert datetime.fromisoformat(start) >= begun


def test_a_kernel_cleans_up_at_its_end(kernels: Kernels) -> None:
    """What IPython removes when a process exits, it removes in a fork as well."""
    with kernels.forked() as (client, process):
        path = Path(value(client, "str(get_ipython().mktempfile('text'))"))
        assert path.exists()
        client.shutdown()
        assert process.wait() == 0
        assert not path.exists()
