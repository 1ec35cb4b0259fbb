"""The repository stands alone, and its files agree about its packages, targets, checks and version."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath

import pytest
import yaml

from checks.repository_paths import ROOT, findings, repository_files
from notebook_runner import __version__

pytestmark = pytest.mark.unit

UP = "../"  # put together below, because the check reads this file as well
TOP = "TOP = Path(__file__).resolve().parents[2]\n"


def found(root: Path, name: str, content: str) -> list[str]:
    """What the check finds in a file, in a repository with one more that names the root."""
    for path, text in {"tests/support/places.py": TOP, name: content}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return list(findings(root, [PurePosixPath(name)]))


def make(*arguments: str) -> list[str]:
    """The lines that make prints."""
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()


IN_A_CHECKOUT = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="a source distribution has no list of its files"
)


@IN_A_CHECKOUT
def test_the_repository_stands_alone() -> None:
    """No file names a path above the root, or a path of one machine."""
    assert list(findings(ROOT, repository_files(ROOT))) == []


@pytest.mark.parametrize(
    ("name", "line", "content"),
    [
        ("tests/e2e/test_a.py", 1, 'DATA = Path(__file__).parents[3] / "elsewhere"'),
        ("tests/e2e/test_a.py", 1, "DATA = pathlib.Path(__file__).resolve().parent.parent.parent.parent"),
        ("tests/e2e/test_a.py", 3, "HERE = Path(__file__).parent\ndef test():\n    read(HERE.parents[2])"),
        ("tests/test_a.py", 2, 'from tests.support.places import TOP\nDATA = TOP.parent / "elsewhere"'),
        (
            "tests/test_a.py",
            2,
            "from tests.support.places import TOP as T\nsys.path.append(str(T.parents[0]))",
        ),
        ("tests/test_a.py", 1, 'DATA = Path(__file__).parent.joinpath("..", "..", "elsewhere")'),
        ("benchmarks/a.py", 1, 'DATA = os.path.join(os.path.dirname(__file__), "..", "..", "elsewhere")'),
        (".ci/run", 2, f"set -e\n{UP}shared/container/setup"),
        (".ci/run", 1, f'cd "$(dirname "$0")/{UP}.."'),
        ("Makefile", 2, f"test:\n\tcp $(CURDIR)/{UP}shared/notebooks ."),
        ("docs/how-to/a.md", 1, f"[a page]({UP * 3}notes/page.md)"),
        ("k8s/base/kustomization.yaml", 1, f"resources: [{UP * 2}..]"),
        ("README.md", 1, "cd /" + "home/alice/notebook-runner"),
        ("pyproject.toml", 1, "find-links = '/" + "opt/wheels'"),
        ("docs/a.md", 2, "```\nnotebook-runner run file://" + "/" + "srv/a.ipynb -v /" + "work/data:/data"),
    ],
)
def test_a_path_out_of_the_repository_is_found(tmp_path: Path, name: str, line: int, content: str) -> None:
    """Each way to name something beside the repository is found, with its line."""
    (finding,) = found(tmp_path, name, content)
    assert finding.startswith(f"{name}:{line}: ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tests/e2e/test_a.py", 'DATA = Path(__file__).parents[2] / "docs"'),
        ("tests/e2e/test_a.py", f'name = "{UP * 2}etc/passwd"'),
        ("tests/test_a.py", 'from tests.support.places import TOP\nDATA = TOP / "docs"'),
        ("tests/test_a.py", "Path(grpc.__file__).parents[9], run_folder.parents[9]"),
        (".ci/run", 'cd "$(dirname "$0")/.."\n"$HOME"/x ...'),
        (
            "docs/how-to/a.md",
            f"[a page]({UP * 2}README.md), s3://bucket/{UP * 4}x, /proc/self/{UP * 3}1, 1..2",
        ),
        ("Dockerfile", "RUN python3 -m venv /opt/notebook-runner"),
    ],
)
def test_a_path_inside_the_repository_is_none(tmp_path: Path, name: str, content: str) -> None:
    """A path that stays inside, a URI, and a path that each machine has are no findings."""
    assert found(tmp_path, name, content) == []


def test_a_link_out_of_the_repository_is_found(tmp_path: Path) -> None:
    """A symbolic link that leads out is found, one that stays inside is not."""
    (tmp_path / "docs").mkdir()
    os.symlink("../README.md", tmp_path / "docs" / "inside.md")
    os.symlink(f"{UP * 2}elsewhere", tmp_path / "docs" / "outside")
    (finding,) = findings(tmp_path, [PurePosixPath("docs/inside.md"), PurePosixPath("docs/outside")])
    assert finding.startswith("docs/outside: ")


def test_files_are_those_of_git_and_new_ones(tmp_path: Path) -> None:
    """Files that are not added yet are checked, those that git ignores are not."""
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)  # noqa: S607 - the one on PATH
    for name in ("new.py", "ignored.py"):
        (tmp_path / name).touch()
    (tmp_path / ".gitignore").write_text("ignored.py\n")
    assert [str(name) for name in repository_files(tmp_path)] == [".gitignore", "new.py"]


@IN_A_CHECKOUT
def test_the_source_distribution_is_the_repository(tmp_path: Path) -> None:
    """The source distribution has tests, docs and locks as well, and nothing that git ignores."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    there = {str(name) for name in repository_files(ROOT) if (ROOT / name).is_file()}
    assert packed ^ there == {"PKG-INFO"}


def test_hooks_are_checks_of_make_check() -> None:
    """Each pre-commit hook runs a line of `make check`, from .venv."""
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    assert {hook["language"] for hook in local["hooks"]} == {"system"}
    assert {hook["entry"] for hook in local["hooks"]} <= set(make("--dry-run", "check"))


def test_help_is_a_table() -> None:
    """`make help` names each target, with its description in one column."""
    lines = [re.fullmatch(r"([a-z-]+) +(?=[A-Z])(.*)", line) for line in make("help")]
    assert all(lines)
    assert len({line.start(2) for line in lines if line}) == 1
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert {line[1] for line in lines if line} == set(phony[1].split())


def test_contributing_names_targets_that_exist() -> None:
    """CONTRIBUTING.md and RELEASING.md name no target that the Makefile does not have."""
    targets = {line.split()[0] for line in make("help")}
    for page in ("CONTRIBUTING.md", "RELEASING.md"):
        assert set(re.findall(r"`make ([a-z-]+)", (ROOT / page).read_text())) <= targets


def test_contributing_names_each_package() -> None:
    """CONTRIBUTING.md says what is in each package of the client and the server."""
    modules = [*ROOT.glob("client/**/__init__.py"), *ROOT.glob("server/**/__init__.py")]
    packages = {f"{module.parent.relative_to(ROOT)}/" for module in modules} - {"client/notebook_runner/v1/"}
    assert packages
    assert packages <= set(re.findall(r"`([\w/]+/)`", (ROOT / "CONTRIBUTING.md").read_text()))


def test_pages_and_manifests_name_this_version() -> None:
    """Images that pages and manifests name have the version of the distribution."""
    manifests = [
        *ROOT.glob("k8s/**/kustomization.yaml"),
        *ROOT.glob("docs/**/*.md"),
        ROOT / "Dockerfile",
        ROOT / "compose.yaml",
    ]
    image = re.compile(r"(?:notebook-runner:|newTag: )(\d+\.\d+\.\d+)")
    named = {
        (str(path.relative_to(ROOT)), version)
        for path in manifests
        for version in image.findall(path.read_text())
    }
    assert {path.split("/")[0] for path, _ in named} == {"k8s", "docs", "Dockerfile", "compose.yaml"}
    assert {entry for entry in named if entry[1] != __version__} == set()


def test_the_changelog_begins_with_unreleased() -> None:
    """The changelog has a section for what is not released, and below it one for this version."""
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == ["Unreleased", __version__]


def test_the_readme_is_short_and_begins_with_pictures() -> None:
    """The README shows a run and its HTML before the first section, and has at most 700 words."""
    page = (ROOT / "README.md").read_text()
    pictures = re.findall(r'<img src="([^"]+)"', page.partition("\n## ")[0])
    assert pictures == ["docs/assets/live.svg", "docs/assets/page.png"]
    assert all((ROOT / picture).is_file() for picture in pictures)
    assert len(page.split()) <= 700
