"""Files as Kubernetes mounts them from a ConfigMap: links into a folder that is replaced as a whole."""

from collections.abc import Callable
from pathlib import Path

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import perform, texts
from tests.support.notebooks import content
from tests.support.server import Server


def mount(folder: Path, version: str, name: str, data: bytes) -> None:
    """Puts a file there as the kubelet does, or its next version in its place."""
    real = folder / f"..{version}"
    real.mkdir(parents=True)
    (real / name).write_bytes(data)
    (folder / "..new").symlink_to(real.name)
    (folder / "..new").rename(folder / "..data")
    if not (folder / name).is_symlink():
        (folder / name).symlink_to(f"..data/{name}")


def test_a_notebook_of_a_config_map(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """It runs by its path, and the next run reads what has taken its place."""
    root = tmp_path / "notebooks"
    mount(root, "first", "report.ipynb", content("print('first')"))
    server = make_server("--notebook-root", str(root), "--default-notebook", "report.ipynb")
    _, events = perform(server.stub, pb.StartRequest())
    assert texts(events) == "first\n"
    mount(root, "second", "report.ipynb", content("print('second')"))
    _, events = perform(server.stub, pb.StartRequest(notebook_path="report.ipynb"))
    assert texts(events) == "second\n"
