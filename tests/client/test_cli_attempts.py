"""Runs that are repeated, owners, priorities and shares in the command."""

import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from notebook_runner.cli import _waiting, main
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.fake_server import FakeServer, changed, printed, refusal

pytestmark = pytest.mark.integration

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
POLICY = pb.RetryPolicy(
    max_retries=2,
    states=[pb.RUN_STATE_TIMED_OUT],
    backoff=Duration(seconds=5),
    max_backoff=Duration(seconds=60),
)
CRASHED = pb.Failure(cause=pb.FAILURE_CAUSE_KERNEL_SIGNALED, message="The kernel was ended by SIGSEGV.")
LATER = Timestamp(seconds=4_000_000_000)
Command = Callable[..., Result]


def attempt(number: int, state: pb.RunState.ValueType, **fields: Any) -> pb.Run:
    """An attempt of a run that is repeated once."""
    has_ended = state >= pb.RUN_STATE_SUCCEEDED
    run = pb.Run(run_id=f"r{number}", state=state, attempt=number, retry=POLICY, owner="ada", **fields)
    if number == 2:
        run.retry_of = "r1"
    elif has_ended:
        run.retried_by = "r2"
    if has_ended and state != pb.RUN_STATE_SUCCEEDED:
        run.failure.CopyFrom(CRASHED)
    return run


FIRST = attempt(1, pb.RUN_STATE_CRASHED)


@pytest.fixture
def command(fake: FakeServer) -> Command:
    """Runs the command against the fake server."""
    return lambda *arguments: CliRunner().invoke(main, ["--target", fake.target, *map(str, arguments)])


def script(fake: FakeServer, end: pb.RunState.ValueType = pb.RUN_STATE_SUCCEEDED) -> None:
    """Scripts a run that is repeated once."""
    fake.answers("Start", pb.StartResponse(run=attempt(1, pb.RUN_STATE_QUEUED)))
    fake.answers("Progress", changed(1, attempt(1, pb.RUN_STATE_RUNNING)), changed(2, FIRST))
    fake.answers(
        "Progress",
        changed(1, attempt(2, pb.RUN_STATE_QUEUED, not_before=LATER)),
        changed(2, attempt(2, end)),
    )


def asked(fake: FakeServer, kind: type[Any]) -> list[Any]:
    """The requests of one kind."""
    return [one for one in fake.asked if isinstance(one, kind)]


def test_run_follows_the_next_attempt(command: Command, fake: FakeServer) -> None:
    """It says how the first one ended, which run repeats it, and when; the exit code is the last one's."""
    script(fake)
    done = command("run", "--retries", 2)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "run r1 running"
    assert lines[1:4] == [
        "run r1 crashed",
        "run r1 crashed (attempt 1 of 3): The kernel was ended by SIGSEGV.",
        "repeating it as run r2 (attempt 2 of 3)",
    ]
    assert lines[4].startswith("run r2 queued, not before 2096-10-02 ")
    assert lines[5:] == ["run r2 succeeded", "run r2 succeeded (attempt 2 of 3)"]
    script(fake, pb.RUN_STATE_TIMED_OUT)
    assert command("run", "--retries", 1).exit_code == 3


def test_results_are_those_of_the_last_attempt(command: Command, fake: FakeServer) -> None:
    """What is written and printed is the result of the run that ended the chain."""
    script(fake)
    content = b"{}"
    fake.answers("Output", pb.OutputResponse(content=content, total_bytes=2, next_offset=2))
    assert command("run", "-o", "-").stdout == "{}"
    assert [one.run_id for one in asked(fake, pb.OutputRequest)] == ["r2"]


def test_attempts_as_json(command: Command, fake: FakeServer) -> None:
    """Each event is an object; the last of an attempt names the next one, whose first names the run."""
    script(fake)
    events = [json.loads(line)["run_changed"] for line in command("run", "--json").stdout.splitlines()]
    assert [(one["run_id"], one["retried_by"]) for one in events] == [
        ("r1", ""),
        ("r1", "r2"),
        ("r2", ""),
        ("r2", ""),
    ]
    assert events[-1]["retry"] == {
        "max_retries": 2,
        "states": ["timed_out"],
        "backoff": 5,
        "max_backoff": 60,
    }


def test_attempts_with_quiet(command: Command, fake: FakeServer) -> None:
    """A failure and its repetition are not kept quiet, success is."""
    script(fake)
    done = command("run", "--quiet")
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "run r1 crashed (attempt 1 of 3): The kernel was ended by SIGSEGV.",
        "repeating it as run r2 (attempt 2 of 3)",
    ]


def test_watch_follows_attempts_and_a_snapshot_does_not(command: Command, fake: FakeServer) -> None:
    """`--after-sequence` counts the events of the attempt that is named."""
    script(fake)
    fake.answers("Get", pb.GetResponse(run=FIRST))
    done = command("watch", "r1", "--after-sequence", 1)
    assert done.exit_code == 0
    assert [(one.run_id, one.after_sequence) for one in asked(fake, pb.ProgressRequest)] == [
        ("r1", 1),
        ("r2", 0),
    ]
    fake.answers("Get", pb.GetResponse(run=FIRST))
    fake.answers("Progress", changed(1, FIRST))
    done = command("watch", "r1", "--snapshot")
    assert done.exit_code == 5
    assert "crashed (attempt 1 of 3)" in done.stdout
    assert len(asked(fake, pb.ProgressRequest)) == 3


def test_an_attempt_that_was_deleted(command: Command, fake: FakeServer) -> None:
    """The error is shown, and no attempt before it is taken for the end."""
    fake.answers("Get", pb.GetResponse(run=FIRST))
    fake.answers("Progress", changed(1, FIRST))
    fake.answers("Progress", refusal(grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND", "Unknown run 'r2'."))
    done = command("watch", "r1")
    assert done.exit_code == 2
    assert "RUN_NOT_FOUND" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "policy"),
    [
        (("--retries", 3), pb.RetryPolicy(max_retries=3)),
        (("--retries", 0), None),
        ((), None),
        (
            ("--retries", 1, "--retry-on", "crashed, timed-out", "--retry-backoff", "10s"),
            pb.RetryPolicy(
                max_retries=1,
                states=[pb.RUN_STATE_CRASHED, pb.RUN_STATE_TIMED_OUT],
                backoff=Duration(seconds=10),
            ),
        ),
        (
            ("--retries", 1, "--retry-backoff", "0", "--retry-max-backoff", "1.5m"),
            pb.RetryPolicy(max_retries=1, backoff=Duration(), max_backoff=Duration(seconds=90)),
        ),
    ],
)
def test_options_of_a_policy(
    command: Command, fake: FakeServer, arguments: tuple[Any, ...], policy: pb.RetryPolicy | None
) -> None:
    """Each reaches the request, and zero repetitions are no policy."""
    fake.answers("Start", pb.StartResponse(run=pb.Run(run_id="r")))
    assert command("start", "--priority", "-5", *arguments).exit_code == 0
    (start,) = fake.asked
    assert start.priority == -5
    assert (start.retry if start.HasField("retry") else None) == policy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--retry-on", "crashed"), "--retry-on needs --retries N."),
        (("--retries", "0", "--retry-on", "failed"), "Expected crashed, interrupted or timed-out"),
        (("--retries", "1", "--retry-on", "gone"), "Unknown state 'gone'"),
        (("--retries", "1", "--retry-on", ""), "Unknown state ''"),
        (("--retries", "101"), "101 is not in the range"),
        (("--retry-max-backoff", "5m"), "--retry-max-backoff needs --retries N."),
        (("--priority", "101"), "101 is not in the range"),
    ],
)
def test_wrong_options(command: Command, fake: FakeServer, arguments: tuple[str, ...], message: str) -> None:
    """Before any call, with what to write instead."""
    done = command("start", *arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert fake.asked == []


@pytest.mark.parametrize(
    ("arguments", "retries", "states", "priority"),
    [
        ((), 2, [pb.RUN_STATE_TIMED_OUT], 7),
        (("--retries", "5", "--priority", "0"), 5, [pb.RUN_STATE_TIMED_OUT], 0),
        (("--retry-on", "crashed"), 2, [pb.RUN_STATE_CRASHED], 7),
        (("--retries", "0"), 0, [], 7),
    ],
)
def test_rerun_takes_priority_and_policy(
    command: Command,
    fake: FakeServer,
    arguments: tuple[str, ...],
    retries: int,
    states: list[pb.RunState.ValueType],
    priority: int,
) -> None:
    """From the run, unless options change them."""
    before = attempt(2, pb.RUN_STATE_SUCCEEDED, notebook_path="a.ipynb", priority=7)
    fake.answers("Get", pb.GetResponse(run=before))
    fake.answers("Start", pb.StartResponse(run=pb.Run(run_id="r")))
    fake.answers("Progress", changed(1, pb.Run(run_id="r", state=pb.RUN_STATE_SUCCEEDED)))
    assert command("rerun", "r2", *arguments).exit_code == 0
    (start,) = asked(fake, pb.StartRequest)
    assert (start.retry.max_retries, list(start.retry.states), start.priority) == (retries, states, priority)
    assert start.retry.backoff.seconds == (5 if retries else 0)


def test_rerun_of_a_run_without_a_policy(command: Command, fake: FakeServer) -> None:
    """What changes a policy needs one."""
    fake.answers("Get", pb.GetResponse(run=pb.Run(run_id="r")))
    done = command("rerun", "r", "--retry-on", "crashed")
    assert (done.exit_code, asked(fake, pb.StartRequest)) == (2, [])
    assert "--retry-on needs --retries N." in done.stderr


def test_list_names_owners_if_there_are_several(command: Command, fake: FakeServer) -> None:
    """And attempts if there are any; as JSON both are always there."""
    own = pb.Run(run_id="r3", owner="ada", state=pb.RUN_STATE_RUNNING, attempt=1)
    fake.answers("List", pb.ListResponse(runs=[own]))
    assert command("list").stdout.splitlines()[0].split()[-1] == "NAME"
    fake.answers("List", pb.ListResponse(runs=[own]))
    assert json.loads(command("list", "--json").stdout)["owner"] == "ada"
    other = pb.Run(run_id="r4", state=pb.RUN_STATE_RUNNING, owner="bob\x1b[2J")
    fake.answers("List", pb.ListResponse(runs=[other, attempt(2, pb.RUN_STATE_RUNNING), FIRST]))
    heading, *lines = command("list").stdout.splitlines()
    assert heading.split()[5:] == ["NAME", "ATTEMPT", "OWNER", "REASON"]
    assert [line[heading.index("ATTEMPT") :].split()[:1] for line in lines] == [["bob"], ["2"], ["1"]]
    assert lines[1][heading.index("ATTEMPT") :].split() == ["2", "of", "3", "ada"]
    assert "\x1b" not in "".join(lines)


def test_list_of_an_owner(command: Command, fake: FakeServer) -> None:
    """The server filters."""
    fake.answers("List", pb.ListResponse())
    assert command("list", "--owner", "bob").exit_code == 0
    assert fake.asked[0].owner == "bob"


def test_show_has_owner_and_chain(command: Command, fake: FakeServer) -> None:
    """Whose the run is, which attempt, which runs are before and after it, and when it is repeated."""
    middle = attempt(2, pb.RUN_STATE_TIMED_OUT, priority=-3)
    middle.retried_by = "r3"
    fake.answers("Get", pb.GetResponse(run=middle))
    facts = dict(line.split(None, 1) for line in command("show", "r2").stdout.splitlines())
    assert (facts["owner"], facts["priority"]) == ("ada", "-3")
    assert facts["attempt"] == "2 of 3, repeats run r1, repeated by run r3"
    assert facts["retries"] == "2 at most, if timed out; after 5 s, doubled up to 60 s"
    default = pb.Run(run_id="r", state=pb.RUN_STATE_RUNNING, retry=pb.RetryPolicy(max_retries=1))
    fake.answers("Get", pb.GetResponse(run=default))
    facts = dict(line.split(None, 1) for line in command("show", "r").stdout.splitlines())
    assert facts["retries"] == "1 at most, if crashed, interrupted; after 1 s, doubled up to 300 s"
    assert not {"owner", "priority", "attempt"} & set(facts)


def test_kill_of_an_attempt_that_is_repeated(command: Command, fake: FakeServer) -> None:
    """The run that goes on is named."""
    fake.answers("Get", pb.GetResponse(run=FIRST))
    fake.answers("Kill", pb.KillResponse(run=FIRST, already_ended=True))
    assert command("kill", "r1").stdout == "run r1 had already ended: crashed; it is repeated by run r2\n"


def test_kill_without_an_id_means_ones_own_run(command: Command, fake: FakeServer) -> None:
    """Also for a caller that may kill the runs of others."""
    fake.answers("Info", pb.InfoResponse(caller="ada"))
    fake.answers("List", pb.ListResponse())
    fake.answers("List", pb.ListResponse(runs=[FIRST]))
    fake.answers("Kill", pb.KillResponse(run=FIRST, already_ended=True))
    assert command("kill").exit_code == 0
    assert [one.owner for one in asked(fake, pb.ListRequest)] == ["ada", "ada"]


@pytest.mark.parametrize(
    ("quota", "advice"),
    [("queued", "To wait until it starts, use --wait."), ("history", "`notebook-runner delete RUN...`")],
)
def test_a_quota_that_is_used_up(command: Command, fake: FakeServer, quota: str, advice: str) -> None:
    """The message says what to do, and the exit code that the run was not started."""
    fake.answers("Start", refusal(EXHAUSTED, "QUOTA_EXCEEDED", "No.", quota=quota, limit="5"))
    done = command("start")
    assert done.exit_code == 7
    assert "QUOTA_EXCEEDED" in done.stderr
    assert advice in done.stderr
    fake.answers("Start", refusal(EXHAUSTED, "QUOTA_EXCEEDED", "No.", quota=quota, limit="5"))
    error = json.loads(command("start", "--json").stderr)["error"]
    assert (error["exit_code"], error["metadata"]) == (7, {"quota": quota, "limit": "5"})


def test_wait_for_a_place_of_ones_own(
    command: Command, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--wait` waits for a queued run of one's own to start, but not for one to be deleted."""
    monkeypatch.setattr(_waiting, "SHORTEST_PAUSE", 0.01)
    for _ in range(2):
        fake.answers("Start", refusal(EXHAUSTED, "QUOTA_EXCEEDED", "No.", quota="queued", limit="5"))
    fake.answers("Start", pb.StartResponse(run=pb.Run(run_id="r")))
    done = command("start", "--wait")
    assert (done.exit_code, done.stdout) == (0, "r\n")
    assert done.stderr == "waiting: your share of the queue (5) is full\n"
    assert len({one.request_id for one in asked(fake, pb.StartRequest)}) == 1
    fake.answers("Start", refusal(EXHAUSTED, "QUOTA_EXCEEDED", "No.", quota="history", limit="5"))
    assert command("start", "--wait").exit_code == 7


def test_a_run_of_another_owner(command: Command, fake: FakeServer) -> None:
    """The server's reason is shown."""
    fake.answers("Get", pb.GetResponse(run=FIRST))
    fake.answers("Kill", refusal(grpc.StatusCode.PERMISSION_DENIED, "NOT_OWNER", "No.", owner="bob"))
    done = command("kill", "r1")
    assert done.exit_code == 2
    assert "NOT_OWNER" in done.stderr


KERNEL = pb.KernelInfo(name="python3", language="python", is_default=True)
SHARES = {
    "limits": (
        pb.Share(
            max_active=2, max_queued=5, max_history_bytes=10**9, active=1, queued=4, history_bytes=10**6
        ),
        True,
        "1 of 2 running, 4 of 5 queued, 1 MB of 1 GB in ended runs",
    ),
    "one limit": (pb.Share(max_queued=5, active=1), True, "1 running, 0 of 5 queued"),
    "full": (
        pb.Share(max_history_bytes=10**6, history_bytes=10**6),
        False,
        "0 running, 0 queued, 1 MB of 1 MB in ended runs: no run can start",
    ),
}


@pytest.mark.parametrize(("share", "ok", "text"), SHARES.values(), ids=SHARES)
def test_doctor_says_who_one_is(
    command: Command, fake: FakeServer, share: pb.Share, ok: bool, text: str
) -> None:
    """Name, scopes and share; a full history is a problem, because no run can start."""
    info = pb.InfoResponse(
        version="99.0.0", kernels=[KERNEL], caller="ada", scopes=["read", "run"], share=share
    )
    fake.answers("Info", info)
    done = command("doctor", "--json")
    found = {one["check"]: one for one in json.loads(done.stdout)["findings"]}
    assert found["caller"]["text"] == "ada; scopes: read, run"
    assert (found["your share"]["ok"], found["your share"]["text"]) == (ok, text)
    assert done.exit_code == (0 if ok else 1)
    assert bool(found["your share"]["advice"]) is not ok


def test_doctor_without_owners_and_shares(command: Command, fake: FakeServer) -> None:
    """Where there are none, nothing is said about them."""
    fake.answers("Info", pb.InfoResponse(version="99.0.0", kernels=[KERNEL], share=pb.Share(active=1)))
    found = {one["check"] for one in json.loads(command("doctor", "--json").stdout)["findings"]}
    assert not {"caller", "your share"} & found


@pytest.mark.parametrize("is_late", [False, True])
def test_doctor_tells_the_backlog_of_webhooks(command: Command, fake: FakeServer, is_late: bool) -> None:
    """A webhook that is not delivered for long is a problem, and names its receiver."""
    late = pb.WebhookReceiver(name="billing", backlog=3)
    if is_late:
        late.oldest_time.FromJsonString("2026-03-02T07:30:00Z")
    webhooks = [late, pb.WebhookReceiver(name="ops")]
    fake.answers("Info", pb.InfoResponse(version="99.0.0", kernels=[KERNEL], webhooks=webhooks))
    done = command("doctor", "--json")
    (found,) = [one for one in json.loads(done.stdout)["findings"] if one["check"] == "webhooks"]
    assert found["ok"] is not is_late
    assert done.exit_code == int(is_late)
    assert found["text"] == (
        "billing lacks 3, the oldest from 2026-03-02 07:30 UTC"
        if is_late
        else "receivers: 2; not yet delivered: 3"
    )


def test_text_that_a_cell_had_begun(command: Command, fake: FakeServer) -> None:
    """The line that a crash cut stands for itself."""
    cut = printed(2)
    cut.cell_output.stream.CopyFrom(pb.StreamOutput(name="stdout", text="half a"))
    fake.answers("Get", pb.GetResponse(run=FIRST))
    fake.answers("Progress", changed(1, attempt(1, pb.RUN_STATE_RUNNING)), cut, changed(3, FIRST))
    fake.answers("Progress", changed(1, attempt(2, pb.RUN_STATE_SUCCEEDED)))
    assert "half a\nrun r1 crashed\n" in command("watch", "r1").stdout
