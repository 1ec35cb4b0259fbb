"""What attacks by notebooks have in common: a server's secret, how they begin, and how they are run."""

import json
from typing import Any

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import inline, perform, texts
from tests.support.server import Server
from tests.support.warm import kept, until_warm

SECRET = "a-secret-of-the-server-0123456789"  # noqa: S105 - nobody's
ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "NOTEBOOK_RUNNER_TOKEN": SECRET,
    "DATABASE_URL": f"postgres://user:{SECRET}@host/db",
    "TZ": "UTC",
}

DENIED = {"EACCES", "EPERM", "EXDEV"}
"""What an attempt ends with that was denied; to link from folder to folder crosses devices, as it were."""

# What every attack begins with: it notes what it got, or how it was denied.
HEAD = """
import ctypes, errno, json, os, signal, socket, sys, threading
from pathlib import Path

told = {}

def attempt(name, action):
    try:
        got = action()
        told[name] = "got " + repr(got)[:200]
    except OSError as error:
        told[name] = errno.errorcode[error.errno]

def stat(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()

worker = int(os.environ["JPY_PARENT_PID"])
server = int(stat(worker)[1])
every = [int(one) for one in os.listdir("/proc") if one.isdecimal()]

def below(pid):
    found = []
    for one in every:
        try:
            if int(stat(one)[1]) == pid and one != os.getpid():
                found.append(one)
        except OSError:
            pass
    return found

run_folder = Path(os.environ["NOTEBOOK_RUNNER_RUN_DIR"])
state = run_folder.parents[2]
"""


def attacked(server: Server, source: str, *, mode: str = "warm", **fields: Any) -> Any:
    """What an attack noted, from a kernel that came to be as it shall."""
    if mode == "warm":
        kept(server)
        until_warm(server)
    warm = "any('warm/fork_server.py' in one for one in sys.orig_argv)"
    ended = perform(server.stub, inline(HEAD + source, f"print(json.dumps([{warm}, told]))", **fields))
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run.failure
    is_warm, noted = json.loads(texts(ended.events).splitlines()[-1])
    assert is_warm is (mode == "warm")
    return noted
