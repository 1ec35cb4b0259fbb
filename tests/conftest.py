"""Fixtures that every test folder shares: real servers."""

import gc
import inspect
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import nbformat
import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.support.async_guard import guarded
from tests.support.cluster import Cluster
from tests.support.gate import Gate
from tests.support.notebooks import code, notebook
from tests.support.pgbouncer import PgBouncer
from tests.support.postgres import Databases, Postgres
from tests.support.server import Server

# Started in the background, by a shell or by CI, this process ignores Ctrl-C, and so would all that it
# starts: tests that press it would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What a property says of itself goes before. How long examples take to make is a matter of the machine.
settings.register_profile(
    "tests",
    deadline=None,
    database=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")
# `make mutation` chooses it: a failure counts there, and not the shortest example that has it.
settings.register_profile(
    "mutation",
    deadline=None,
    database=None,
    max_examples=50,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)

FOLDER = Path(__file__).parent
KINDS = (
    "unit",
    "integration",
    "e2e",
    "fault",
    "load",
    "long",
    "cluster",
    "cluster_long",
    "postgres",
    "container",
    "host",
)
# What the tests of a folder are, unless a module or a test says otherwise by a marker of its own.
KIND_OF_FOLDER = {
    "api": "unit",
    "client": "unit",
    "cluster": "cluster",
    "container": "container",
    "docs": "unit",
    "e2e": "e2e",
    "examples": "e2e",
    "execution": "unit",
    "export": "unit",
    "faults": "fault",
    "gallery": "fault",
    "integrations": "host",
    "interop": "e2e",
    "observability": "e2e",
    "page": "long",
    "runs": "unit",
    "security": "fault",
    "transfer": "unit",
    "webhooks": "unit",
}
# The order of files. Those that start servers take longest; with the short ones at the end, processes that
# share the files end together.
LONGEST_FIRST = ("e2e", "integration")
STORES = ("sqlite", "postgres", "pgbouncer")
DEFAULT_CELLS = (code("who = 'world'", "parameters"), "print(f'hello {who}')")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--executor dask` (three workers), `--store` with `postgres` or `pgbouncer`, and `--cold`."""
    parser.addoption("--executor", choices=("process", "dask"), default="process", help="what executes runs")
    parser.addoption("--store", choices=STORES, default="sqlite", help="where histories are")
    parser.addoption("--cold", action="store_true", help="start servers without warm kernels")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Guards each asynchronous test; one that hangs fails when faulthandler shows where it waits."""
    if isinstance(item, pytest.Function):
        seconds = float(item.config.getini("faulthandler_timeout")) or None
        hypothesis = getattr(item.obj, "hypothesis", None)
        if hypothesis is not None and inspect.iscoroutinefunction(hypothesis.inner_test):
            hypothesis.inner_test = guarded(hypothesis.inner_test, seconds)
        elif inspect.iscoroutinefunction(item.obj):
            item.obj = guarded(item.obj, seconds)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collects without a search for garbage, then and later: thousands of tests stay for the session."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Gives each test the one marker of its kind; leaves out what is not for the executor or the store.

    Files that take long come first.
    """
    ranks: dict[Path, int] = {}
    for item in items:
        kinds = {mark.name for mark in item.iter_markers() if mark.name in KINDS}
        if not kinds:
            item.add_marker(KIND_OF_FOLDER.get(item.path.relative_to(FOLDER).parts[0], "unit"))
        if item.path.is_relative_to(FOLDER / "e2e"):
            item.add_marker("whole_run")
        if len(kinds) > 1:
            raise pytest.UsageError(f"{item.nodeid} has more than one kind: {', '.join(sorted(kinds))}.")
        rank = next(
            (n for n, kind in enumerate(LONGEST_FIRST) if item.get_closest_marker(kind)), len(LONGEST_FIRST)
        )
        ranks[item.path] = min(rank, ranks.get(item.path, rank))
    items.sort(key=lambda item: ranks[item.path])
    if config.getoption("--executor") == "dask":
        _leave_out(config, items, "process_pool")
    if config.getoption("--store") != "sqlite":
        _leave_out(config, items, "state_folder")


def _leave_out(config: pytest.Config, items: list[pytest.Item], marker: str) -> None:
    """Deselects the tests with a marker."""
    left_out = [one for one in items if one.get_closest_marker(marker)]
    items[:] = [one for one in items if not one.get_closest_marker(marker)]
    config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Keeps servers out of the tests that are said to start none."""
    Server.may_start = not {"unit", "integration"} & {mark.name for mark in item.iter_markers()}


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The event loop of asynchronous tests: what server and client use."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _executor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What executes the runs of every server of these tests."""
    if request.config.getoption("--cold"):
        Server.warm_kernels = {"NOTEBOOK_RUNNER_WARM_KERNELS": "none"}
    if request.config.getoption("--executor") == "process":
        yield
        return
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        Server.executor, Server.cluster_mark = cluster.environment, cluster.mark
        Server.machines = len(cluster.workers)
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL for all tests that leave it as they found it."""
    with Postgres() as running:
        yield running


@pytest.fixture(scope="session")
def pgbouncer(postgres: Postgres) -> Iterator[PgBouncer]:
    """A pooler before the PostgreSQL, for all tests that leave it as they found it."""
    with PgBouncer(postgres) as running:
        yield running


@pytest.fixture(scope="session", autouse=True)
def _store(request: pytest.FixtureRequest) -> None:
    """Where every server of these tests, and every store, has its history."""
    store = request.config.getoption("--store")
    if store != "sqlite":
        Server.databases = Databases(request.getfixturevalue(store))


@pytest.fixture(scope="session")
def notebook_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The notebook root of `server`, with its default notebook and one in a sub-folder."""
    root = tmp_path_factory.mktemp("notebooks")
    folder = root / "folder"
    folder.mkdir()
    nbformat.write(notebook(*DEFAULT_CELLS), root / "default.ipynb")
    (folder / "beside.py").write_text("ANSWER = 42\n")
    nbformat.write(notebook("import os, beside", "os.getcwd(), beside.ANSWER"), folder / "place.ipynb")
    return root


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, notebook_root: Path) -> Iterator[Server]:
    """One server for all tests that leave it as they found it: one worker, three runs may wait."""
    options = ["--notebook-root", str(notebook_root), "--default-notebook", "default.ipynb"]
    options += ["--queue", "3", "--heartbeat-interval", "0.5"]
    with Server(tmp_path_factory.mktemp("state"), *options) as running:
        yield running


@pytest.fixture
def make_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts servers of the test's own: `make_server(*options, environment=…, folder=…)`."""
    with ExitStack() as servers:
        yield lambda *options, **more: servers.enter_context(
            Server(tmp_path_factory.mktemp("state"), *options, **more)
        )


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate at which a notebook waits for the test."""
    opened = Gate(tmp_path)
    yield opened
    opened.close()
