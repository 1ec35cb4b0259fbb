"""What a notebook finds in its environment, and what becomes of the values that its caller gave."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.attacks import ENVIRONMENT, SECRET, attacked
from tests.support.calls import artefact, follow, inline, perform, reach, start
from tests.support.unprivileged import UnprivilegedServer, unprivileged_home

GIVEN = "a-value-of-the-caller-9876543210"


def test_the_servers_secrets_are_not_in_it(attack: Callable[..., Any]) -> None:
    """Neither in Python nor in a child nor in what /proc tells; what programs need is."""
    found = attack(
        "import subprocess\n"
        "told['python'] = dict(os.environ)\n"
        "told['child'] = subprocess.run(['env'], capture_output=True, text=True).stdout\n"
        "told['proc'] = Path('/proc/self/environ').read_text()\n"
    )
    assert SECRET not in json.dumps(found)
    assert not set(found["python"]) & set(ENVIRONMENT) - {"TZ"}
    assert found["python"]["TZ"] == "UTC"
    assert {"PATH", "HOME", "TMPDIR"} <= set(found["python"])


def test_the_operator_adds_names(make_plain: Callable[..., UnprivilegedServer]) -> None:
    """By their name, or by how they begin."""
    environment = {"HTTPS_PROXY": "http://proxy", "TEAM_A": "a", "TEAM_B": "b", "OTHER": "no"}
    server = make_plain("--kernel-environment", "HTTPS_PROXY, TEAM_*", environment=environment)
    found = attacked(server, "told = dict(os.environ)")
    assert {name: found.get(name) for name in environment} == {**environment, "OTHER": None}


def test_given_values_are_nowhere_after_the_run(make_plain: Callable[..., UnprivilegedServer]) -> None:
    """Not in an answer, not in the log at its most talkative, not in a byte below the state folder."""
    server = make_plain("--log-level", "debug")
    ended = perform(
        server.stub,
        inline("import os; assert os.environ['GIVEN'][:7] == 'a-value'; 1 / 0", environment={"GIVEN": GIVEN}),
    )
    run_id = ended.run.run_id
    answers = [str(ended.run), str(ended.events), str(server.stub.List(pb.ListRequest()))]
    answers += [str(server.stub.Info(pb.InfoRequest())), str(list(follow(server.stub, run_id)))]
    answers += [artefact(server.stub, run_id, format=form).decode() for form in ("", "error", "html")]
    assert not [answer for answer in answers if GIVEN in answer]
    assert GIVEN not in str(server.log)
    assert GIVEN not in "".join(server.noise)
    assert holding(server.state_dir, GIVEN) == []


def holding(folder: Path, text: str) -> list[Path]:
    """The files below a folder whose bytes hold a text."""
    return [one for one in folder.rglob("*") if one.is_file() and text.encode() in one.read_bytes()]


def test_a_refused_value_is_not_told(make_plain: Callable[..., UnprivilegedServer]) -> None:
    """The error names the rule, and not what was given."""
    server = make_plain("--log-level", "debug")
    with pytest.raises(grpc.RpcError) as caught:
        start(server.stub, inline("1", environment={"A=B": GIVEN}))
    assert GIVEN not in str(caught.value)
    assert GIVEN not in str(server.log)


def test_given_values_are_gone_when_a_dead_server_comes_back() -> None:
    """The run was cut short; what it was given is removed at the next start."""
    with unprivileged_home() as home:
        with UnprivilegedServer(home) as first:
            run = start(first.stub, inline("print(1)\nwhile True: pass", environment={"GIVEN": GIVEN}))
            reach(first.stub, run.run_id, "cell_output")
            # While the run may have to be started again, it is kept, for this user alone.
            (kept,) = holding(first.state_dir, GIVEN)
            assert (kept.name, kept.stat().st_mode & 0o777) == ("environment", 0o600)
            first.die()
        with UnprivilegedServer(home) as second:
            assert second.stub.List(pb.ListRequest()).runs[0].state == pb.RUN_STATE_INTERRUPTED
            assert holding(second.state_dir, GIVEN) == []
