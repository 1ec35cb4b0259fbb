"""The real server's command, as if its schema in PostgreSQL had a later version.

NBR_TEST_SCHEMA   the folder of Alembic's scripts; the newest one is the version of the server
"""

import os
import shutil
from pathlib import Path

SCRIPTS = "NBR_TEST_SCHEMA"
LATER = Path(__file__).with_name("schema_versions")


def scripts_up_to(version: str, folder: Path) -> Path:
    """Puts the scripts of the server and the later ones up to a version into a folder."""
    from notebook_runner_server.runs.postgres import migrate  # noqa: PLC0415 - an extra

    shutil.copytree(migrate.SCRIPTS, folder)
    for path in LATER.glob("v*.py"):
        if path.stem <= f"v{version}":
            shutil.copy(path, folder / "versions")
    return folder


def main() -> None:
    """Runs the server."""
    from notebook_runner_server.__main__ import main as serve  # noqa: PLC0415 - a worker needs none of it
    from notebook_runner_server.runs.postgres import migrate  # noqa: PLC0415 - as above

    migrate.SCRIPTS = Path(os.environ[SCRIPTS])
    migrate.VERSION = max(path.stem for path in (migrate.SCRIPTS / "versions").glob("v*.py")).removeprefix(
        "v"
    )
    serve()


if __name__ == "__main__":
    main()
