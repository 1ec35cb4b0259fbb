"""What a server knows of the Dask workers: who takes runs, what each has, and why another takes none."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from notebook_runner_server.execution import worker_protocol
from notebook_runner_server.execution.cluster import messages
from notebook_runner_server.execution.cluster.messages import Description, HostOptions, LeaseAddress
from notebook_runner_server.execution.interface import WarmCounts

_log = logging.getLogger(__name__)


class Workers:
    """The workers of a cluster, by their addresses.

    Args:
        options: What this server tells each.

    Attributes:
        kernels: The kernelspecs of the one that was last seen, by name, and the language of each.
        left: Where the runs are that workers had when they were first asked, by the run's id.
    """

    def __init__(self, options: HostOptions) -> None:
        self._options = options
        self.kernels: Mapping[str, str] = {}
        self.left: dict[str, LeaseAddress] = {}
        self._there: dict[str, Description] = {}
        self._metrics: Mapping[str, Mapping[str, Any]] = {}
        self._running: frozenset[str] = frozenset()
        self._refused: set[str] = set()

    @property
    def usable(self) -> frozenset[str]:
        """The addresses of those that take runs."""
        # Whoever asks may be on another thread.
        there = tuple(self._there.items())
        return frozenset(address for address, one in there if one.slots and address in self._running)

    @property
    def slots(self) -> int:
        """How many runs they execute at once."""
        return sum(one.slots for address, one in tuple(self._there.items()) if address in self._running)

    @property
    def warm_counts(self) -> Mapping[str, WarmCounts]:
        """The kernels that they keep, by kernelspec, as the scheduler was told last."""
        counts: dict[str, WarmCounts] = {}
        for address in self.usable:
            for name, (ready, wanted) in self._metrics.get(address, {}).get(messages.SPARES, {}).items():
                before = counts.get(name, WarmCounts(0, 0))
                counts[name] = WarmCounts(before.ready + ready, before.wanted + wanted)
        return counts

    @property
    def unknown(self) -> frozenset[str]:
        """The addresses of those that have not said what they have."""
        return frozenset(self._metrics.keys() - self._there.keys() - self._refused)

    def keep(self, there: Mapping[str, Mapping[str, Any]]) -> None:
        """Take which workers are there, and what the scheduler says of each."""
        for gone in self._there.keys() - there.keys():
            del self._there[gone]
        self.left = {run_id: place for run_id, place in self.left.items() if place.address in there}
        self._metrics = {address: one["metrics"] for address, one in there.items()}
        # Another one may have the address later.
        self._refused &= there.keys()
        # One that is drained, or short of memory, finishes what it has and takes nothing more.
        self._running = frozenset(address for address, one in there.items() if one["status"] == "running")

    def answered(self, address: str, answer: object) -> None:
        """Take what a worker has answered to `install`, if it is there still."""
        if address not in self._metrics:
            return
        match answer:
            case {"status": "OK", "result": bytes(data)}:
                description = worker_protocol.decode(data)
                assert isinstance(description, Description)  # noqa: S101 - what it answers
                self._take(address, description)
            case {"exception_text": why}:
                self._refuse(address, str(why))

    def _take(self, address: str, description: Description) -> None:
        if description.problem:
            self._refuse(address, description.problem)
            return
        self._there[address] = description
        if description.options.shared() != self._options.shared():
            about = {"worker": address}
            _log.warning("a Dask worker keeps an earlier server's settings: it has runs of it", extra=about)
        self.kernels = description.kernels
        self.left.update(
            {run_id: LeaseAddress(address, lease) for run_id, lease in description.leases.items()}
        )

    def _refuse(self, address: str, why: str) -> None:
        _log.error("a Dask worker gets no runs", extra={"worker": address, "why": why})
        self._refused.add(address)
