"""The site is built strictly, needs no other host, and its reference is what the sources say."""

import dataclasses
import html
import os
import re
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

import notebook_runner
from docsite import contract, repository
from notebook_runner.cli import main
from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner_server.config import ENVIRONMENT_PREFIX, Settings
from notebook_runner_server.errors import reasons
from tests.support.pages import REPOSITORY

pytestmark = pytest.mark.long

SECONDS = 300
# Reasons that the contract names and that the server's tree need not have: who may call is not asked yet, nor
# are URIs read, and a fault of the server's own is no kind of error.
NOT_IN_THE_TREE = {"MISSING_TOKEN", "BAD_TOKEN", "INTERNAL_ERROR", "UNKNOWN_METHOD", "UNKNOWN_SERVICE"}


def build(target: Path, docs: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Builds the site as `make docs` does."""
    configuration = (REPOSITORY / "mkdocs.yml").read_text()
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)]
    if docs:
        # Paths in it are relative to where it is.
        changed = configuration.replace("docs_dir: docs", f"docs_dir: {docs}")
        changed = changed.replace("docsite/hooks.py", str(REPOSITORY / "docsite" / "hooks.py"))
        own = docs.parent / "mkdocs.yml"
        own.write_text(changed)
        command += ["--config-file", str(own)]
    return subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site."""
    target = tmp_path_factory.mktemp("site")
    done = build(target)
    assert done.returncode == 0, done.stderr
    return target


def text(site: Path, page: str) -> str:
    """What readers see of a page."""
    whole = (site / page).read_text()
    article = whole[whole.index("<article") : whole.index("</article>")]
    return html.unescape(re.sub(r"<[^>]+>", "", article))


def test_nothing_comes_from_another_host(site: Path) -> None:
    """No page, style or script makes a browser fetch anything from elsewhere."""
    for page in site.rglob("*.html"):
        tags = re.findall(r"<(?:link|script|img|iframe|source|object|video)\b[^>]*>", page.read_text())
        assert [tag for tag in tags if re.search(r"""(?:href|src|data)=["']?(?:https?:)?//""", tag)] == []
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)]*", style.read_text()) == []


def test_every_page_is_in_the_navigation(site: Path) -> None:
    """Each page of docs/ can be reached from the first one."""
    navigation = (site / "index.html").read_text().partition("<article")[0]
    for page in (REPOSITORY / "docs").rglob("*.md"):
        place = page.relative_to(REPOSITORY / "docs").with_suffix(".html").as_posix()
        assert f'href="{place}"' in navigation or place == "index.html", place


def test_the_contract_is_whole(site: Path) -> None:
    """Every call, message, field and value is there, each with its comment."""
    page = text(site, "reference/contract.html")
    described = contract.described()
    names = [method.name for service in described.service for method in service.method]
    for message in described.message_type:
        names += [message.name, *(field.name for field in message.field)]
    for enum in described.enum_type:
        names += [enum.name, *(value.name for value in enum.value)]
    assert [name for name in names if name not in page] == []
    comments = [place.leading_comments for place in described.source_code_info.location]
    first_words = [" ".join(comment.split()[:4]) for comment in comments if comment.strip()]
    assert len(first_words) > 100
    shown = " ".join(page.replace("`", "").split())
    assert [words for words in first_words if words.replace("`", "") not in shown] == []


def test_every_setting_is_there(site: Path) -> None:
    """Each has its flag, its variable and its meaning."""
    page = " ".join(text(site, "reference/settings.html").split())
    for setting in dataclasses.fields(Settings):
        assert f"--{setting.name.replace('_', '-')}" in page
        assert f"{ENVIRONMENT_PREFIX}_{setting.name.upper()}" in page
        assert setting.metadata["help"].partition(" [default")[0] in page


def test_every_reason_is_explained(site: Path) -> None:
    """Each reason that the contract names is on the page of errors, with status and exception."""
    page = text(site, "reference/errors.html")
    named = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", contract.markdown())) - statuses() - values()
    assert named - set(reasons()) <= NOT_IN_THE_TREE
    assert set(reasons()) <= named
    assert [reason for reason in reasons() if reason not in page] == []
    row = re.search(r"RUNNER_BUSY\s+All workers.*\n\s*(\w+)\s+(\d)", page)
    assert row
    assert row.groups() == ("RunnerBusy", "7")


def statuses() -> set[str]:
    """The names of gRPC's statuses."""
    return {code.name for code in grpc.StatusCode}


def values() -> set[str]:
    """The names of the values of the contract's enumerations, and of the states as people write them."""
    names = {value.name for enum in pb.DESCRIPTOR.enum_types_by_name.values() for value in enum.values}
    return names | {name.removeprefix("RUN_STATE_") for name in names}


def test_the_client_is_there(site: Path) -> None:
    """Each name that the package exports, and each method of the clients, has its docstring."""
    page = " ".join(text(site, "reference/python.html").split())
    for name in notebook_runner.__all__:
        value = getattr(notebook_runner, name)
        if isinstance(value, type):
            first = (value.__doc__ or "").split("\n")[0].replace("`", "")
            assert first in page, name
    for name, method in vars(notebook_runner.Client).items():
        if not name.startswith("_"):
            assert (method.__doc__ or "").split("\n")[0].replace("`", "") in page, name


def test_the_command_line_is_there(site: Path) -> None:
    """Each command has its help, and the exit codes are told."""
    page = text(site, "reference/command-line.html")
    for name in main.commands:
        assert f"Usage: notebook-runner {name} [OPTIONS]" in page
    assert "the run was killed" in page


@pytest.mark.parametrize(
    ("link", "complaint"),
    [
        ("nowhere.md", "nowhere.md"),
        ("#nowhere", "#nowhere"),
        ("../../server/nowhere.py", "server/nowhere.py"),
        ("reference/settings.md#nowhere", "#nowhere"),
    ],
)
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path, link: str, complaint: str) -> None:
    """Pages, anchors in them, files of the repository: each is looked up."""
    docs = tmp_path / "docs"
    (docs / "reference").mkdir(parents=True)
    (docs / "index.md").write_text(f"# Index\n\n[link]({link})\n")
    (docs / "reference" / "settings.md").write_text("# Settings\n\n<!-- generated: settings -->\n")
    done = build(tmp_path / "site", docs)
    assert done.returncode != 0
    assert complaint in done.stderr


def test_links_are_right_in_both_places() -> None:
    """What is right on a Git host is made right in the site."""
    page = "[a](../README.md) [b](kill.md#x) [c](#d) [e](https://example.com/f) ![g](../docs/bench.svg)"
    made = repository.relinked(page, "how-to/index.md")
    assert "[a](../README.md)" in made  # of docs/, which has none: MkDocs tells
    assert repository.relinked("[a](../../README.md)", "how-to/b.md") == "[a](../repository/README.md)"
    assert "[b](kill.md#x) [c](#d) [e](https://example.com/f)" in made
    own = repository.relinked("[a](sweep.py) [b](../docs/tutorial.md#run)", "repository/examples/README.md")
    assert own == "[a](sweep.py) [b](../../tutorial.md#run)"
