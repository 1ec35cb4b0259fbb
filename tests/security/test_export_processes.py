"""A converter reads the notebooks of all runs: what others can learn from it, and what it leaves behind."""

import os
import subprocess

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.attacks import ENVIRONMENT, SECRET
from tests.support.calls import inline, perform
from tests.support.processes import marked
from tests.support.unprivileged import UnprivilegedServer, as_nobody, unprivileged_home

# Read by each interpreter when it starts: a converter hangs when it has begun.
HANGING = """
import os, signal, sys
class Hanging:
    def find_spec(self, name, *_):
        if name == "nbconvert":
            with open(os.environ["NBR_EXPORT_GATE"], "w") as gate:
                gate.write("here")
            signal.pause()
if "notebook_runner_server.export.formats" in sys.orig_argv:
    sys.meta_path.insert(0, Hanging())
"""


def test_a_converter_is_closed_and_leaves_nothing() -> None:
    """It has no secret of the server's, nobody can look into it, and the next server removes its files."""
    with unprivileged_home() as home:
        site, gate = home / "site", home / "gate"
        site.mkdir()
        (site / "sitecustomize.py").write_text(HANGING)
        os.mkfifo(gate)
        environment = {**ENVIRONMENT, "PYTHONPATH": str(site), "NBR_EXPORT_GATE": str(gate)}
        with UnprivilegedServer(home, environment=environment) as server:
            run = perform(server.stub, inline("1")).run
            call = server.stub.Output.future(pb.OutputRequest(run_id=run.run_id, format="html"))
            assert gate.read_text() == "here"
            (converter,) = [pid for pid, name in marked(server.mark).items() if "export.formats" in name]
            look = subprocess.run(
                [*as_nobody(home), "cat", f"/proc/{converter}/environ"],
                capture_output=True,
                text=True,
                check=False,
            )
            assert (look.returncode, look.stdout) == (1, "")
            if os.geteuid() == 0:
                with open(f"/proc/{converter}/environ", encoding="utf-8") as variables:
                    assert SECRET not in variables.read()
            folder = (server.state_dir / "exports").readlink()
            assert len(os.listdir(folder)) == 1
            server.die()
            call.cancel()
        assert folder.exists()
        with UnprivilegedServer(home):
            assert not folder.exists()
