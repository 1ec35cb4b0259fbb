"""Run quickstart.ipynb through a temporary server, live in the terminal, and keep the results.

`make demo` runs this program: it starts a server with default settings, runs the notebook with the command
line client, writes the executed notebook and its HTML, and stops the server.
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
    """Start a server on a free port, wait until it serves, and return it with its address."""
    command = [str(COMMANDS / "notebook-runner-server"), "--listen", "127.0.0.1:0", "--state-dir", state]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("event") == "server_started":
            return server, event["address"]
        if event.get("level") != "info":
            print(line, end="", file=sys.stderr)
    raise SystemExit(f"the server exited with code {server.wait()}")


def run_notebook(address: str, parameters: list[str]) -> int:
    """Run the notebook with the command line client, and return its exit code."""
    notebook, page = RESULTS / "quickstart.ipynb", RESULTS / "quickstart.html"
    command = [str(COMMANDS / "notebook-runner"), "run", str(EXAMPLES / "quickstart.ipynb"), *parameters]
    return subprocess.run(
        [*command, "--output", str(notebook), "--html", str(page)],
        env={**os.environ, "NOTEBOOK_RUNNER_TARGET": address},
        check=False,
    ).returncode


def main() -> int:
    """Run the demonstration, passing arguments on to the command, such as `-p games 10`."""
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="notebook-runner-demo-") as state:
        server, address = start_server(state)
        try:
            code = run_notebook(address, sys.argv[1:])
        finally:
            server.terminate()
            server.wait()
    print(f"\nThe executed notebook: {RESULTS / 'quickstart.ipynb'}")
    print(f"Its HTML:              {RESULTS / 'quickstart.html'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
