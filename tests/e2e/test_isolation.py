"""Two runs share nothing, and a run on a kernel that was kept finds what it would on one of its own."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import inline, perform, texts
from tests.support.server import Server
from tests.support.warm import ON, kept, until_warm

pytestmark = pytest.mark.long

# What tells a forked kernel from one that was started by its kernelspec's command.
WARM = "any('warm/fork_server.py' in one for one in __import__('sys').orig_argv)"


@pytest.fixture(scope="module", params=["warm", "cold"])
def mode(request: pytest.FixtureRequest) -> str:
    """How kernels come to be."""
    return str(request.param)


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory, mode: str) -> Iterator[Server]:
    """A server for the tests of a mode, with numpy in every warm kernel."""
    options = [*ON, "--preload", "numpy"] if mode == "warm" else ["--no-warm-kernels"]
    with Server(tmp_path_factory.mktemp("state"), *options) as server:
        yield server


def told(server: Server, mode: str, *cells: str, **fields: Any) -> Any:
    """What the last cell prints as JSON, from a kernel that came to be as it shall."""
    if mode == "warm":
        kept(server)
        until_warm(server)
    ended = perform(server.stub, inline(*cells, f"print(json.dumps([{WARM}, told]))", **fields))
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run.failure
    warm, value = json.loads(texts(ended.events).splitlines()[-1])
    assert warm is (mode == "warm"), server.tail()
    return value


SPOIL = """
import builtins, json, os, sys, tempfile, pathlib, signal, warnings, locale
variable = 1
builtins.added = json.added = sys.added = 1
sys.path.append("/added")
os.makedirs("deeper"); os.chdir("deeper")
os.environ["ADDED"] = "1"
os.umask(0)
pathlib.Path(tempfile.gettempdir(), "added").touch()
descriptor = os.open("/dev/null", os.O_RDONLY)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
warnings.simplefilter("ignore")
get_ipython().history_manager.store_inputs(99, "added = 1")
told = None
"""
LOOK = """
import builtins, json, os, pathlib, signal, sys, tempfile, warnings
told = {
    "variables": sorted(name for name in globals() if name in ("variable", "descriptor")),
    "modules": [hasattr(one, "added") for one in (builtins, json, sys)],
    "path": "/added" in sys.path,
    "folder": os.getcwd() == os.environ["NOTEBOOK_RUNNER_RUN_DIR"] and os.listdir(".") == [],
    "environment": "ADDED" in os.environ,
    "umask": os.umask(0o22) != 0,
    "temporary": os.listdir(tempfile.gettempdir()),
    "signal": signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL,
    "warnings": any(one[0] == "ignore" and one[2] is Warning and not one[1] for one in warnings.filters),
    "history": [list(one) for one in get_ipython().history_manager.get_range()],
    "in": len(In), "out": len(Out),
}
"""


def test_a_run_finds_nothing_of_the_one_before(isolated: Server, mode: str) -> None:
    """Variables, modules, folder, environment, temporary files, signals, history, In and Out."""
    told(isolated, mode, SPOIL)
    found = told(isolated, mode, LOOK)
    history = found.pop("history")
    assert [line[:2] for line in history] == [[0, 1]]
    assert found == {
        "variables": [],
        "modules": [False] * 3,
        "path": False,
        "folder": True,
        "environment": False,
        "umask": True,
        "temporary": [],
        "signal": True,
        "warnings": False,
        "in": 2,
        "out": 0,
    }


RANDOM = """
import json, multiprocessing, numpy, os, random, secrets, tempfile, uuid
told = {
    "random": random.random(),
    "numpy": float(numpy.random.random()),
    "generator": float(numpy.random.default_rng().random()),
    "secrets": secrets.token_hex(),
    "uuid1": uuid.uuid1().hex,
    "uuid4": uuid.uuid4().hex,
    "temporary": tempfile.mktemp(),
    "authkey": bytes(multiprocessing.current_process().authkey).hex(),
    "session": get_ipython().kernel.session.session,
    "key": get_ipython().kernel.session.key.decode(),
    "ident": get_ipython().kernel.ident,
    "topic": get_ipython().displayhook.topic.decode(),
    "bcrypt": os.urandom(8).hex(),
}
"""


def test_two_runs_have_no_random_state_in_common(isolated: Server, mode: str) -> None:
    """Forks of one process start with equal generators unless somebody sees to it."""
    runs = [told(isolated, mode, RANDOM) for _ in range(3)]
    for name in runs[0]:
        values = {run[name] for run in runs}
        assert len(values) == 3, f"{name}: {values}"


DESCRIPTORS = """
import json, os
told = {}
for name in os.listdir("/proc/self/fd"):
    try:
        told[name] = os.readlink(f"/proc/self/fd/{name}")
    except FileNotFoundError:
        pass
"""


def test_two_runs_have_no_descriptor_in_common(isolated: Server, mode: str) -> None:
    """Sockets, pipes and files of two kernels are others; only /dev/null is the same."""
    runs = [set(told(isolated, mode, DESCRIPTORS).values()) for _ in range(2)]
    common = runs[0] & runs[1]
    # The kinds of descriptor that have no identity.
    nameless = {one for one in common if one.startswith("anon_inode:")}
    assert common - nameless == {"/dev/null"}


PLACE = """
import json, os, subprocess, sys, tempfile, time
told = {
    "folder": os.getcwd(),
    "listed": [str(one) for one in _dh],
    "start": get_ipython().starting_dir,
    "variable": os.environ.get("GIVEN"),
    "child": subprocess.run(["sh", "-c", "echo $GIVEN; pwd"], capture_output=True, text=True).stdout.split(),
    "run": os.environ["NOTEBOOK_RUNNER_RUN_ID"],
    "zone": time.tzname,
    "temporary": tempfile.gettempdir() == os.environ["TMPDIR"] and tempfile.gettempdir() != "/tmp",
}
"""


def test_folder_and_environment_are_the_runs(isolated: Server, mode: str) -> None:
    """As Python, a child and the time zone see them."""
    given = {"GIVEN": "a value", "TZ": "UTC-5"}
    found = told(isolated, mode, PLACE, environment=given)
    folder = found["folder"]
    assert found["run"] in folder
    assert found["listed"] == [folder]
    assert found["start"] == folder
    assert found["variable"] == "a value"
    assert found["child"] == ["a", "value", folder]
    assert found["zone"] == ["UTC", "UTC"]
    assert found["temporary"] is True


@pytest.mark.parametrize(
    ("name", "value", "expression", "expected"),
    [
        ("PYTHONHASHSEED", "0", "hash('a') == hash('a') and __import__('sys').flags.hash_randomization", 0),
        ("PYTHONPATH", "/of/the/caller", "'/of/the/caller' in __import__('sys').path", True),
        ("LC_ALL", "C", "__import__('locale').setlocale(__import__('locale').LC_CTYPE)", "C"),
        ("OMP_NUM_THREADS", "1", "__import__('os').environ['OMP_NUM_THREADS']", "1"),
    ],
)
def test_what_is_read_once_is_read_by_a_kernel_of_its_own(
    isolated: Server, name: str, value: str, expression: str, expected: object
) -> None:
    """A process that runs cannot be given such a variable, so such a run does not take one."""
    source = f"import json\ntold = {expression}"
    assert told(isolated, "cold", source, environment={name: value}) == expected


FINGERPRINT = """
import gc, json, locale, os, resource, signal, sys, threading, warnings
own = os.path.dirname(os.environ["TMPDIR"])
shell, kernel, app = get_ipython(), get_ipython().kernel, get_ipython().kernel.parent
def public(one):
    # Only a kernel has its own identifier, and a comm manager has no kernel.
    names = [name for name in one.traits() if name not in ("ident", "kernel")]
    values = {name: getattr(one, name) for name in names}
    plain = {name: value for name, value in values.items() if isinstance(value, str | int | float | None)}
    return {name: str(value).replace(own, "") for name, value in plain.items()}
told = {
    "own": sorted(name for name, value in os.environ.items() if value.startswith(own)),
    "argv": [one.rpartition("/")[2] for one in sys.argv if "kernel" in one],
    "path": sys.path,
    "flags": repr(sys.flags),
    "executable": sys.executable,
    "warn": sys.warnoptions,
    "x": sorted(sys._xoptions),
    "environment": {
        name: value for name, value in os.environ.items()
        if name not in ("NOTEBOOK_RUNNER_RUN_ID", "NOTEBOOK_RUNNER_RUN_DIR", "PWD", "OLDPWD", "_")
        and not value.startswith(own)
    },
    "names": sorted(name for name in globals() if not name.startswith("_i")),
    "main": sys.modules["__main__"].__dict__ is globals(),
    "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
    "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "threads": sorted(one.name.rpartition("-")[0] or one.name for one in threading.enumerate()),
    "umask": os.umask(0o22),
    "limits": [resource.getrlimit(number) for number in range(16)],
    "nice": os.nice(0),
    "cpus": sorted(os.sched_getaffinity(0)),
    "groups": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()],
    "recursion": sys.getrecursionlimit(),
    "switch": sys.getswitchinterval(),
    "collector": [gc.isenabled(), gc.get_threshold()],
    "locale": [locale.setlocale(number) for number in range(7)],
    "encodings": [sys.getfilesystemencoding(), sys.stdout.encoding, locale.getpreferredencoding()],
    "filters": [[str(part) for part in one] for one in warnings.filters],
    "session": get_ipython().history_manager.session_number,
    "file": get_ipython().history_manager.hist_file,
    "profile": os.path.relpath(get_ipython().profile_dir.location, own),
    "hook": sys.excepthook.__qualname__,
    "stdin": os.readlink("/proc/self/fd/0").partition(":")[0],
    "orphan": os.getppid() == int(os.environ["JPY_PARENT_PID"]),
    "parts": [type(one).__qualname__ for one in shell.configurables],
    "wired": [
        shell.parent is kernel, app.kernel is kernel, app.shell is shell, kernel.shell is shell,
        kernel.session is app.session, shell.displayhook.session is app.session,
        shell.display_pub.session is app.session, shell.displayhook.pub_socket is kernel.iopub_socket,
        shell.display_pub.pub_socket is kernel.iopub_socket, kernel.profile_dir is shell.profile_dir,
        app.profile_dir is shell.profile_dir, shell.config is app.config, kernel.config is app.config,
        kernel._stdout is sys.stdout, kernel._stderr is sys.stderr, shell.log is app.log,
        shell.display_pub.topic == b"display_data", kernel.ident in shell.displayhook.topic.decode(),
        shell.user_module is sys.modules["__main__"], shell.user_ns is globals(),
        *(value is getattr(sys, name) for name, value in shell._orig_sys_module_state.items()),
        *(getattr(kernel.debugger, name, None) is getattr(app, name, None) for name in ("session", "log")),
    ],
    "traits": [public(one) for one in (app, kernel, *shell.configurables)],
    "config": [repr(one).replace(own, "") for one in (app.config, app.cli_config)],
    "command": [one.replace(own, "") for one in app.argv],
    "home": [shell.home_dir, shell.dir_stack, shell.ipython_dir.replace(own, "")],
    "database": shell.db.root.name if hasattr(shell.db, "root") else "",
    "logs": [shell.logger.home_dir, shell.logger.logfname],
    "aliases": sorted(shell.alias_manager.aliases),
    "magics": {kind: sorted(found) for kind, found in shell.magics_manager.magics.items()},
    "hidden": sorted(shell.user_ns_hidden),
    "hooks": sorted(shell.hooks), "events": {name: len(of) for name, of in shell.events.callbacks.items()},
    "extensions": sorted(shell.extension_manager.loaded),
    "files": [shell.tempfiles, shell.tempdirs],
    "builtins": sorted(dir(__import__("builtins"))),
    "prompts": [sys.ps1, sys.ps2],
    "pdb": [__import__("pdb").Pdb.__module__, __import__("pdb").set_trace.__module__],
    "handlers": [type(one).__qualname__ for one in app.log.handlers],
    "comms": [len(kernel.comm_manager.comms), sorted(kernel.comm_manager.targets)],
    "compiler": shell.compile.flags,
    "setup": [
        shell.safe_execfile.__qualname__, kernel.session.pack.__qualname__, sys.stderr.flush_interval,
        sys.stdout._schedule_flush.__qualname__,
        shell.compile.get_code_name("", "", 1).replace(str(os.getpid()), ""),
    ],
}
told["environment"].pop("JPY_PARENT_PID")
"""


def test_a_warm_kernel_is_as_a_cold_one(make_server: Callable[..., Server]) -> None:
    """Whatever a notebook can find out about its process, it finds the same."""
    server = make_server(*ON, environment={"HOME": os.environ.get("HOME", "/")})
    warm = told(server, "warm", FINGERPRINT)
    # This variable makes it a kernel of its own.
    cold = told(server, "cold", FINGERPRINT, environment={"PYTHONNOUSERSITE_": ""})
    del cold["environment"]["PYTHONNOUSERSITE_"]
    assert warm == cold


def test_a_warm_kernel_was_prepared(isolated: Server, mode: str) -> None:
    """Its shell is older than the fork, also in the sandbox and with preloaded modules."""
    # The collector lists no object from before a fork.
    source = "import gc, json\ntold = any(one is get_ipython() for one in gc.get_objects())"
    assert told(isolated, mode, source) is (mode == "cold")


def test_a_big_product_after_a_fork(isolated: Server, mode: str) -> None:
    """A library that had threads before the fork has them after it."""
    source = "import json, numpy\na = numpy.ones((600, 600)); told = float((a @ a).sum())"
    assert told(isolated, mode, source) == 600.0**3


def test_a_signal_reaches_a_warm_kernel(isolated: Server, mode: str) -> None:
    """How a kernel ended is told, whoever forked it."""
    if mode == "warm":
        kept(isolated)
    source = "import os, signal; os.kill(os.getpid(), signal.SIGUSR2)"
    failure = perform(isolated.stub, inline(source)).run.failure
    assert (failure.cause, failure.signal) == (pb.FAILURE_CAUSE_KERNEL_SIGNALED, "SIGUSR2")


def test_temporary_files_end_with_the_run(isolated: Server, mode: str) -> None:
    """The folder is the run's alone, and gone after it."""
    source = "import json, tempfile, os\n_, told = tempfile.mkstemp()"
    path = Path(told(isolated, mode, source))
    assert not path.exists()
    assert not path.parent.exists()
