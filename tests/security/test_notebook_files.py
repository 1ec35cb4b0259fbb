"""Which files a notebook can read and write, from each of its threads and from its children."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.attacks import DENIED, HEAD, SECRET
from tests.support.calls import inline, perform, texts
from tests.support.notebooks import notebook
from tests.support.unprivileged import UnprivilegedServer, unprivileged_home
from tests.support.warm import kept, was_used

STATE = """
import subprocess
other = Path({other!r})
attempt("list", lambda: os.listdir(state))
attempt("history", lambda: open(state / "notebook-runner.db", "rb").read())
attempt("history to write", lambda: os.open(state / "notebook-runner.db", os.O_WRONLY))
attempt("history by descriptor", lambda: open("/proc/self/fd/%d" % os.open(
    state / "notebook-runner.db", os.O_PATH), "rb").read())
attempt("truncate", lambda: os.truncate(state / "notebook-runner.db", 0))
attempt("delete", lambda: os.unlink(state / "notebook-runner.db-wal"))
attempt("log of changes", lambda: open(state / "notebook-runner.db-wal", "rb").read())
attempt("key of requests", lambda: open(state / "request-key", "rb").read())
attempt("own segments", lambda: open(run_folder.parent / "segments", "rb").read())
attempt("own segments to write", lambda: os.open(run_folder.parent / "segments", os.O_WRONLY | os.O_APPEND))
attempt("own environment", lambda: open(run_folder.parent / "environment").read())
attempt("other segments", lambda: open(other.parent / "segments", "rb").read())
attempt("other file", lambda: open(other / "left.txt").read())
attempt("other folder", lambda: os.listdir(other))
attempt("write to other", lambda: open(other / "new.txt", "w"))
attempt("new run", lambda: os.mkdir(state / "runs" / "new"))
attempt("own folder away", lambda: os.rename(run_folder, run_folder.parent / "away"))
attempt("hard link", lambda: os.link(state / "notebook-runner.db", run_folder / "hard"))
os.symlink(state / "notebook-runner.db", run_folder / "soft")
attempt("link", lambda: open(run_folder / "soft", "rb").read())
attempt("from the root", lambda: open(f"/proc/self/root{{state}}/notebook-runner.db", "rb").read())
def by_a_child():
    done = subprocess.run(["cat", state / "notebook-runner.db"], capture_output=True)
    return done.stdout or b"denied" not in done.stderr or denied()
def denied():
    raise PermissionError(errno.EACCES, "")
attempt("by a child", by_a_child)
sockets = Path(os.environ["TMPDIR"]).parents[2]
attempt("sockets of all", lambda: os.listdir(sockets))
attempt("sockets of the worker", lambda: os.listdir(Path(os.environ["TMPDIR"]).parents[1]))
"""


def test_the_history_cannot_be_read_or_changed(plain: UnprivilegedServer, attack: Callable[..., Any]) -> None:
    """Neither the state folder, nor another run's folder, nor its own run's past."""
    left = perform(plain.stub, inline("import os; open('left.txt', 'w').write('x'); print(os.getcwd())"))
    other = texts(left.events).strip()
    found = attack(STATE.format(other=other), environment={"GIVEN": "x"})
    assert {name: got for name, got in found.items() if got not in DENIED} == {}
    assert len(found) == 23
    assert (Path(other) / "left.txt").read_text() == "x"


FILES = """
archive = run_folder.parent / "input-files"
attempt("archive", lambda: open(archive, "rb").read())
attempt("archive to write", lambda: os.open(archive, os.O_WRONLY))
attempt("archive away", lambda: os.unlink(archive))
attempt("file beside the folder", lambda: open(run_folder.parent / "segments", "rb").read())
told["sizes"] = [len(open(name).read()) for name in ("environment", "segments", "deep/begun")]
told["modes"] = [oct(os.stat(name).st_mode & 0o777) for name in ("environment", "deep", "deep/begun")]
open("environment", "w").write("changed")
"""


def test_files_of_a_request_are_only_in_the_working_folder(
    plain: UnprivilegedServer, attack: Callable[..., Any]
) -> None:
    """With names of the server's own files they replace none of these, and their content is not logged."""
    content = "content-of-a-file-5647382910"
    names = ["environment", "segments", "deep/begun"]
    files = [pb.InputFile(path=name, content=content.encode()) for name in names]
    found = attack(FILES, files=files)
    assert found.pop("sizes") == [len(content)] * 3
    assert found.pop("modes") == ["0o600", "0o700", "0o600"]
    assert {name: got for name, got in found.items() if got not in DENIED} == {}
    assert len(found) == 4
    assert content not in str(plain.log)
    assert content not in "".join(plain.noise)
    (run,) = plain.stub.List(pb.ListRequest(page_size=1)).runs
    folder = plain.state_dir / "runs" / run.run_id
    holding = [one for one in folder.rglob("*") if one.is_file() and content.encode() in one.read_bytes()]
    assert sorted(holding) == [folder / "work" / name for name in ("deep/begun", "segments")]


THREADS = """
import asyncio
from concurrent.futures import Future

kernel = get_ipython().kernel

def on(loop, action):
    done = Future()
    def call():
        try:
            done.set_result(action())
        except BaseException as error:
            done.set_exception(error)
    loop.add_callback(call)
    return done.result(60)

loops = {"output": kernel.iopub_thread.io_loop, "control": kernel.control_thread.io_loop}
for name, loop in loops.items():
    told[name + " thread"] = on(loop, threading.get_ident) != threading.main_thread().ident
    attempt(name + " reads", lambda: on(loop, lambda: open(state / "notebook-runner.db", "rb").read()))
    attempt(name + " writes", lambda: on(loop, lambda: open(Path.home() / "new", "w")))
    attempt(name + " kills", lambda: on(loop, lambda: os.kill(server, 0)))
"""


def test_no_thread_of_the_kernel_may_more(attack: Callable[..., Any]) -> None:
    """Those that were there before the notebook have been confined as its own."""
    found = attack(THREADS)
    assert found.pop("output thread") is True
    assert found.pop("control thread") is True
    assert set(found.values()) <= DENIED
    assert len(found) == 6


WRITES = """
prefix = Path(sys.prefix)
attempt("home", lambda: open(Path.home() / "new", "w"))
attempt("start-up file", lambda: open(Path.home() / ".ipython/profile_default/startup/evil.py", "w"))
attempt("temporary folder of all", lambda: open("/tmp/new-of-a-notebook", "w"))
attempt("a package", lambda: open(Path(os.__file__).parent / "new.py", "w"))
attempt("a kernelspec", lambda: os.makedirs(Path.home() / ".local/share/jupyter/kernels/evil"))
attempt("a configuration", lambda: os.mkdir(Path.home() / ".config/evil"))
attempt("notebooks of others", lambda: open(Path.home() / "notebooks/other/evil.ipynb", "w"))
"""
ALLOWED = """
for folder in (".", run_folder, os.environ["TMPDIR"], "/dev/shm", Path.home() / ".cache"):
    path = Path(folder, f"new-{os.getpid()}")
    attempt(str(folder), lambda: (path.write_text("x"), path.read_text(), path.unlink()))
attempt("null", lambda: open("/dev/null", "w").write("x"))
attempt("shared memory", lambda: __import__("multiprocessing.shared_memory").shared_memory.SharedMemory(
    create=True, size=10).unlink())
attempt("a child", lambda: __import__("multiprocessing").get_context("fork").Pool(1).apply(os.getpid))
attempt("a package", lambda: open(os.__file__).read(10))
"""


def with_profile(plain: UnprivilegedServer) -> None:
    """Gives the user a profile of IPython's, which every kernel has links to."""
    (plain.home / ".ipython/profile_default/startup").mkdir(parents=True, exist_ok=True)
    plain.give(plain.home / ".ipython")


def test_what_may_be_written(plain: UnprivilegedServer, attack: Callable[..., Any]) -> None:
    """A private notebook: its folders, devices and caches, and nothing beside them."""
    (plain.root / "other").mkdir(exist_ok=True)
    plain.give(plain.root / "other")
    with_profile(plain)
    assert set(attack(WRITES).values()) == {"EACCES"}
    found = attack(ALLOWED)
    assert {name: got for name, got in found.items() if not got.startswith("got")} == {}


def test_a_notebook_works_in_its_own_folder(plain: UnprivilegedServer, mode: str) -> None:
    """One that is named by its path may write beside itself, and not beside others."""
    for name in ("mine", "other"):
        (plain.root / name).mkdir(exist_ok=True)
    nbformat.write(
        notebook(HEAD + ALLOWED + WRITES + "print(json.dumps(told), os.getpid())"),
        plain.root / "mine" / "a.ipynb",
    )
    plain.give(plain.root)
    with_profile(plain)
    spare = kept(plain)[1] if mode == "warm" else 0
    ended = perform(plain.stub, pb.StartRequest(notebook_path="mine/a.ipynb"))
    assert ended.run.state == pb.RUN_STATE_SUCCEEDED, ended.run.failure
    noted, _, pid = texts(ended.events).rpartition(" ")
    found = json.loads(noted)
    assert mode == "cold" or was_used(plain, int(pid), spare)
    denied = {name for name, got in found.items() if got == "EACCES"}
    assert denied == {
        "home", "start-up file", "temporary folder of all", "a kernelspec", "a configuration",
        "notebooks of others", "a package",
    }  # fmt: skip


def test_what_a_kernel_leaves_for_its_worker_is_no_trap(plain: UnprivilegedServer) -> None:
    """The worker reads what a dead kernel wrote, and no file that the kernel has put in its place."""
    (plain.home / "key.pem").write_text(SECRET)
    source = (
        "import shutil\n"
        "folder = Path(os.environ['TMPDIR']).parent\n"
        "for name in {'log', *os.listdir(folder)} - {'tmp'}:\n"
        "    path = folder / name\n"
        "    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)\n"
        "    os.symlink(Path.home() / 'key.pem', path)\n"
        "os._exit(3)"
    )
    ended = perform(plain.stub, inline(HEAD + source))
    assert ended.run.failure.exit_code == 3
    assert SECRET not in str(ended.run)


def test_a_file_that_is_newer_than_a_spare_can_be_read(plain: UnprivilegedServer) -> None:
    """A kernel that was started before it cannot read it; the run has another."""
    path = plain.home / "new.csv"
    path.write_text("1")
    ended = perform(
        plain.stub, inline("from pathlib import Path; print((Path.home() / 'new.csv').read_text())")
    )
    path.unlink()
    assert texts(ended.events) == "1\n", ended.run.failure


def test_everything_is_the_users_alone() -> None:
    """Folders 0700 and files 0600, also where the operator's umask hides nothing."""
    with unprivileged_home() as home, UnprivilegedServer(home, umask=0) as server:
        ended = perform(server.stub, inline("1"))
        for form in ("html", "files", "markdown"):
            server.stub.Output(pb.OutputRequest(run_id=ended.run.run_id, format=form))
        kept(server)
        scratch = (server.state_dir / "scratch").resolve()
        found = [
            server.state_dir,
            *server.state_dir.rglob("*"),
            scratch,
            *scratch.glob("*"),
            *scratch.glob("*/*"),
        ]
        modes = {one: one.stat().st_mode for one in found}
    folders = {mode & 0o777 for mode in modes.values() if stat.S_ISDIR(mode)}
    files = {mode & 0o777 for mode in modes.values() if stat.S_ISREG(mode)}
    assert (folders, files) == ({0o700}, {0o600}), modes
    assert len(modes) > 15
