"""Opens each state folder that its input names, a line each, and prints the ids of its runs, or an error.

`admit FOLDER` opens a folder and prints so; after another line it inserts a run and prints whether that was
refused; after a third it closes the folder.
"""

import asyncio
import sys
from pathlib import Path

from notebook_runner_server.errors import StorageFullError
from notebook_runner_server.runs.store import Store
from tests.runs.stores import insert, opened

ADMIT = "admit "


async def runs_of(folder: Path) -> str:
    """The ids of all runs, in one line."""
    store = Store(folder)
    try:
        await store.open()
        return " ".join(sorted([row.run_id for row in await store.list(10**6, 1000, [], {})]))
    finally:
        await store.close()


async def admit(folder: Path) -> None:
    """Inserts a run when it is told to."""
    async with opened(folder) as store:
        answer("opened")
        sys.stdin.readline()
        try:
            await insert(store, "new")
        except StorageFullError:
            answer("refused")
        else:
            answer("admitted")
        sys.stdin.readline()


def answer(text: str) -> None:
    """Prints one line."""
    sys.stdout.write(text.replace("\n", " ") + "\n")
    sys.stdout.flush()


def main() -> None:
    """Answers until its input ends."""
    for line in iter(sys.stdin.readline, ""):
        if line.startswith(ADMIT):
            asyncio.run(admit(Path(line.removeprefix(ADMIT).strip())))
            continue
        try:
            answer(asyncio.run(runs_of(Path(line.strip()))))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at the next start
            answer(f"failed: {error!r}")


if __name__ == "__main__":
    main()
