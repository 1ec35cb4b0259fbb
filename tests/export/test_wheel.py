"""The wheel has what an export needs beside its modules."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

from tests.support.notebooks import notebook

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
SECONDS = 600.0


def test_the_wheel_makes_pages(tmp_path: Path) -> None:
    """A page and slides are made by what is in the wheel alone."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=SECONDS)
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as wheel:
        wheel.extractall(tmp_path / "unpacked")
    nbformat.write(notebook("print('hello')"), tmp_path / "source.ipynb")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "unpacked")}
    for to in ("html", "slides"):
        source = "from pathlib import Path; from notebook_runner_server.export.formats import convert; "
        call = f"print(convert({to!r}, Path('source.ipynb'), Path('{to}.html')))"
        done = subprocess.run(
            [sys.executable, "-P", "-c", source + call],
            cwd=tmp_path,
            env=environment,
            check=True,
            capture_output=True,
            timeout=SECONDS,
        )
        assert done.stdout == b"text/html\n"
        assert "Content-Security-Policy" in (tmp_path / f"{to}.html").read_text()
