"""Runs quickstart.ipynb through a server of its own, live in the terminal, and keeps the results.

What `make demo` does: start a server on its defaults, run the notebook with the command line client, write
the executed notebook and its HTML, stop the server.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

EXAMPLES = Path(__file__).parent
RESULTS = EXAMPLES.parent / "demo-output"
COMMANDS = Path(sys.executable).parent


def start_server(state: str) -> tuple[subprocess.Popen[str], str]:
    """Start a server on a free port, and return it with its address once it serves."""
    command = [str(COMMANDS / "notebook-runner-server"), "--listen", "127.0.0.1:0", "--state-dir", state]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        said = json.loads(line) if line.startswith("{") else {}
        if said.get("event") == "server_started":
            return server, said["address"]
        print(line, end="", file=sys.stderr)
    raise SystemExit(f"the server ended with code {server.wait()}")


def run_notebook(address: str, parameters: list[str]) -> int:
    """Run the notebook with the command that people use, and return its exit code."""
    notebook, page = RESULTS / "quickstart.ipynb", RESULTS / "quickstart.html"
    command = [str(COMMANDS / "notebook-runner"), "run", str(EXAMPLES / "quickstart.ipynb"), *parameters]
    return subprocess.run(
        [*command, "--output", str(notebook), "--html", str(page)],
        env={**os.environ, "NOTEBOOK_RUNNER_TARGET": address},
        check=False,
    ).returncode


def main() -> int:
    """Run the demonstration; arguments are passed on, `-p games 10` for example."""
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="notebook-runner-demo-") as state:
        server, address = start_server(state)
        try:
            code = run_notebook(address, sys.argv[1:])
        finally:
            server.terminate()
            server.wait()
    print(f"\nThe executed notebook: {RESULTS / 'quickstart.ipynb'}")
    print(f"The same as a page:    {RESULTS / 'quickstart.html'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
