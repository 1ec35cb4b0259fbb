"""The shares of owners on a backend that does what the test says: what waits, and what is refused."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from notebook_runner_server.errors import QuotaExceededError, RunnerBusyError
from notebook_runner_server.execution.interface import KernelReady
from notebook_runner_server.runs.caller import ANONYMOUS, Caller, parse_scopes, set_caller
from notebook_runner_server.runs.folder import RunFolder
from notebook_runner_server.runs.manager import RunManager
from notebook_runner_server.runs.model import Run, RunState
from notebook_runner_server.runs.shares import Quota, Share, ShareRule, ShareRules
from notebook_runner_server.runs.store import Store
from tests.runs.fakes import DONE, FakeBackend, abandoned, ended, events, reach, running, settled, spec
from tests.runs.stores import a_store

S = RunState


@contextmanager
def calling(name: str, *groups: str) -> Iterator[None]:
    """Makes calls as somebody."""
    set_caller(Caller(name, parse_scopes("run"), frozenset(groups)))
    try:
        yield
    finally:
        set_caller(ANONYMOUS)


async def start(runner: RunManager, name: str, *groups: str, **fields: Any) -> Run:
    """Starts a run as somebody."""
    with calling(name, *groups):
        return await runner.start(spec(**fields))


async def state(runner: RunManager, run: Run) -> RunState:
    """The state of a run now."""
    return (await runner.find(run.run_id)).state


async def refusal(runner: RunManager, name: str, *groups: str) -> tuple[Any, ...]:
    """Why a Start is refused: its quota, the limit, and when to try again."""
    with pytest.raises(QuotaExceededError) as caught:
        await start(runner, name, *groups)
    error = caught.value
    return error.metadata["quota"], error.metadata["limit"], error.retry_after


def limited(**limits: float) -> Any:
    """Rules that limit everyone."""
    rules = ShareRules(ShareRule(**limits))
    return lambda: rules


async def test_the_rest_of_an_owners_runs_waits(tmp_path: Path) -> None:
    """Free workers do not take them; others pass them; the end of one starts the next."""
    backend = FakeBackend(3)
    async with running(a_store(Store, tmp_path), backend, 10, rules=limited(max_active=1)) as runner:
        first, second, third = [await start(runner, "ada") for _ in range(3)]
        others = await start(runner, "bob")
        handles = [await backend.taken(first.run_id), await backend.taken(others.run_id)]
        for run, position in ((second, 0), (third, 1)):
            now = await runner.find(run.run_id)
            assert (now.state, now.queue_position) == (S.QUEUED, position)
        with calling("ada"):
            assert (await runner.info()).share.active == 1
            assert (await runner.info()).share.queued == 2
        for run in (second, third):
            handles[0].tell(KernelReady(), DONE)
            handles[0] = await backend.taken(run.run_id)
        assert await state(runner, others) is S.STARTING


async def test_a_run_that_may_not_start_takes_a_place_of_the_queue(tmp_path: Path) -> None:
    """It waits although workers are free; without a place it is refused, and others get the worker."""
    backend = FakeBackend(2)
    async with running(a_store(Store, tmp_path), backend, 0, rules=limited(max_active=1)) as runner:
        await start(runner, "ada")
        await backend.taken()
        with pytest.raises(RunnerBusyError):
            await start(runner, "ada")
        await start(runner, "bob")
        await backend.taken()
        with pytest.raises(RunnerBusyError):
            await start(runner, "eve")


@pytest.mark.parametrize("most", [0, 1, 3])
async def test_too_many_queued_runs(tmp_path: Path, most: int) -> None:
    """A run that starts at once is not one of them; what another owner queues does not count."""
    backend = FakeBackend(2)
    async with running(a_store(Store, tmp_path), backend, 10, rules=limited(max_queued=most)) as runner:
        for _ in range(2):
            await start(runner, "ada")
            await backend.taken()
        for _ in range(most):
            await start(runner, "ada")
        assert await refusal(runner, "ada") == ("queued", str(most), 1.0)
        for _ in range(most):
            await start(runner, "bob")
        assert await refusal(runner, "bob") == ("queued", str(most), 1.0)
        assert runner.refusals == Counter({Quota.QUEUED: 2})
        # Which is not how an admitted run of the same request is answered.
        assert len((await runner.list(10**6, 100, [], {}))[0]) == 2 + 2 * most


@pytest.mark.parametrize("most", [0, 2])
async def test_many_starts_at_once(tmp_path: Path, most: int) -> None:
    """Calls that pass the first check together do not pass the second one together."""
    backend = FakeBackend(2)
    rules = limited(max_active=1, max_queued=most)
    async with running(a_store(Store, tmp_path), backend, 100, rules=rules) as runner:
        names = ["ada", "bob", "eve"]
        calls = [start(runner, name) for _ in range(20) for name in names]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        admitted = [one for one in answers if isinstance(one, Run)]
        refused = [one for one in answers if isinstance(one, QuotaExceededError)]
        assert len(admitted) + len(refused) == len(answers)
        owners = Counter(one.owner for one in admitted)
        # One of the three has no worker; its runs all wait.
        assert sorted(owners.values()) in ([most, most + 1, most + 1], [most + 1] * 2)


async def test_a_repeated_request_is_answered_whatever_the_share(tmp_path: Path) -> None:
    """The run exists; only new ones are refused."""
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend, 10, rules=limited(max_queued=1)) as runner:
        await start(runner, "ada")
        await backend.taken()
        second = await start(runner, "ada", request_id="mine")
        await refusal(runner, "ada")
        assert (await start(runner, "ada", request_id="mine")).run_id == second.run_id


async def test_a_full_history(tmp_path: Path) -> None:
    """A Start after the end that fills it is refused; after a deletion the next one is admitted."""
    backend = FakeBackend()
    async with running(a_store(Store, tmp_path), backend, rules=limited(max_history_bytes=1)) as runner:
        assert runner._history._task is not None
        await runner._history._task
        run = await start(runner, "ada")
        (await backend.taken()).tell(KernelReady(), DONE)
        with calling("ada"):
            await ended(runner, run.run_id)
        assert await refusal(runner, "ada") == ("history", "1", 0.0)
        with calling("ada"):
            used = (await runner.info()).share
        assert used.history_bytes == runner._store.folder(run.run_id).size()
        assert runner.refusals == Counter({Quota.HISTORY: 1})
        other = await start(runner, "bob")
        (await backend.taken()).tell(KernelReady(), DONE)
        await events(runner, other.run_id)
        with calling("ada"):
            await runner.delete(run.run_id)
            assert (await runner.info()).share.history_bytes == 0
        await start(runner, "ada")


async def test_a_start_right_after_the_end_that_fills_the_history(tmp_path: Path) -> None:
    """It waits until the run is measured, and is refused, while Starts of others are not delayed."""
    gate = threading.Event()

    class SlowStore(Store):
        @override
        def folder(self, run_id: str) -> RunFolder:
            found = super().folder(run_id)
            measure = found.size
            found.size = lambda: measure() if gate.wait(60) else 0  # type: ignore[method-assign] # of this one
            return found

    store, backend = a_store(SlowStore, tmp_path), FakeBackend(2)
    async with running(store, backend, rules=limited(max_history_bytes=1)) as runner:
        run = await start(runner, "ada")
        (await backend.taken()).tell(KernelReady(), DONE)
        with calling("ada"):
            await ended(runner, run.run_id)
        refused = asyncio.create_task(refusal(runner, "ada"))
        await settled(store)
        assert (await start(runner, "bob")).state is S.QUEUED
        gate.set()
        assert await refused == ("history", "1", 0.0)


async def test_a_share_after_a_restart(tmp_path: Path) -> None:
    """The groups of the newest Start count for runs that wait, also before their owner calls again."""
    rules = ShareRules(
        ShareRule(max_active=1, max_queued=5),
        groups={"team": ShareRule(max_active=2), "lab": ShareRule(max_active=3)},
    )
    async with abandoned(a_store(Store, tmp_path), FakeBackend(), 10, lambda: rules) as runner:
        first = await start(runner, "eve")
        with calling("eve"):
            await reach(runner, first.run_id, S.STARTING)
        runs = [await start(runner, "ada", "team", "other") for _ in range(4)]
    backend = FakeBackend(4)
    async with running(a_store(Store, tmp_path), backend, 10, rules=lambda: rules) as runner:
        handles = [await backend.taken(), await backend.taken()]
        await settled(runner._store)
        assert [await state(runner, run) for run in runs] == [S.STARTING] * 2 + [S.QUEUED] * 2
        handles[0].tell(KernelReady(), DONE)
        await backend.taken(runs[2].run_id)
        # A Start with another group changes the share for all that waits.
        await start(runner, "ada", "lab")
        await backend.taken(runs[3].run_id)


async def test_groups_are_stored_only_where_they_count(tmp_path: Path) -> None:
    """A server without rules of groups has no use for them."""
    for folder, rules, groups in (
        ("without", ShareRules(ShareRule(max_active=1)), ()),
        ("with", ShareRules(groups={"x": ShareRule()}), ("a", "b")),
    ):
        store = a_store(Store, tmp_path / folder)
        async with running(store, FakeBackend(), rules=lambda rules=rules: rules) as runner:  # type: ignore[misc]
            run = await start(runner, "ada", "b", "a")
            record = await store.find(run.run_id)
            assert record is not None
            assert record.options.owner_groups == groups


async def test_shares_that_change(tmp_path: Path) -> None:
    """A larger share starts what waits, a smaller one ends nothing, and a history is measured on demand."""
    rules = ShareRules(ShareRule(max_active=1))
    backend = FakeBackend(3)
    async with running(a_store(Store, tmp_path), backend, 10, rules=lambda: rules) as runner:
        runs = [await start(runner, "ada") for _ in range(4)]
        handles = [await backend.taken()]
        rules = ShareRules(ShareRule(max_active=2))
        runner.apply_shares()
        handles.append(await backend.taken(runs[1].run_id))
        rules = ShareRules(ShareRule(max_active=1, max_history_bytes=10**9))
        runner.apply_shares()
        assert runner._history._task is not None
        await runner._history._task
        handles[0].tell(KernelReady(), DONE)
        await events(runner, runs[0].run_id)
        await settled(runner._store)
        assert [await state(runner, run) for run in runs[1:]] == [S.STARTING, S.QUEUED, S.QUEUED]
        with calling("ada"):
            assert (await runner.info()).share.share == Share(1, None, 10**9)
            assert (await runner.info()).share.history_bytes > 0
        handles[1].tell(KernelReady(), DONE)
        await backend.taken(runs[2].run_id)
