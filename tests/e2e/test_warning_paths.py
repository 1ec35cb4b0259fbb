"""What a warning of a cell names as its file: what Jupyter shows, and no folder of the server's."""

import re
from collections.abc import Callable

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import executed, inline, perform
from tests.support.server import Server

pytestmark = pytest.mark.long

WARNING = """import warnings
def old():
    warnings.warn("do not", DeprecationWarning)
old()
"""
PLACES = """import inspect, tempfile, traceback
print(old.__code__.co_filename)
print(inspect.getsource(old))
try:
    1/0
except ZeroDivisionError:
    traceback.print_exc()
"""


@pytest.mark.parametrize("option", ["--warm-kernels", "--no-warm-kernels"])
def test_the_file_of_a_cell(make_server: Callable[..., Server], option: str) -> None:
    """It is named as papermill and nbclient print it, and its source is found by that name."""
    options = (option, "python3=1") if option == "--warm-kernels" else (option,)
    server = make_server(*options)
    run = perform(server.stub, inline(WARNING, PLACES, "1/0", allow_errors=True)).run
    assert run.state == pb.RUN_STATE_SUCCEEDED
    node = executed(server.stub, run.run_id)
    (warning,) = node.cells[0].outputs
    path, line, said = warning.text.partition("\n")[0].split(":", 2)
    assert (line, said.strip()) == ("3", "DeprecationWarning: do not")
    folder, _, name = path.rpartition("/")
    assert folder.startswith("/tmp/ipykernel_")  # noqa: S108 - a name that is compared
    assert folder.removeprefix("/tmp/ipykernel_").isdigit()  # noqa: S108 - the same
    assert name.removesuffix(".py").isdigit()
    told = {output.name: output.text for output in node.cells[1].outputs}
    assert told["stdout"].startswith(path + "\ndef old():")
    assert 'File "/tmp/ipykernel_' in told["stderr"]
    assert "nbr-" not in str(node)
    traceback = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(node.cells[2].outputs[0].traceback))
    assert "Cell In[3], line 1" in traceback
