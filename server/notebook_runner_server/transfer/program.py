"""Reads or writes one notebook, as a program of its own, so that the server can abandon it at any moment.

::

    python -m notebook_runner_server.transfer.program

The request is one line of JSON on standard input, where nobody reads it who lists processes; when standard
input ends, so does the program. It names a descriptor, the file of the notebook: what is to be written, or
empty and to be filled with what was read. The answer is one line of JSON on standard output, `{}` or
`{"error": …, "message": …}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import sys
import threading
from collections.abc import Mapping
from typing import Any, BinaryIO

from notebook_runner_server.transfer.interface import (
    MissingError,
    RefusedError,
    TransferError,
    TransferTooLargeError,
    UnreachableError,
)
from notebook_runner_server.transfer.policy import WEB, ParsedUri, parse

PR_SET_DUMPABLE = 4  # linux/prctl.h

KINDS: Mapping[str, type[TransferError]] = {
    "refused": RefusedError,
    "missing": MissingError,
    "too large": TransferTooLargeError,
    "unreachable": UnreachableError,
}
"""How each error is told to the server."""


def _read(request: Mapping[str, Any], place: ParsedUri) -> bytes:
    if place.scheme in WEB:
        from notebook_runner_server.transfer import web  # noqa: PLC0415 - an extra

        reading = web.read(request["uri"], request["limit"], any_address=request["any_address"])
        return asyncio.run(reading)
    if place.scheme == "file":
        from notebook_runner_server.transfer import files  # noqa: PLC0415 - only what is needed

        return files.read(place.path, request["folders"], request["limit"])
    from notebook_runner_server.transfer import objects  # noqa: PLC0415 - an extra

    return objects.read(place, request["limit"])


def _write(request: Mapping[str, Any], place: ParsedUri, abandoned: contextlib.ExitStack) -> None:
    descriptor = request["notebook"]
    with open(descriptor, "rb", closefd=False) as notebook:
        if place.scheme in WEB:
            from notebook_runner_server.transfer import web  # noqa: PLC0415 - an extra

            asyncio.run(web.write(request["uri"], notebook, any_address=request["any_address"]))
        elif place.scheme == "file":
            from notebook_runner_server.transfer import files  # noqa: PLC0415 - only what is needed

            files.write(place.path, request["folders"], notebook, abandoned)
        else:
            from notebook_runner_server.transfer import objects  # noqa: PLC0415 - an extra

            objects.write(place, descriptor)


def carry_out(request: Mapping[str, Any], abandoned: contextlib.ExitStack) -> Mapping[str, str]:
    """Do what a request says, and return the answer."""
    place = parse(request["uri"])
    try:
        if request["action"] == "write":
            _write(request, place, abandoned)
        else:
            _keep(_read(request, place), request)
    except TransferError as error:
        kind = next(name for name, kind in KINDS.items() if isinstance(error, kind))
        return {"error": kind, "message": str(error)}
    except Exception as error:  # noqa: BLE001 - the libraries' errors have no common root; all are said
        # A text about a URI of the web may show its signature.
        text = "" if place.scheme in WEB else f": {error}"
        return {"error": "unreachable", "message": f"{type(error).__name__}{text}"[:300]}
    return {}


def _keep(content: bytes, request: Mapping[str, Any]) -> None:
    """Hand over what was read."""
    if len(content) > request["limit"]:
        raise TransferTooLargeError("it is too large")
    with open(request["notebook"], "wb", closefd=False) as file:
        file.write(content)


def _end_with(lifeline: BinaryIO, abandoned: contextlib.ExitStack) -> None:
    lifeline.read()
    abandoned.close()
    os._exit(1)


def main() -> None:
    """Answer the one request that comes on standard input."""
    # It has the server's environment, with credentials of object stores; nobody else may look into it.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    abandoned = contextlib.ExitStack()
    # What a library prints is no answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with, args=(sys.stdin.buffer, abandoned), daemon=True).start()
    answer = carry_out(request, abandoned)
    abandoned.close()
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
