"""The program that `run_in_subprocess` executes: it calls one function and answers what that returns.

::

    python -P -m notebook_runner_server.subprocess_program MODULE FUNCTION

Standard input has the pickled arguments, `(args, kwargs)`. When it ends, the caller has the answer or is
gone, and the program ends. Standard output has the pickled answer: `(error, result)`, one of which is None.
"""

from __future__ import annotations

import contextlib
import importlib
import operator
import os
import pickle
import sys
import threading
from typing import Any, BinaryIO

from notebook_runner_server.confinement import confine

clean_up = contextlib.ExitStack()
"""What is cleaned up when the call ends or the caller abandons it."""


def main() -> None:
    """Answer the one call."""
    # It has variables of the server and reads notebooks, which no other process may see.
    confine.set_dumpable(False)
    # What libraries read and print, and what other programs inherit, is neither call nor answer.
    calls, answers = (os.fdopen(os.dup(descriptor), mode) for descriptor, mode in ((0, "rb"), (1, "wb")))
    with open(os.devnull, "r+b") as null:
        os.dup2(null.fileno(), 0)
    os.dup2(2, 1)
    args, kwargs = pickle.load(calls)  # noqa: S301 - the caller is this package
    module, name = sys.argv[1:]
    function = operator.attrgetter(name)(importlib.import_module(module))
    threading.Thread(target=_end_with_caller, args=[calls], daemon=True).start()
    answer: tuple[Exception | None, Any]
    try:
        answer = None, function(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - the caller handles it
        answer = error, None
    clean_up.close()
    pickle.dump(answer, answers)
    answers.flush()
    os._exit(0)


def _end_with_caller(calls: BinaryIO) -> None:
    calls.read()
    clean_up.close()
    os._exit(1)


if __name__ == "__main__":
    # Under its own name, by which functions import `clean_up`.
    importlib.import_module("notebook_runner_server.subprocess_program").main()
