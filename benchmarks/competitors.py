"""Time one execution of a notebook with each competitor, each in a fresh kernel."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import output_from_msg

from benchmarks.notebooks import outputs, read, written

SECONDS = 120.0


@dataclass(frozen=True)
class Sample:
    """The duration of one execution and of its cells alone (0: unknown), in seconds, and its outputs."""

    seconds: float
    outputs: list[Any]
    cells: float = 0.0


Competitor = Callable[[NotebookNode], Sample]


def nbclient(node: NotebookNode) -> Sample:
    """Execute with nbclient."""
    copy = read(written(node))
    begin = time.perf_counter()
    NotebookClient(copy).execute(stderr=subprocess.DEVNULL)
    return Sample(time.perf_counter() - begin, outputs(copy))


def jupyter_client(node: NotebookNode) -> Sample:
    """Execute with a minimal loop of jupyter_client: the lower bound."""
    copy = read(written(node))
    begin = time.perf_counter()
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(stderr=subprocess.DEVNULL)
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=SECONDS)
        first = time.perf_counter()
        for cell in copy.cells:
            _execute(client, cell)
        cells = time.perf_counter() - first
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return Sample(time.perf_counter() - begin, outputs(copy), cells)


def _execute(client: Any, cell: NotebookNode) -> None:
    request = client.execute(cell.source)
    while True:
        message = client.get_iopub_msg(timeout=SECONDS)
        if message["parent_header"].get("msg_id") != request:
            continue
        kind = message["msg_type"]
        if kind == "status" and message["content"]["execution_state"] == "idle":
            break
        if kind in ("stream", "execute_result", "display_data", "error"):
            cell.outputs.append(output_from_msg(message))
    while client.get_shell_msg(timeout=SECONDS)["parent_header"].get("msg_id") != request:
        pass


def papermill_api(node: NotebookNode) -> Sample:
    """Execute with papermill's API."""

    def execute(source: Path, target: Path) -> None:
        papermill.execute_notebook(source, target, progress_bar=False, stderr_file=None)

    return _by_files(node, execute)


def papermill_command(node: NotebookNode) -> Sample:
    """`papermill in.ipynb out.ipynb`."""
    return _by_files(node, lambda source, target: _call("papermill", "--no-progress-bar", source, target))


def nbconvert(node: NotebookNode) -> Sample:
    """`jupyter nbconvert --execute --to notebook`."""

    def execute(source: Path, target: Path) -> None:
        _call("jupyter", "nbconvert", "--execute", "--to", "notebook", "--output", target, source)

    return _by_files(node, execute)


def _call(program: str, *arguments: str | Path) -> None:
    command = [str(Path(sys.executable).with_name(program)), *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)


def _by_files(node: NotebookNode, execute: Callable[[Path, Path], None]) -> Sample:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        source, target = Path(folder, "in.ipynb"), Path(folder, "out.ipynb")
        nbformat.write(node, source)
        begin = time.perf_counter()
        execute(source, target)
        return Sample(time.perf_counter() - begin, outputs(nbformat.read(target, as_version=4)))


OTHERS: dict[str, Competitor] = {
    "jupyter_client loop": jupyter_client,
    "nbclient": nbclient,
    "papermill API": papermill_api,
    "papermill command": papermill_command,
    "nbconvert command": nbconvert,
}
