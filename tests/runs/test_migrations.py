"""The scripts that upgrade the schema in PostgreSQL say which servers can use it afterwards."""

from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from notebook_runner_server.runs.postgres import migrate
from tests.faults.upgraded_server import scripts_up_to

SCRIPT = """
revision = {revision!r}
down_revision = {before!r}
{oldest}
"""


def mistakes(folder: Path) -> list[str]:
    """What is wrong with the scripts of a folder."""
    config = Config()
    config.set_main_option("script_location", str(folder))
    scripts = ScriptDirectory.from_config(config)
    try:
        newest = scripts.get_current_head()
    except CommandError:
        return [f"several newest: {', '.join(sorted(scripts.get_heads()))}"]
    found, before, floor = [], None, ""
    for script in reversed(list(scripts.walk_revisions())):
        oldest = getattr(script.module, "oldest_version", None)
        if Path(script.path).stem != f"v{script.revision}":
            found.append(f"{script.path} is {script.revision}")
        if script.down_revision != before or script.revision <= (before or ""):
            found.append(f"{script.revision} does not follow {before}")
        if not isinstance(oldest, str):
            found.append(f"{script.revision} has no oldest_version")
        elif not floor <= oldest <= script.revision or scripts.get_revision(oldest) is None:
            found.append(f"{script.revision} has the oldest_version {oldest}")
        else:
            floor = oldest
        before = script.revision
    return [*found, *([] if newest == before else [f"{newest} is not the newest"])]


def test_the_scripts_of_the_server() -> None:
    """They follow each other, and each names the oldest servers that can use what it leaves."""
    assert mistakes(migrate.SCRIPTS) == []
    versions = [path.stem.removeprefix("v") for path in (migrate.SCRIPTS / "versions").glob("v*.py")]
    assert max(versions) == migrate.VERSION


def test_the_scripts_of_the_tests(tmp_path: Path) -> None:
    """They follow those of the server."""
    assert mistakes(scripts_up_to("9999", tmp_path / "scripts")) == []


@pytest.mark.parametrize(
    ("revision", "before", "oldest", "said"),
    [
        ("0002", "0001", "", "0002 has no oldest_version"),
        ("0002", "0001", "oldest_version = None", "0002 has no oldest_version"),
        ("0002", "0001", "oldest_version = '0003'", "0002 has the oldest_version 0003"),
        ("0002", "0001", "oldest_version = ''", "0002 has the oldest_version "),
        ("0002", None, "oldest_version = '0001'", "several newest: 0001, 0002"),
        ("0000", "0001", "oldest_version = '0000'", "0000 does not follow 0001"),
    ],
)
def test_mistakes_are_found(
    tmp_path: Path, revision: str, before: str | None, oldest: str, said: str
) -> None:
    """A script that says nothing, or something impossible, or that is a branch."""
    folder = scripts_up_to("0001", tmp_path / "scripts")
    text = SCRIPT.format(revision=revision, before=before, oldest=oldest)
    (folder / "versions" / f"v{revision}.py").write_text(text)
    assert said in mistakes(folder)
