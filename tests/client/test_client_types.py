"""What type checkers see of the package, by pyright at its strictest; `make check` has mypy."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
SAMPLE = Path(__file__).with_name("typed_sample.py")
SECONDS = 300.0


def pyright(*arguments: str | Path, folder: Path = ROOT) -> dict[str, Any]:
    """What pyright reports, run in a folder with the packages of this interpreter."""
    settings = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        cwd=folder,
        env={**os.environ, **settings},
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_every_method_has_the_type_that_callers_expect() -> None:
    """A sample that uses all of both clients has no error, and nothing in it is of unknown type."""
    report = pyright("--pythonpath", sys.executable, SAMPLE)
    assert report["summary"]["filesAnalyzed"] == 1
    assert report["generalDiagnostics"] == []


def test_every_parameter_is_typed(tmp_path: Path) -> None:
    """Everything public in the wheel has a type of its own, down to the last parameter and field."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, capture_output=True, check=True, timeout=SECONDS, cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    report = pyright("--verifytypes", "notebook_runner", "--ignoreexternal", folder=tmp_path)
    symbols = [symbol for symbol in report["typeCompleteness"]["symbols"] if symbol["isExported"]]
    names = {symbol["name"] for symbol in symbols}
    assert {"notebook_runner.client.Client.start", "notebook_runner.aio.AsyncClient.start"} <= names
    # The generated code is the generator's, and integrations extend classes of hosts, which have no types.
    own = [one for one in symbols if ".v1." not in one["name"] and ".integrations." not in one["name"]]
    assert [symbol["name"] for symbol in own if not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]] == []
