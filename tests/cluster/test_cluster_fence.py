"""A lease that has run out is nothing: a job that arrives for it too late is not executed on it."""

import asyncio
from dataclasses import replace
from pathlib import Path

import dask
import pytest

from notebook_runner_server.confinement.policy import SandboxConfig
from notebook_runner_server.execution.cluster import run as cluster_run
from notebook_runner_server.execution.cluster.messages import (
    Acknowledge,
    Batch,
    Channel,
    Heartbeat,
    HostOptions,
    LeaseAddress,
)
from notebook_runner_server.execution.cluster.run import ClusterRun
from notebook_runner_server.execution.cluster.scheduler import SchedulerConnection
from notebook_runner_server.execution.interface import Cause, Ended, ExecutionEvent, Job, Limits, StreamOutput
from notebook_runner_server.execution.options import WarmKernels
from tests.support.cluster import EXECUTOR, Cluster
from tests.support.notebooks import content

TIMEOUT = 6.0
OPTIONS = HostOptions(
    TIMEOUT,
    WarmKernels({}),
    SandboxConfig("off"),
    limit_address_space=False,
    interrupt_grace=0.0,
    max_files_bytes=0,
)


@pytest.fixture
def link(cluster: Cluster) -> SchedulerConnection:
    """The server's side of a cluster, in this process."""
    return linked(cluster)


def linked(cluster: Cluster) -> SchedulerConnection:
    """The same, of one server more."""
    variables = {name: value for name, value in cluster.environment.items() if name.startswith("DASK_")}
    names = {name: name.removeprefix("DASK_").lower().replace("__", ".") for name in variables}
    with dask.config.set({names[name]: value for name, value in variables.items()}):
        return SchedulerConnection(cluster.environment[EXECUTOR].replace("dask+tls", "tls"), OPTIONS)


def job(run_id: str, folder: Path) -> Job:
    """A run that says in a file that it was executed."""
    source = f"open({str(folder / run_id)!r}, 'a').write('executed')"
    place = str(folder)
    return Job(run_id, content(source), "python3", place, place, Limits(), allow_errors=False, environment={})


async def executed(channel: Channel, job: Job) -> None:
    """Executes a job in time."""
    await channel.send(job)
    while True:
        match await channel.receive():
            case Batch(events=[*_, Ended()]):
                return channel.close()
            case Heartbeat() as sign:
                await channel.send(sign)


async def expired(channel: Channel) -> None:
    """Answers no sign of life until the lease must have run out, by the worker's own clock."""
    first: float | None = None
    while True:
        match await channel.receive():
            case Heartbeat(stamp=stamp):
                first = stamp if first is None else first
                if stamp > first + TIMEOUT + 0.5:
                    return


def test_a_job_that_comes_too_late_is_not_begun(link: SchedulerConnection, tmp_path: Path) -> None:
    """Its server has said that the run is lost; the same worker executes what comes after it."""

    async def play() -> None:
        await link.start()
        try:
            place = await cluster_run.lease_slot(link, "late")
            channel = await link.channel(place, 0, 5)
            await expired(channel)
            await channel.send(job("late", tmp_path))
            await channel.until_closed(30)
            # One after the other: what was begun would have had its turn.
            for number in range(4):
                place = await cluster_run.lease_slot(link, f"{number}")
                await executed(await link.channel(place, 0, 5), job(f"{number}", tmp_path))
        finally:
            await link.close()

    asyncio.run(play())
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number}" for number in range(4)]


def test_a_job_whose_lease_has_run_out_gets_another(
    link: SchedulerConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that stood still between lease and job has lost nothing: nobody had the job."""
    leased, late = cluster_run.lease_slot, "late"

    async def too_late(link: SchedulerConnection, run_id: str) -> LeaseAddress:
        monkeypatch.setattr(cluster_run, "lease_slot", leased)
        place = await leased(link, run_id)
        channel = await link.channel(place, 0, 5)
        await expired(channel)
        channel.close()
        return place

    async def play() -> list[ExecutionEvent]:
        await link.start()
        try:
            run = ClusterRun(link, late, job(late, tmp_path), 0, TIMEOUT, lambda _: None)
            return [event async for batch in run.events() for event in batch]
        finally:
            await link.close()

    monkeypatch.setattr(cluster_run, "lease_slot", too_late)
    *_, end = asyncio.run(play())
    assert isinstance(end, Ended)
    assert end.failure is None
    assert (tmp_path / late).read_text() == "executed"


@pytest.mark.parametrize("ended", [False, True], ids=["goes-on", "ended"])
def test_what_a_server_took_and_could_not_write_is_said(
    cluster: Cluster, link: SchedulerConnection, tmp_path: Path, *, ended: bool
) -> None:
    """The next server ends the run by that name, and does not wait for what nobody has; the slot is free."""
    run_id = f"taken-{ended}"
    source = "print(1, flush=True)" + ("" if ended else "\nimport time; time.sleep(100000)")

    async def taken() -> None:
        await link.start()
        try:
            place = await cluster_run.lease_slot(link, run_id)
            channel = await link.channel(place, 0, 5)
            await channel.send(replace(job(run_id, tmp_path), notebook=content(source)))
            while True:
                match await channel.receive():
                    case Heartbeat() as sign:
                        await channel.send(sign)
                    case Batch(number=number, events=[*_, last]):
                        await channel.send(Acknowledge(number))
                        if isinstance(last, Ended if ended else StreamOutput):
                            break
            channel.close()
        finally:
            await link.close()

    async def followed() -> list[ExecutionEvent]:
        following = linked(cluster)
        await following.start()
        try:
            run = ClusterRun(following, run_id, None, 0, TIMEOUT, lambda _: None)
            events = [event async for batch in run.events() for event in batch]
            place = await cluster_run.lease_slot(following, "next")
            await executed(await following.channel(place, 0, 5), job("next", tmp_path))
            return events
        finally:
            await following.close()

    asyncio.run(taken())
    (end,) = asyncio.run(asyncio.wait_for(followed(), 60))
    assert isinstance(end, Ended)
    assert end.failure is not None
    assert end.failure.cause is Cause.STORAGE_FAILED
