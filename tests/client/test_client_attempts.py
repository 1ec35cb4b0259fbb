"""Runs that are repeated, and owners, in the Python client."""

import pickle
import threading
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from notebook_runner import (
    AccessDenied,
    Client,
    NotOwner,
    QuotaExceeded,
    Retry,
    Run,
    RunFailed,
    RunNotFound,
    RunSnapshot,
    RunState,
    Share,
    StateChanged,
)
from notebook_runner._requests import start_request
from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.fake_server import RUNNING, WAIT_SECONDS, Collect, FakeServer, changed, refusal

BOTH = pytest.mark.parametrize("collect", ["sync", "async"], indirect=True)

POLICY = pb.RetryPolicy(max_retries=3, backoff=Duration(seconds=10))
CRASHED = pb.Failure(cause=pb.FAILURE_CAUSE_KERNEL_SIGNALED, message="The kernel died.")


def run(number: int, state: pb.RunState.ValueType, last: int = 3, **fields: Any) -> pb.Run:
    """An attempt of a run, of which `last` is the last."""
    has_ended = state >= pb.RUN_STATE_SUCCEEDED
    return pb.Run(
        run_id=f"r{number}",
        state=state,
        attempt=number,
        retry=POLICY,
        retry_of=f"r{number - 1}" if number > 1 else "",
        retried_by=f"r{number + 1}" if has_ended and number < last else "",
        failure=CRASHED if has_ended and state != pb.RUN_STATE_SUCCEEDED else None,
        **fields,
    )


def attempts(fake: FakeServer, end: pb.RunState.ValueType = pb.RUN_STATE_SUCCEEDED) -> None:
    """Scripts the streams of a run whose third attempt ends it."""
    for number, state in enumerate((pb.RUN_STATE_CRASHED, pb.RUN_STATE_INTERRUPTED, end), 1):
        fake.answers("Progress", changed(1, run(number, pb.RUN_STATE_QUEUED)), changed(2, run(number, state)))


def test_an_attempt_has_its_chain() -> None:
    """Owner, priority, policy, and the attempts before and after, each with its type."""
    moment = datetime(2026, 11, 29, 12, tzinfo=UTC)
    one = run(2, pb.RUN_STATE_CRASHED, owner="ada", priority=-5, not_before=Timestamp(seconds=1_795_953_600))
    found = RunSnapshot(one)
    assert (found.owner, found.priority, found.attempt) == ("ada", -5, 2)
    assert (found.retry_of, found.retried_by, found.not_before) == ("r1", "r3", moment)
    assert found.retry == Retry(3, backoff=timedelta(seconds=10))
    assert str(found) == "run r2 crashed, attempt 2 of 4, The kernel died., repeated by run r3"
    page = found._repr_html_()
    assert "attempt 2 of 4" in page
    assert "repeated by run r3" in page


def test_a_run_of_an_older_server_is_the_only_attempt() -> None:
    """What its server does not know is empty."""
    one = RunSnapshot(pb.Run(run_id="r", state=pb.RUN_STATE_SUCCEEDED))
    assert (one.owner, one.priority, one.attempt) == ("", 0, 1)
    assert (one.retry_of, one.retried_by, one.not_before, one.retry) == ("", "", None, None)
    assert str(one) == "run r succeeded"


def test_a_repetition_says_when_it_starts() -> None:
    """As long as its time has not come; then its place in the queue, as of any other run."""
    tomorrow = Timestamp()
    tomorrow.FromDatetime(datetime.now(UTC) + timedelta(days=1))
    queued = run(2, pb.RUN_STATE_QUEUED, not_before=tomorrow)
    expected = f"not before {tomorrow.ToDatetime(UTC).astimezone():%Y-%m-%d %H:%M:%S}"
    assert str(RunSnapshot(queued)) == f"run r2 queued, attempt 2 of 4, {expected}"
    queued.not_before.seconds, queued.queue_position = 1, 2
    assert str(RunSnapshot(queued)) == "run r2 queued, attempt 2 of 4, 2 runs ahead"


@given(
    st.builds(
        Retry,
        st.integers(1, 100),
        st.lists(st.sampled_from([RunState.CRASHED, RunState.INTERRUPTED, RunState.TIMED_OUT])).map(tuple),
        st.none() | st.integers(0, 10**9).map(lambda n: timedelta(milliseconds=n)),
        st.none() | st.integers(0, 10**9).map(lambda n: timedelta(milliseconds=n)),
    )
)
def test_a_policy_comes_back_as_it_was_sent(policy: Retry) -> None:
    """A run can be started with the policy of another."""
    sent = start_request(None, {"retry": policy}).retry
    assert Retry.of(pb.RetryPolicy.FromString(sent.SerializeToString())) == policy


def test_plain_forms_of_a_policy() -> None:
    """A number is that of repetitions, one state needs no list, and zero and None are no policy."""
    assert start_request(None, {"retry": 3}).retry == pb.RetryPolicy(max_retries=3)
    one = start_request(None, {"retry": Retry(1, "timed-out", 0, 2.5)}).retry
    assert one.states == [pb.RUN_STATE_TIMED_OUT]
    assert (one.HasField("backoff"), one.backoff.seconds) == (True, 0)
    assert (one.max_backoff.seconds, one.max_backoff.nanos) == (2, 500_000_000)
    for nothing in (0, None, Retry(0)):
        assert not start_request(None, {"retry": cast("Any", nothing)}).HasField("retry")
    assert start_request(None, {"priority": -7}).priority == -7


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (Retry(1, "gone"), ValueError, "Unknown state 'gone'"),
        (Retry(1, backoff=float("inf")), ValueError, "A duration must be"),
        (Retry(1, backoff=cast("Any", "5s")), TypeError, "A duration must be"),
        ("3", TypeError, "retry must be Retry"),
        ({"max_retries": 3}, TypeError, "retry must be Retry"),
        (Retry(2**40), ValueError, "retry must be Retry"),
    ],
)
def test_a_wrong_policy_names_the_option(value: Any, kind: type[Exception], message: str) -> None:
    """Before any call, with what is wrong with it."""
    with pytest.raises(kind, match=message) as caught:
        start_request(None, {"retry": value})
    assert str(caught.value).startswith("retry must be")


@BOTH
def test_wait_returns_the_last_attempt(fake: FakeServer, collect: Collect) -> None:
    """Each attempt is followed to its end, by its own id, and the last one is returned."""
    attempts(fake)
    (last,) = collect("wait", "r1")
    assert (last.run_id, last.state) == ("r3", pb.RUN_STATE_SUCCEEDED)
    assert [(one.run_id, one.after_sequence) for one in fake.asked] == [("r1", 0), ("r2", 0), ("r3", 0)]


@BOTH
def test_wait_for_one_attempt(fake: FakeServer, collect: Collect) -> None:
    """It is returned as it ended, with the id of the next."""
    attempts(fake)
    (first,) = collect("wait", "r1", retries=False)
    assert (first.run_id, first.state, first.retried_by) == ("r1", pb.RUN_STATE_CRASHED, "r2")
    assert len(fake.asked) == 1


@BOTH
def test_run_returns_the_last_attempt(fake: FakeServer, collect: Collect) -> None:
    """It succeeds if that one does, and the error is of that one if not."""
    fake.answers("Start", pb.StartResponse(run=run(1, pb.RUN_STATE_QUEUED)))
    attempts(fake)
    (last,) = collect("run", b"{}", retry=3, priority=2)
    assert last.run_id == "r3"
    assert (fake.asked[0].retry.max_retries, fake.asked[0].priority) == (3, 2)
    fake.answers("Start", pb.StartResponse(run=run(1, pb.RUN_STATE_QUEUED)))
    attempts(fake, pb.RUN_STATE_FAILED)
    with pytest.raises(RunFailed) as caught:
        collect("run", b"{}", retry=3)
    assert caught.value.run.id == "r3"


@BOTH
def test_the_limit_of_a_wait_is_for_all_attempts(fake: FakeServer, collect: Collect) -> None:
    """The error names the attempt that has not ended."""
    fake.answers("Progress", changed(1, run(1, pb.RUN_STATE_CRASHED)))
    fake.answers("Progress", changed(1, run(2, pb.RUN_STATE_RUNNING)), *[grpc.StatusCode.UNAVAILABLE])
    for _ in range(50):
        fake.answers("Progress", grpc.StatusCode.UNAVAILABLE)
    # Long enough for a busy machine to come to the second attempt.
    with pytest.raises(TimeoutError, match=r"Run r2 has not ended within 4 s"):
        collect("wait", "r1", timeout=4)


def test_each_attempt_has_what_is_left_of_the_limit(fake: FakeServer) -> None:
    """The time that the first one took is not there for the second one."""

    def slow() -> pb.ProgressResponse:
        threading.Event().wait(0.6)
        return changed(1, run(1, pb.RUN_STATE_CRASHED, last=2))

    fake.answers("Progress", slow)
    fake.answers("Progress", changed(1, run(2, pb.RUN_STATE_SUCCEEDED, last=2)))
    with Client(fake.target) as client:
        assert client.wait("r1", timeout=20).ok
    # gRPC rounds deadlines up, by a hundredth of them at most.
    assert fake.seconds_left[1] < 19.8


@BOTH
def test_wait_without_time_checks_the_last_attempt(fake: FakeServer, collect: Collect) -> None:
    """An attempt that is repeated is no end."""
    for state in (pb.RUN_STATE_SUCCEEDED, pb.RUN_STATE_RUNNING):
        fake.answers("Get", pb.GetResponse(run=run(1, pb.RUN_STATE_CRASHED, last=2)))
        fake.answers("Get", pb.GetResponse(run=run(2, state, last=2)))
    assert collect("wait", "r1", timeout=0)[0].run_id == "r2"
    with pytest.raises(TimeoutError, match="Run r2 has not ended"):
        collect("wait", "r1", timeout=0)
    assert {type(one) for one in fake.asked} == {pb.GetRequest}


@BOTH
def test_the_next_attempt_may_be_deleted(fake: FakeServer, collect: Collect) -> None:
    """An attempt that is not the last is never returned as if it were."""
    fake.answers("Progress", changed(1, run(1, pb.RUN_STATE_CRASHED)))
    fake.answers("Progress", refusal(grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND", "No.", run_id="r2"))
    with pytest.raises(RunNotFound):
        collect("wait", "r1")


def test_a_run_that_has_ended_is_waited_for_if_it_is_repeated(fake: FakeServer) -> None:
    """What is known of its end is not asked for again."""
    with Client(fake.target) as client:
        ended = Run(run(1, pb.RUN_STATE_CRASHED, last=2), client)
        assert ended.wait(retries=False) is ended
        fake.answers("Progress", changed(1, run(2, pb.RUN_STATE_SUCCEEDED, last=2)))
        last = ended.wait()
        assert (last.id, last.ok) == ("r2", True)
        assert last.wait() is last
    assert [one.run_id for one in fake.asked] == ["r2"]


@BOTH
def test_events_are_those_of_one_attempt(fake: FakeServer, collect: Collect) -> None:
    """The last event of an attempt says which run repeats it."""
    attempts(fake)
    assert len(collect("progress", "r1")) == 2
    assert len(fake.asked) == 1
    attempts(fake)
    with Client(fake.target) as client:
        *_, last = client.progress("r1")
    assert isinstance(last, StateChanged)
    assert last.run.retried_by


@BOTH
def test_runs_of_an_owner(fake: FakeServer, collect: Collect) -> None:
    """The server filters, on each page."""
    fake.answers("List", pb.ListResponse(runs=[RUNNING], next_page_token="more"))  # noqa: S106 - opens no door
    fake.answers("List", pb.ListResponse(runs=[RUNNING]))
    assert len(collect("runs", owner="ada")) == 2
    assert [one.owner for one in fake.asked] == ["ada", "ada"]


@BOTH
def test_no_id_means_ones_own_run(fake: FakeServer, collect: Collect) -> None:
    """A caller that may see and kill the runs of others means its own newest run."""
    for _ in range(2):
        fake.answers("Info", pb.InfoResponse(caller="ada"))
    fake.answers("List", pb.ListResponse(runs=[RUNNING]))
    fake.answers("Kill", pb.KillResponse(run=RUNNING))
    collect("kill")
    fake.answers("List", pb.ListResponse(runs=[RUNNING]))
    fake.answers("Progress", changed(1, run(3, pb.RUN_STATE_SUCCEEDED)))
    collect("progress")
    assert [one.owner for one in fake.asked if isinstance(one, pb.ListRequest)] == ["ada", "ada"]


@BOTH
def test_info_has_the_caller_and_its_share(fake: FakeServer, collect: Collect) -> None:
    """A maximum that is not set is None, also if what it limits is zero."""
    share = pb.Share(max_active=2, max_history_bytes=0, active=1, queued=4)
    answer = pb.InfoResponse(caller="ada", scopes=["read", "run"], share=share)
    fake.answers("Info", answer)
    assert collect("info") == [answer]
    fake.answers("Info", answer)
    fake.answers("Info", pb.InfoResponse())
    with Client(fake.target) as client:
        info = client.info()
        assert (info.caller, info.scopes) == ("ada", ("read", "run"))
        assert info.share == Share(2, None, 0, 1, 4, 0)
        assert client.info().share is None


@BOTH
@pytest.mark.parametrize(
    ("quota", "metadata", "limit"),
    [("queued", {"limit": "5"}, 5), ("history", {"limit": "1000000"}, 10**6), ("queued", {}, None)],
)
def test_a_quota_that_is_used_up(
    fake: FakeServer, collect: Collect, quota: str, metadata: dict[str, str], limit: int | None
) -> None:
    """The error says of what, and how much there is; it is not repeated."""
    no = refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", "No.", quota=quota, **metadata)
    fake.answers("Start", no)
    with pytest.raises(QuotaExceeded, match="QUOTA_EXCEEDED") as caught:
        collect("start", b"{}")
    assert (caught.value.quota, caught.value.limit) == (quota, limit)
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    assert (copy.quota, copy.limit) == (quota, limit)
    assert len(fake.asked) == 1


@BOTH
@pytest.mark.parametrize(("method", "answer"), [("kill", "Kill"), ("delete", "Delete")])
def test_a_run_of_another_owner(fake: FakeServer, collect: Collect, method: str, answer: str) -> None:
    """It is a denied access, with the owner."""
    fake.answers(
        answer, refusal(grpc.StatusCode.PERMISSION_DENIED, "NOT_OWNER", "No.", run_id="r", owner="bob")
    )
    with pytest.raises(NotOwner) as caught:
        collect(method, "r")
    assert isinstance(caught.value, AccessDenied)
    assert caught.value.owner == "bob"


@BOTH
def test_a_connection_that_breaks_between_attempts(fake: FakeServer, collect: Collect) -> None:
    """The next attempt is followed from its beginning, over as many connections as it takes."""
    fake.answers("Progress", changed(7, run(1, pb.RUN_STATE_CRASHED, last=2)), grpc.StatusCode.UNAVAILABLE)
    fake.answers("Progress", grpc.StatusCode.UNAVAILABLE)
    fake.answers("Progress", changed(1, run(2, pb.RUN_STATE_SUCCEEDED, last=2)))
    (last,) = collect("wait", "r1", reconnect_timeout=WAIT_SECONDS)
    assert last.run_id == "r2"
    assert [(one.run_id, one.after_sequence) for one in fake.asked] == [("r1", 0), ("r2", 0), ("r2", 0)]
