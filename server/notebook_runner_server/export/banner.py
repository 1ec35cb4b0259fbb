"""What a page says about the run at its top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Banner:
    """The facts of a run, as text for a reader.

    Attributes:
        title: What the run is called; empty: as its notebook.
        state: The state in words, such as "Timed out".
        tone: How the state is coloured: "good", "bad" or "neutral".
        facts: Names and values, such as when the run started.
        parameters: Names and values of the run's parameters.
        parameters_omitted: The number of further parameters.
        message: Why the run did not succeed; empty: it did, or has not ended.
        cell_index: The cell in which it failed, from 0; None if there is none, or it is unknown.
    """

    title: str
    state: str
    tone: str
    facts: Sequence[tuple[str, str]] = ()
    parameters: Sequence[tuple[str, str]] = ()
    parameters_omitted: int = 0
    message: str = ""
    cell_index: int | None = None
