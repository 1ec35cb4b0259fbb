"""The changes of runs, as `watch` yields them.

::

    Change                any change, and one of a newer server that this client does not know
    ├── RunChange         a run is in a state
    ├── RunDeleted        a run was deleted
    └── ExistingSent      the runs that existed have come; what follows are changes

All are frozen dataclasses, made for `match`::

    for change in client.watch():
        match change:
            case RunChange(run) if run.is_terminal:
                print(run.id, run.state)
            case RunDeleted(run_id):
                print(run_id, "is gone")
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ._printable import one_line
from ._snapshot import RunSnapshot
from .v1 import notebook_runner_pb2 as contract

__all__ = ["Change", "ExistingSent", "RunChange", "RunDeleted", "change_of"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of runs. An instance of this class itself comes from a newer server.

    Attributes:
        cursor: Where to continue after this change: `client.watch(cursor=change.cursor)`.
        pb: The message of the contract, `notebook_runner.v1.notebook_runner_pb2.WatchResponse`.
    """

    cursor: str
    pb: contract.WatchResponse = field(repr=False, compare=False)

    def __str__(self) -> str:
        return one_line(self._described())

    def _described(self) -> str:
        return self.pb.WhichOneof("change") or "unknown change"


@dataclass(frozen=True)
class RunChange(Change):
    """A run is in a state: a new one, or before `ExistingSent` the one that it is in.

    Attributes:
        run: The run as it was when it came into this state.
    """

    run: RunSnapshot

    def _described(self) -> str:
        return str(self.run)


@dataclass(frozen=True)
class RunDeleted(Change):
    """A run was deleted, by a call or by retention.

    Attributes:
        run_id: The run.
    """

    run_id: str

    def _described(self) -> str:
        return f"run {self.run_id} deleted"


@dataclass(frozen=True)
class ExistingSent(Change):
    """The runs that existed have come; what follows are changes."""

    def _described(self) -> str:
        return "existing runs sent"


def change_of(message: contract.WatchResponse) -> Change:
    """Return the typed change of a message."""
    match message.WhichOneof("change"):
        case "run":
            return RunChange(RunSnapshot(message.run), cursor=message.cursor, pb=message)
        case "deleted_run_id":
            return RunDeleted(message.deleted_run_id, cursor=message.cursor, pb=message)
        case "existing_sent":
            return ExistingSent(cursor=message.cursor, pb=message)
        case _:
            return Change(cursor=message.cursor, pb=message)
