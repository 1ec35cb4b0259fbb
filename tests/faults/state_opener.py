"""Opens each state folder that its input names, a line each, and prints the ids of its runs, or an error."""

import asyncio
import sys
from pathlib import Path

from notebook_runner_server.runs.store import Store


async def runs_of(folder: Path) -> str:
    """The ids of all runs, in one line."""
    store = Store(folder)
    try:
        await store.open()
        return " ".join(sorted([row.run_id for row in await store.list(10**6, 1000, [], {})]))
    finally:
        await store.close()


def main() -> None:
    """Answers until its input ends."""
    for line in sys.stdin:
        try:
            answer = asyncio.run(runs_of(Path(line.strip())))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at the next start
            answer = f"failed: {error!r}"
        sys.stdout.write(answer.replace("\n", " ") + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
