"""The shared memory of a run: files in `/dev/shm`, memfds, and System V objects.

Objects with a name or a number remain when their processes end, and pages that no process has touched count
for none. Linux knows the creator of a segment but not of a file, and other programs of the same user create
both. So an object belongs to the run if it is newer than the run, and a process of the run created it, or had
it open or mapped at a check. Where the user has only this worker's runs (in a container), all newer objects
do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from notebook_runner_server import folder_tree
from notebook_runner_server.execution.processes import children, descendants, living_thread, open_files

_FOLDER = Path("/dev/shm")  # noqa: S108 - where shm_open has its files
_BLOCK = 512
_REMOVE = 0  # linux/ipc.h: IPC_RMID
_libc = ctypes.CDLL(None, use_errno=True)
# Memory that has no page on any disk, as /proc/PID/maps and the links of /proc/PID/fd name it.
_UNNAMED, _SEGMENT = "/memfd:", "/SYSV"

# Of /proc/sysvipc: a kind, and its columns for number, bytes, and the process that made it or used it last.
_TABLES = (
    ("shm", "shmid", "rss", "cpid"),
    ("msg", "msqid", "cbytes", "lspid"),
    ("sem", "semid", "", ""),
)
# Python's own; another process of the server may be about to open one by its name.
_SEMAPHORE = "sem.mp-"

Key = tuple[str, int]
"""An object: the device of a file, or System V's kind, and a number."""


@dataclass(frozen=True, slots=True)
class _Object:
    """An object that has a name or a number.

    Attributes:
        size: Bytes.
        name: The file's name.
        maker: The process that created it or used it last; 0: unknown.
    """

    size: int
    name: str = ""
    maker: int = 0


class SharedMemory:
    """Tracks the shared memory of one run.

    Args:
        is_alone: Whether nothing else of this user creates shared memory.
        folders: Folders of the run, which are memory if they are on a tmpfs.
    """

    def __init__(self, *, is_alone: bool, folders: Iterable[Path]) -> None:
        self._is_alone = is_alone
        self._folders = [folder for folder in folders if _is_on_tmpfs(folder)]
        self._before = frozenset(_objects())
        self._own: set[Key] = set()
        self._seen: set[int] = set()

    def look(self, processes: Callable[[], Iterable[int]]) -> dict[Key, int]:
        """Find the objects that the run's processes have created, or have open or mapped.

        Args:
            processes: Returns the run's processes; only called if new objects exist.

        Returns:
            The bytes of each object of the run with a name or a number.
        """
        new = _objects(self._before)
        if unknown := new.keys() - self._own:
            pids = list(processes())
            self.see(pids)
            names = {name for pid in pids for name in _names(pid)}
            self._own |= {key for key in unknown if new[key].name in names or new[key].maker in self._seen}
        return {key: found.size for key, found in new.items() if key in self._own}

    def see(self, pids: Iterable[int]) -> None:
        """Remember the run's processes, whose objects are the run's even after their end."""
        self._seen.update(pids)

    def sizes(self, files: Iterable[tuple[str, str]]) -> dict[Key, int]:
        """Return the bytes of each unnamed object of the run, and of its folders on a tmpfs.

        Args:
            files: The open files of the run's processes, as `open_files` returns them.
        """
        found = _unnamed(files)
        for folder in self._folders:
            found.update({_key(entry.about): _bytes(entry.about) for entry in folder_tree.walk(folder)})
        return found

    def remove(self) -> None:
        """Remove the run's objects, after the end of its processes."""
        new = _objects(self._before)
        if new.keys() - self._own and self._is_alone and _has_user_to_itself():
            self._own |= {key for key, found in new.items() if not found.name.startswith(_SEMAPHORE)}
        for key in new.keys() & self._own:
            _remove(key, new[key])
        self._own.clear()


def mapped(pids: Iterable[int]) -> dict[Key, int]:
    """Return the bytes of each object that processes have mapped together, as their share of its pages."""
    found: dict[Key, int] = {}
    for pid in pids:
        for key, size in _mapped(pid).items():
            found[key] = found.get(key, 0) + size
    return found


def _objects(but: Container[Key] = ()) -> dict[Key, _Object]:
    """Return the objects of this user, except some."""
    user = os.geteuid()
    found: dict[Key, _Object] = {}
    with contextlib.suppress(OSError), os.scandir(_FOLDER) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                about = entry.stat(follow_symlinks=False)
                if about.st_uid == user and _key(about) not in but:
                    is_folder = stat.S_ISDIR(about.st_mode)
                    size = _room(Path(entry.path)) if is_folder else _bytes(about)
                    found[_key(about)] = _Object(size, entry.name)
    for kind, *columns in _TABLES:
        for row in _table(kind):
            number, size, maker = (int(row.get(column, "0")) for column in columns)
            if int(row["uid"]) == user and (kind, number) not in but:
                found[kind, number] = _Object(size, maker=maker)
    return found


def _table(kind: str) -> Iterator[Mapping[str, str]]:
    # A system may have been built without them.
    with contextlib.suppress(OSError):
        head, *lines = Path(f"/proc/sysvipc/{kind}").read_text(encoding="ascii").splitlines()
        for line in lines:
            yield dict(zip(head.split(), line.split(), strict=False))


def _remove(key: Key, found: _Object) -> None:
    kind, number = key
    match kind:
        case "shm":
            _libc.shmctl(number, _REMOVE, None)
        case "msg":
            _libc.msgctl(number, _REMOVE, None)
        case "sem":
            _libc.semctl(number, 0, _REMOVE)
        case _:
            with contextlib.suppress(IsADirectoryError, FileNotFoundError):
                (_FOLDER / found.name).unlink()
                return
            folder_tree.remove_if_possible(_FOLDER / found.name)


def _unnamed(files: Iterable[tuple[str, str]]) -> dict[Key, int]:
    """Return the unnamed objects among open files, with their sizes in bytes."""
    found: dict[Key, int] = {}
    for path, link in files:
        if link.startswith((f"{_FOLDER}/", _UNNAMED)):
            # A process may vanish at any moment.
            with contextlib.suppress(OSError):
                about = os.stat(path)
                if not about.st_nlink:
                    found[_key(about)] = _bytes(about)
    return found


def _names(pid: int) -> set[str]:
    """Return the names of the files and folders of the shared folder that a process has open or mapped."""
    paths = [link for _, link in open_files(pid)]
    for line in _lines(f"/proc/{living_thread(pid)}/maps"):
        # A name may have any character but a null byte.
        _, slash, path = line.partition("/")
        paths.append(slash + path)
    begin = f"{_FOLDER}/"
    return {path.removeprefix(begin).split("/")[0] for path in paths if path.startswith(begin)}


def _lines(path: str) -> list[str]:
    """Return the lines of a file in /proc; none: the process is gone."""
    with contextlib.suppress(OSError):
        # Of all that can end a line, Linux escapes the line feed alone.
        return os.fsdecode(Path(path).read_bytes()).split("\n")
    return []


def _mapped(pid: int) -> dict[Key, int]:
    """Return the objects that a process has mapped, with its share of their pages in bytes."""
    found: dict[Key, int] = {}
    key: Key | None = None
    for line in _lines(f"/proc/{living_thread(pid)}/smaps"):
        head, _, rest = line.partition(" ")
        if not head.endswith(":"):
            key = _key_of_mapping(rest)
        elif head == "Pss:" and key is not None:
            found[key] = found.get(key, 0) + int(rest.split()[0]) * 1024
    return found


def _key_of_mapping(rest: str) -> Key | None:
    """Return the object of a line of /proc/PID/smaps after its addresses; None: it is of none."""
    match rest.split(maxsplit=4):
        case [_, _, _, number, path] if path.startswith(_SEGMENT):
            return "shm", int(number)
        # Memory of no file has the number 0.
        case [_, _, device, number, _] if number != "0":
            major, minor = (int(part, 16) for part in device.split(":"))
            return f"device {os.makedev(major, minor)}", int(number)
    return None


def _key(about: os.stat_result) -> Key:
    return f"device {about.st_dev}", about.st_ino


def _bytes(about: os.stat_result) -> int:
    return about.st_blocks * _BLOCK


def _room(folder: Path) -> int:
    """Return the size of the files below a folder."""
    return sum(_bytes(entry.about) for entry in folder_tree.walk(folder))


def _is_on_tmpfs(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        device = folder.stat().st_dev
        name = f"{os.major(device)}:{os.minor(device)}"
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return any(line.split()[2] == name and " - tmpfs " in line for line in lines)
    return False


def _has_user_to_itself() -> bool:
    """Return whether all processes of this user belong to the server, which is above this one."""
    server = os.getppid()
    own = {server, *descendants(server)}
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) not in own:
            with contextlib.suppress(OSError):
                # A program that only waits for the server, such as a container's first one, makes nothing.
                if os.stat(f"/proc/{name}").st_uid == os.geteuid() and server not in children(int(name)):
                    return False
    return True
