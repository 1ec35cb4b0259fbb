"""Files of artefacts: written whole, read in pages, forgotten when newer ones are there."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from notebook_runner_server.runs.errors import OffsetPastEndError
from notebook_runner_server.runs.folder import private

KEPT_SNAPSHOTS = 4
"""How many artefacts of one format are kept for a run that goes on; older ones can be made again."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """A file that is whole, what is in it, and its SHA-256 in hexadecimal."""

    path: Path
    media_type: str
    sha256: str


def writer(pieces: Iterable[bytes]) -> Callable[[Path], object]:
    """Return what writes these pieces to a file."""

    def write(target: Path) -> None:
        with open(target, "wb", opener=private) as file:
            file.writelines(pieces)

    return write


def draft(path: Path) -> Path:
    """Return a name of its own to write an artefact under: a call that was given up may still be writing."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}")


def _about(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def save(path: Path, media_type: str, write: Callable[[Path], object]) -> Artefact:
    """Have an artefact written beside its place, and put it there when it is whole."""
    whole = draft(path)
    try:
        write(whole)
        # Whoever has written it, it is this user's alone.
        whole.chmod(0o600)
        with whole.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        whole.replace(path)
    finally:
        whole.unlink(missing_ok=True)
    with open(_about(path), "w", encoding="utf-8", opener=private) as about:
        json.dump([media_type, digest], about)
    return Artefact(path, media_type, digest)


def load(path: Path) -> Artefact | None:
    """Return an artefact that was made before; None: it was not."""
    try:
        media_type, digest = json.loads(_about(path).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return Artefact(path, media_type, digest) if path.exists() else None


def forget(folder: Path, to: str) -> None:
    """Remove all but the newest artefacts of a format."""
    numbers = [path.name.removeprefix(f"{to}-") for path in folder.iterdir()]
    found = sorted(int(number) for number in numbers if number.isdecimal())
    for number in found[:-KEPT_SNAPSHOTS]:
        path = folder / f"{to}-{number}"
        _about(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def read(path: Path, offset: int, size: int) -> tuple[bytes, int]:
    """Return some bytes from an offset on, and how many there are altogether.

    Raises:
        OffsetPastEndError: It ends before.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        total = os.fstat(descriptor).st_size
        check_offset(offset, total)
        return os.pread(descriptor, size, offset), total
    finally:
        os.close(descriptor)


def check_offset(offset: int, total: int) -> None:
    """Refuse an offset that is past the end.

    Raises:
        OffsetPastEndError: It is.
    """
    if offset > total:
        raise OffsetPastEndError(
            f"The artefact has {total} bytes, and {offset} is past its end.",
            field="offset",
            total_bytes=str(total),
        )
