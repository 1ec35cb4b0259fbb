"""The pause between two looks at a condition that a test waits for."""

import threading

PAUSE_SECONDS = 0.02


def pause() -> None:
    """Leaves the processor to what is waited for; a loop without a pause would take a core from it."""
    threading.Event().wait(PAUSE_SECONDS)
