"""The texts of failures."""

import pytest

from notebook_runner_server.execution.failures import MESSAGES
from notebook_runner_server.execution.interface import Cause, Limits

# Cells, kernels and limits of resources: no call stops a run for them, and their messages say what happened.
FOUND = {
    Cause.CELL_ERROR,
    Cause.KERNEL_SIGNALED,
    Cause.KERNEL_EXITED,
    Cause.OUT_OF_MEMORY,
    Cause.KERNEL_NOT_READY,
    Cause.PROCESS_LIMIT,
}


@pytest.mark.parametrize("cause", Cause)
def test_each_cause_that_stops_a_run_has_a_message(cause: Cause) -> None:
    """A worker that had none could not end the run."""
    assert (cause in MESSAGES) != (cause in FOUND)


@pytest.mark.parametrize("message", MESSAGES.values())
def test_a_message_may_name_limits(message: str) -> None:
    """Those of the run."""
    assert message.format(Limits(run_timeout=1.5)).endswith(".")
