"""The server loads what it needs, in an order in which its workers do the same meanwhile."""

import subprocess
import sys
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from notebook_runner_server.execution.kernel_specs import KernelSpecs
from tests.support.settings import clean

pytestmark = pytest.mark.unit


def printed(program: str, *arguments: str) -> str:
    """What a program prints in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=clean(),
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return done.stdout.strip()


def test_what_takes_long_is_loaded_after_the_workers_exist(tmp_path: Path) -> None:
    """Settings and checks alone come before: no gRPC, no nbformat, no jupyter_client."""
    program = """if True:
        import os, sys
        from notebook_runner_server.__main__ import main as serve
        from notebook_runner_server.config import resources
        def create_backend(settings):
            loaded = {name.partition(".")[0] for name in sys.modules}
            print(loaded & {"grpc", "google", "nbformat", "jupyter_client", "zmq", "prometheus_client"})
            sys.stdout.flush()
            os._exit(0)
        resources.create_backend = create_backend
        serve()
    """
    assert printed(program, "--listen", "127.0.0.1:0", "--state-dir", str(tmp_path / "state")) == "set()"
    assert not (tmp_path / "state").exists()


def test_what_a_server_never_uses_is_not_loaded() -> None:
    """Also when it has prepared a notebook: rich is the client's, ZeroMQ the workers'."""
    program = """if True:
        import sys
        from notebook_runner_server import logs
        from notebook_runner_server import app
        app.notebooks.warm_up()
        loaded = {name.partition(".")[0] for name in sys.modules}
        print(sorted(loaded & {"nbformat", "rich", "zmq", "tornado", "jupyter_client", "IPython"}))
    """
    assert printed(program) == "['nbformat']"


def test_a_worker_does_not_load_ipython() -> None:
    """It is the kernels', and jupyter_client imports it only for the name of a folder."""
    program = """if True:
        import sys
        from notebook_runner_server.execution import worker
        from notebook_runner_server.execution.kernel_specs import KernelSpecs
        print("python3" in KernelSpecs().get_all_specs(), "IPython" in sys.modules)
    """
    assert printed(program) == "True False"


@pytest.mark.parametrize("folder", ["", "mine"])
def test_kernelspecs_are_where_jupyter_client_looks(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same folders, in the same order, also below IPython's own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("IPYTHONDIR", raising=False)
    if folder:
        monkeypatch.setenv("IPYTHONDIR", str(tmp_path / folder))
    assert KernelSpecs().kernel_dirs == KernelSpecManager().kernel_dirs


def test_what_is_loaded_is_left_out_of_garbage_collections() -> None:
    """All objects of that moment."""
    program = """if True:
        import gc
        from notebook_runner_server import memory
        memory.settle()
        print(gc.get_freeze_count() > 1000, len(gc.get_objects()) < 1000)
    """
    assert printed(program) == "True True"
