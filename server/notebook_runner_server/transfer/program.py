"""Reads or writes one notebook, or posts one webhook, in a process of its own (`run_in_subprocess`).

For a notebook the process inherits a descriptor: the file of the notebook to write, or an empty file for what
it reads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from notebook_runner_server.transfer.interface import TransferError, TransferTooLargeError, UnreachableError
from notebook_runner_server.transfer.policy import WEB, ParsedUri, UriPolicy, parse


def read(uri: str, notebook: int, policy: UriPolicy, limit: int) -> None:
    """Read the notebook that a URI names.

    Args:
        uri: The URI.
        notebook: The descriptor of the file to fill.
        policy: What the operator allows.
        limit: The most bytes.

    Raises:
        TransferError: It cannot be read.
    """
    parsed = parse(uri)
    with _as_transfer_error(parsed):
        content = _read(uri, parsed, policy, limit)
        if len(content) > limit:
            raise TransferTooLargeError("the notebook is too large")
        with open(notebook, "wb", closefd=False) as file:
            file.write(content)


def _read(uri: str, parsed: ParsedUri, policy: UriPolicy, limit: int) -> bytes:
    if parsed.scheme in WEB:
        from notebook_runner_server.transfer import web  # noqa: PLC0415 - an extra

        return asyncio.run(web.read(uri, limit, any_address=bool(policy.hosts)))
    if parsed.scheme == "file":
        from notebook_runner_server.transfer import files  # noqa: PLC0415 - only what is needed

        return files.read(parsed.path, policy.folders, limit)
    from notebook_runner_server.transfer import objects  # noqa: PLC0415 - an extra

    return objects.read(parsed, limit)


def write(uri: str, notebook: int, policy: UriPolicy) -> None:
    """Write a notebook to a URI.

    Args:
        uri: The URI.
        notebook: The descriptor of the notebook's file.
        policy: What the operator allows.

    Raises:
        TransferError: It cannot be written.
    """
    parsed = parse(uri)
    with _as_transfer_error(parsed), open(notebook, "rb", closefd=False) as file:
        _write(uri, parsed, policy, file)


def _write(uri: str, parsed: ParsedUri, policy: UriPolicy, notebook: BinaryIO) -> None:
    if parsed.scheme in WEB:
        from notebook_runner_server.transfer import web  # noqa: PLC0415 - an extra

        asyncio.run(web.write(uri, notebook, any_address=bool(policy.hosts)))
    elif parsed.scheme == "file":
        from notebook_runner_server.transfer import files  # noqa: PLC0415 - only what is needed

        files.write(parsed.path, policy.folders, notebook)
    else:
        from notebook_runner_server.transfer import objects  # noqa: PLC0415 - an extra

        objects.write(parsed, notebook.fileno())


def post(uri: str, content: bytes, headers: Mapping[str, str], *, any_address: bool) -> None:
    """Post a webhook to a URI.

    Args:
        uri: The URI, of http or https.
        content: The body.
        headers: The headers.
        any_address: Disable the SSRF guard.

    Raises:
        TransferError: It was not accepted.
    """
    from notebook_runner_server.transfer import web  # noqa: PLC0415 - an extra

    with _as_transfer_error(parse(uri)):
        asyncio.run(web.post(uri, content, headers, any_address=any_address))


@contextlib.contextmanager
def _as_transfer_error(parsed: ParsedUri) -> Iterator[None]:
    try:
        yield
    except TransferError:
        raise
    # The libraries' errors have no common base class.
    except Exception as error:
        # A text about a URI of the web may show its signature.
        text = "" if parsed.scheme in WEB else f": {error}"
        raise UnreachableError(f"{type(error).__name__}{text}"[:300]) from error
