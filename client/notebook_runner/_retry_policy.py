"""When the server repeats a run, as typed attributes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._states import States, parse_states, state_of
from ._values import Seconds, duration, span
from .v1 import notebook_runner_pb2 as contract

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Retry"]


@dataclass(frozen=True)
class Retry:
    """When the server repeats a run that did not succeed: each time as a new run, the next attempt.

    Attributes:
        max_retries: Maximum number of repetitions, from 1 to 100.
        states: The states after which the run is repeated: `crashed`, `interrupted` or `timed_out`. Empty:
            `crashed` and `interrupted`. A run that was killed, or whose cell raised an exception, is never
            repeated.
        backoff: The time from the end of the run to the earliest start of its first repetition, in seconds;
            it doubles with each further one. None: the server's default, 1 s.
        max_backoff: The longest such time, in seconds. None: the server's default, 5 minutes.
    """

    max_retries: int
    states: States = ()
    backoff: Seconds | None = None
    max_backoff: Seconds | None = None

    @classmethod
    def of(cls, message: contract.RetryPolicy) -> Self:
        """Return the policy in a message."""
        return cls(
            message.max_retries,
            tuple(state_of(state) for state in message.states),
            span(message.backoff) if message.HasField("backoff") else None,
            span(message.max_backoff) if message.HasField("max_backoff") else None,
        )

    def message(self) -> contract.RetryPolicy:
        """Return the policy as the contract's message.

        Raises:
            TypeError: A value is of another type.
            ValueError: A state is unknown, or a value is out of range.
        """
        return contract.RetryPolicy(
            max_retries=self.max_retries,
            states=parse_states(self.states),
            backoff=None if self.backoff is None else duration(self.backoff),
            max_backoff=None if self.max_backoff is None else duration(self.max_backoff),
        )
