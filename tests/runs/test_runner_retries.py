"""Retries: which ends have a successor, what it is, and when it starts."""

import asyncio
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from notebook_runner_server.errors import DamagedRunError, ShuttingDownError, StorageFullError
from notebook_runner_server.execution.interface import Cause, Ended, Failure, InputFile, KernelReady
from notebook_runner_server.runs import codec, dispatcher
from notebook_runner_server.runs.contents import FolderContents
from notebook_runner_server.runs.manager import RunManager
from notebook_runner_server.runs.model import (
    RETRYABLE,
    Admitted,
    Event,
    RetryPolicy,
    Run,
    RunChanged,
    RunState,
    StartSpec,
    Successor,
    WriteBatch,
)
from notebook_runner_server.runs.request_digest import compute_digest, is_same
from notebook_runner_server.runs.store import Store
from notebook_runner_server.runs.transitions import end, is_retried, seconds_to_start, successor
from tests.runs.fakes import (
    DONE,
    SIMPLE,
    FakeBackend,
    Handle,
    abandoned,
    ended,
    events_of,
    reach,
    running,
    spec,
)
from tests.runs.reading import FullStore
from tests.runs.samples import TERMINAL, a_run, changed, runs, some_options
from tests.runs.stores import a_store, insert, opened
from tests.runs.test_runner_storage import LARGE, bound

S = RunState
SECOND = 1_000_000_000
AT_ONCE = RetryPolicy(3, RETRYABLE, 0.0, 0.0)
LATER = RetryPolicy(3, RETRYABLE, 3600.0, 7200.0)
CRASHED = Ended(Failure(Cause.KERNEL_SIGNALED, "why"))
policies = st.builds(
    RetryPolicy,
    st.integers(1, 100),
    st.lists(st.sampled_from(RETRYABLE), min_size=1, unique=True).map(tuple),
    st.floats(0, 1e7),
    st.floats(0, 1e7),
)


# The pure part.


@pytest.mark.parametrize("cause", [None, *Cause])
def test_only_ends_of_the_policy_are_repeated(cause: Cause | None) -> None:
    """With all states that a policy can have, no success, failure of a cell or kill is repeated."""
    failure = None if cause is None else Failure(cause, "why")
    run = end(a_run(S.RUNNING, retry=RetryPolicy(1, RETRYABLE)), failure, 9)
    assert is_retried(run) is (run.state in {S.CRASHED, S.TIMED_OUT, S.INTERRUPTED})
    assert not is_retried(replace(run, retry=None))
    assert not is_retried(replace(run, is_kill_requested=True))


@given(policies, st.integers(1, 101), st.sampled_from(TERMINAL))
def test_a_chain_is_as_long_as_its_policy_says(policy: RetryPolicy, attempt: int, state: RunState) -> None:
    """The attempts up to the last retry have a successor, in the states of the policy."""
    run = a_run(state, retry=policy, attempt=attempt)
    assert is_retried(run) is (state in policy.states and attempt <= policy.max_retries)


@given(runs, policies)
def test_a_successor_is_a_new_run(run: Run, policy: RetryPolicy) -> None:
    """It keeps what was asked for, and nothing of what became of its predecessor."""
    run = replace(run, retry=policy)
    new = successor(run, "new")
    kept = {
        *(
            "kernel_name",
            "cells_total",
            "parameters",
            "labels",
            "notebook_path",
            "notebook_uri",
            "output_uri",
        ),
        *("notebook_repairs", "name", "notebook_sha256", "owner", "priority", "retry"),
    }
    own = {"run_id", "state", "create_time", "attempt", "retry_of", "not_before"}
    for field in fields(Run):
        if field.name in kept:
            assert getattr(new, field.name) == getattr(run, field.name)
        elif field.name not in own:
            assert getattr(new, field.name) == getattr(a_run(), field.name), field.name
    assert (new.run_id, new.state, new.attempt, new.retry_of) == (
        "new",
        S.QUEUED,
        run.attempt + 1,
        run.run_id,
    )
    assert new.create_time == run.end_time <= new.not_before


def test_the_backoff_doubles_up_to_its_limit() -> None:
    """Also after so many retries that the number is large."""
    policy = RetryPolicy(100, backoff=1.5, max_backoff=10.0)
    assert [policy.delay(retry) for retry in (1, 2, 3, 4, 100)] == [1.5, 3.0, 6.0, 10.0, 10.0]
    assert RetryPolicy(1, backoff=20.0, max_backoff=10.0).delay(1) == 10.0
    run = a_run(S.CRASHED, retry=policy, attempt=2, end_time=5 * SECOND)
    assert successor(run, "new").not_before == 8 * SECOND


def test_the_rest_of_a_backoff() -> None:
    """It is over when the time has come, and never more than the whole, wherever the clock was set."""
    run = successor(a_run(S.CRASHED, retry=LATER, end_time=1000 * SECOND), "new")
    rest = [seconds_to_start(run, now * SECOND) for now in (1000, 1600, 4599, 4600, 10**6, 0)]
    assert rest == [3600.0, 3000.0, 1.0, 0.0, 0.0, 3600.0]
    assert seconds_to_start(a_run(retry=LATER), 0) == 0.0


@given(policies)
def test_policies_are_stored(policy: RetryPolicy) -> None:
    """A run's policy comes back as it went in."""
    run = a_run(retry=policy, attempt=2, retry_of="a", retried_by="b", not_before=7, is_kill_requested=True)
    assert codec.decode_run(codec.encode_run(run)) == run


def test_runs_of_earlier_versions_have_no_policy() -> None:
    """They are the first attempts, and the only ones."""
    older = json.loads(codec.encode_run(a_run()))
    for name in ("retry", "attempt", "retry_of", "retried_by", "not_before", "is_kill_requested"):
        del older[name]
    assert codec.decode_run(json.dumps(older)) == a_run(attempt=1)


def test_the_policy_is_part_of_the_digest() -> None:
    """Another policy is another request; none is the request of earlier versions."""
    key = bytes(32)
    plain, with_policy = StartSpec("id"), StartSpec("id", retry=AT_ONCE)
    digests = {compute_digest(one, key) for one in (plain, with_policy, StartSpec("id", retry=LATER))}
    assert len(digests) == 3
    assert is_same(compute_digest(with_policy, key), replace(with_policy, request_id="other"), key)
    # 64 digits are of a format that knew no policies.
    assert not is_same("0" * 64, with_policy, key)


# The store.


async def ending(store: Store) -> tuple[int, Run, Admitted]:
    """A run with inputs that is about to end, and its staged successor."""
    options = some_options(environment={"A": "secret"}, output_uri="s3://u:p@b/a")
    run = a_run(run_id="old", retry=AT_ONCE, parameters={"a": LARGE})
    files = [InputFile("data.txt", b"given")]
    segments = {0: b"first", 1: b"second", -1: b"tail"}
    position = await store.insert(run, options, "digest", changed(1, run), segments, files)
    run = replace(run, state=S.CRASHED, end_time=5, retried_by="new")
    admitted = await store.stage(
        successor(run, "new"), replace(options, environment={}, output_uri=""), position
    )
    assert (admitted.options, admitted.segments, list(admitted.files)) == (options, segments, files)
    return position, run, admitted


async def record(store: Store, position: int, run: Run, admitted: Admitted) -> int:
    """Records the end of the run with its successor."""
    event = Event(1, 5, 0, 2, RunChanged(admitted.run))
    return await store.append(
        position, run, [changed(2, run)], WriteBatch(), 10, is_end=True, successor=Successor(admitted, event)
    )


async def test_an_end_and_its_successor_are_stored_together(tmp_path: Path) -> None:
    """The successor has the inputs, and its predecessor has them no more, after a restart as well."""
    async with opened(tmp_path) as store:
        position, run, admitted = await ending(store)
        assert await store.find("new") is None
        assert store.count == 1
        new_position = await record(store, position, run, admitted)
        assert new_position > position
        assert store.count == 2
    for _ in range(2):
        async with opened(tmp_path) as store:
            found = await store.find("new")
            assert found is not None
            assert (found.position, found.run) == (new_position, admitted.run)
            assert store.options(found) == admitted.options
            assert store.folder("new").input_files() == (InputFile("data.txt", b"given"),)
            assert [one.run_id for one in await store.unended()] == ["new"]
            assert not store.folder("old").has_inputs


@pytest.mark.state_folder("it changes the files of a run")
async def test_a_staged_successor_without_an_end_is_removed_by_the_next_start(tmp_path: Path) -> None:
    """Without a word: it is no damage. Its predecessor still has its inputs."""
    async with opened(tmp_path) as store:
        await ending(store)
        assert (tmp_path / "runs" / "new" / "environment").exists()
    async with opened(tmp_path) as store:
        assert [path.name for path in (tmp_path / "runs").iterdir()] == ["old"]
        assert list(tmp_path.glob("damaged-*")) == []
        assert store.folder("old").secrets() == ({"A": "secret"}, "s3://u:p@b/a")


@pytest.mark.state_folder("it changes the files of a run")
async def test_inputs_that_a_server_left_are_removed_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server dies when the end is recorded and the inputs are not removed."""
    async with opened(tmp_path) as store:
        position, run, admitted = await ending(store)
        with monkeypatch.context() as dead:
            recorded = asyncio.Event()

            async def never(*_: object) -> None:
                recorded.set()
                await asyncio.Event().wait()

            dead.setattr(FolderContents, "remove_inputs", never)
            recording = asyncio.ensure_future(record(store, position, run, admitted))
            await recorded.wait()
            recording.cancel()
        assert store.folder("old").has_inputs
    async with opened(tmp_path) as store:
        assert not store.folder("old").has_inputs
        assert store.folder("new").has_inputs


@pytest.mark.state_folder("it limits SQLite's file")
async def test_a_full_disk_leaves_nothing_of_a_successor(tmp_path: Path) -> None:
    """An end that is refused can be tried again, with the same successor."""
    async with opened(tmp_path) as store:
        position, run, admitted = await ending(store)
        await store._db.write(bound, 1)
        with pytest.raises(StorageFullError):
            await record(store, position, run, admitted)
        assert [path.name for path in (tmp_path / "runs").iterdir()] == ["old"]
        await store._db.write(bound, 1000)
        old = await store.find("old")
        assert old is not None
        assert old.run.state is S.QUEUED
        again = await store.stage(admitted.run, admitted.options, position)
        assert again == admitted
        assert await record(store, position, run, again) > 0


@pytest.mark.state_folder("it changes the files of a run")
@pytest.mark.parametrize("name", ["segments", "environment", "input-files"])
async def test_a_damaged_folder_makes_no_successor(tmp_path: Path, name: str) -> None:
    """Nothing of it is left."""
    async with opened(tmp_path) as store:
        position, run, _ = await ending(store)
        (tmp_path / "runs" / "old" / name).write_bytes(b"x")
        with pytest.raises(DamagedRunError):
            await store.stage(successor(run, "other"), some_options(), position)
        assert not (tmp_path / "runs" / "other").exists()


# The run manager.


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for room is tried again at once."""
    monkeypatch.setattr(dispatcher, "SAVE_INTERVAL", 0.001)


async def begun(runner: RunManager, backend: FakeBackend, policy: RetryPolicy) -> tuple[Run, Handle]:
    """A run with a policy that has a kernel."""
    run = await runner.start(spec(retry=policy))
    handle = await backend.taken()
    handle.tell(KernelReady())
    await reach(runner, run.run_id, S.RUNNING)
    return run, handle


async def test_a_successor_is_executed_with_the_same_notebook(tmp_path: Path) -> None:
    """It is known as soon as its predecessor has ended."""
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend) as runner:
        run, handle = await begun(runner, backend, AT_ONCE)
        handle.tell(CRASHED)
        first = await ended(runner, run.run_id)
        assert (first.state, first.attempt) == (S.CRASHED, 1)
        again = await backend.taken(first.retried_by)
        assert (again.job.notebook, again.job.run_id) == (SIMPLE + b"\n", first.retried_by)
        again.tell(KernelReady(), DONE)
        second = await ended(runner, first.retried_by)
        assert (second.state, second.attempt, second.retry_of) == (S.SUCCEEDED, 2, run.run_id)
        assert second.start_time >= first.end_time


async def test_a_kill_beats_a_crash(tmp_path: Path) -> None:
    """A run that crashes after the Kill, and before it was ended by it, is not repeated."""
    backend = FakeBackend(obedient=False)
    async with running(a_store(Store, tmp_path), backend) as runner:
        run, handle = await begun(runner, backend, AT_ONCE)
        killing = asyncio.ensure_future(runner.kill(run.run_id, 0.0))
        await handle.asked.wait()
        handle.tell(CRASHED)
        killed, _ = await killing
        assert (killed.state, killed.retried_by) == (S.CRASHED, "")


async def test_a_kill_of_a_held_end_ends_the_chain(tmp_path: Path) -> None:
    """It comes while the end of a crash waits for space."""
    store, backend = a_store(FullStore, tmp_path), FakeBackend()
    async with running(store, backend) as runner:
        run, handle = await begun(runner, backend, AT_ONCE)
        store.full = True
        handle.tell(CRASHED)
        await handle.left.wait()
        with pytest.raises(StorageFullError):
            await runner.kill(run.run_id, 0.0)
        store.full = False
        assert (await ended(runner, run.run_id)).retried_by == ""


class Insisted(FullStore):
    """A full store that says when it has refused an end three times."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.insisted = asyncio.Event()
        self._refused = 0

    @override
    async def append(self, *args: Any, **options: Any) -> int:
        """Refuses, or appends."""
        self._refused += self.full
        if self._refused > 2:
            self.insisted.set()
        return await super().append(*args, **options)


async def test_a_held_end_has_its_successor_when_it_is_recorded(tmp_path: Path) -> None:
    """With the same id in all attempts to record it, so that nothing else is left behind."""
    store, backend = Insisted(tmp_path), FakeBackend()
    async with running(store, backend) as runner:
        run, handle = await begun(runner, backend, AT_ONCE)
        store.full = True
        handle.tell(CRASHED)
        await handle.left.wait()
        await store.insisted.wait()
        store.full = False
        first = await ended(runner, run.run_id)
        (await backend.taken(first.retried_by)).tell(KernelReady(), DONE)
        assert (await ended(runner, first.retried_by)).state is S.SUCCEEDED
        assert {path.name for path in (tmp_path / "runs").iterdir()} == {run.run_id, first.retried_by}


@pytest.mark.parametrize("cause", [Cause.KILL_REQUESTED, Cause.SERVER_STOPPED])
async def test_a_server_that_dies_while_it_ends_a_run(tmp_path: Path, cause: Cause) -> None:
    """A kill ends the chain; a stop of the server is an interruption like another."""
    backend = FakeBackend(obedient=False)
    async with abandoned(a_store(Store, tmp_path), backend) as runner:
        run, handle = await begun(runner, backend, AT_ONCE)
        active = runner._dispatcher.find(run.run_id)
        assert active is not None
        stopping = asyncio.ensure_future(active.stop(cause, 5.0))
        await handle.asked.wait()
        await stopping
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend) as runner:
        first = await ended(runner, run.run_id)
        assert first.state is S.INTERRUPTED
        assert bool(first.retried_by) is (cause is Cause.SERVER_STOPPED)
        if first.retried_by:
            (await backend.taken(first.retried_by)).tell(KernelReady(), DONE)
            assert (await ended(runner, first.retried_by)).state is S.SUCCEEDED


async def test_a_drain_queues_the_successor_for_the_next_server(tmp_path: Path) -> None:
    """Its readers are told that the server stops; the next server executes it."""
    backend = FakeBackend(2)
    async with running(a_store(Store, tmp_path), backend) as runner:
        run, _ = await begun(runner, backend, AT_ONCE)
        await runner.drain(asyncio.Event(), 0.0)
        first = await ended(runner, run.run_id)
        assert first.state is S.INTERRUPTED
        _, log = await runner.log(first.retried_by)
        with pytest.raises(ShuttingDownError):
            await events_of(log)
        assert len(backend.handles) == 1
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend) as runner:
        (await backend.taken(first.retried_by)).tell(KernelReady(), DONE)
        assert (await ended(runner, first.retried_by)).state is S.SUCCEEDED


async def test_a_waiting_successor_is_not_started_and_lets_others_pass(tmp_path: Path) -> None:
    """Also after a restart."""
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend, 1) as runner:
        run, handle = await begun(runner, backend, LATER)
        handle.tell(CRASHED)
        first = await ended(runner, run.run_id)
    for _ in range(2):
        backend = FakeBackend()
        async with running(a_store(Store, tmp_path), backend, 1) as runner:
            waiting = await runner.find(first.retried_by)
            assert (waiting.state, waiting.queue_position) == (S.QUEUED, 0)
            other = await runner.start(spec())
            (await backend.taken()).tell(KernelReady(), DONE)
            assert (await ended(runner, other.run_id)).state is S.SUCCEEDED
            assert len(backend.handles) == 1


async def test_a_queue_that_is_full_takes_a_successor(tmp_path: Path) -> None:
    """It was admitted with its Start."""
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend) as runner:
        run, handle = await begun(runner, backend, LATER)
        handle.tell(CRASHED)
        first = await ended(runner, run.run_id)
        assert (await runner.info()).queued == 1
        assert (await runner.find(first.retried_by)).state is S.QUEUED
        # Until its time has come, it leaves the idle worker to others, although no run may wait.
        other = await runner.start(spec())
        (await backend.taken()).tell(KernelReady(), DONE)
        assert (await ended(runner, other.run_id)).state is S.SUCCEEDED


@pytest.mark.state_folder("it changes the files of a run")
async def test_a_damaged_run_ends_without_a_successor(tmp_path: Path) -> None:
    """Its secrets cannot be read after a restart, so the chain would not be what was asked for."""
    async with opened(tmp_path) as store:
        await insert(store, "one", some_options(environment={"A": "b"}), retry=AT_ONCE)
        (tmp_path / "runs" / "one" / "environment").write_text("{")
    async with running(a_store(Store, tmp_path), FakeBackend()) as runner:
        run = await ended(runner, "one")
        assert (run.state, run.retried_by) == (S.CRASHED, "")
