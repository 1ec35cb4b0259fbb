"""The example of a Prefect flow, as it is, in Prefect's own environment."""

from pathlib import Path

import nbformat

from notebook_runner import Client
from tests.client.test_cli_papermill import KERNEL
from tests.support.hosts import REPOSITORY, Host
from tests.support.notebooks import code, notebook, printed
from tests.support.server import Server

HOST = "prefect"
EXAMPLE = REPOSITORY / "examples" / "integrations" / "prefect_flow.py"


def run_flow(host: Host, server: Server, path: Path, *cells: str) -> int:
    """Runs the example with a notebook, and with a Prefect of its own."""
    node = notebook(code("region = 'south'", "parameters"), *cells, **KERNEL)
    nbformat.write(node, path / "report.ipynb")
    variables = {
        "PREFECT_HOME": str(path / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "200",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    command: list[str | Path] = ["python", EXAMPLE, "report.ipynb", "north"]
    return host.run(*command, cwd=path, target=server.target, **variables).returncode


def test_the_flow_runs_on_the_server(host: Host, server: Server, tmp_path: Path) -> None:
    """The parameter and the options arrive, and the flow has the executed notebook."""
    assert run_flow(host, server, tmp_path, "print(region)") == 0
    executed = nbformat.read(tmp_path / "report-north.ipynb", as_version=4)
    assert printed(executed, 2) == "north\n"
    with Client(server.target) as client:
        assert client.get().labels == {"flow": "report"}


def test_a_cell_that_raises_fails_the_flow(host: Host, server: Server, tmp_path: Path) -> None:
    """The flow fails as with papermill's own engine."""
    assert run_flow(host, server, tmp_path, "1/0") != 0
    assert not (tmp_path / "report-north.ipynb").exists()
