"""The example of a Dagster asset, as it is, in Dagster's own environment."""

import subprocess
from pathlib import Path

import nbformat

from notebook_runner import Client
from tests.client.test_cli_papermill import KERNEL
from tests.support.hosts import REPOSITORY, Host
from tests.support.notebooks import code, notebook, printed
from tests.support.server import Server

HOST = "dagster"
EXAMPLE = REPOSITORY / "examples" / "integrations" / "dagster_assets.py"


def materialize(host: Host, server: Server, path: Path, *cells: str) -> subprocess.CompletedProcess[str]:
    """Materializes the asset with a notebook."""
    node = notebook(code("region = 'south'", "parameters"), *cells, **KERNEL)
    nbformat.write(node, path / "report.ipynb")
    return host.run("python", EXAMPLE, "north", cwd=path, target=server.target)


def test_the_asset_is_made_by_the_server(host: Host, server: Server, tmp_path: Path) -> None:
    """The parameter and the options arrive, and the executed notebook is there."""
    done = materialize(host, server, tmp_path, "print(region)")
    assert done.returncode == 0, done.stderr
    executed = nbformat.read(tmp_path / "report-north.ipynb", as_version=4)
    assert printed(executed, 2) == "north\n"
    with Client(server.target) as client:
        assert client.get().labels == {"asset": "report"}


def test_a_cell_that_raises_fails_the_asset(host: Host, server: Server, tmp_path: Path) -> None:
    """Dagster reports papermill's exception, and the notebook shows the traceback."""
    done = materialize(host, server, tmp_path, "1/0")
    assert done.returncode != 0
    assert "PapermillExecutionError" in done.stdout + done.stderr
    assert "ZeroDivisionError" in (tmp_path / "report-north.ipynb").read_text()
