"""IPython's magics: every one of them does in a run what it does without the sandbox."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbformat import NotebookNode

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import executed, inline, perform, texts
from tests.support.cases import FOLDER, cell_text
from tests.support.notebooks import printed
from tests.support.server import Server
from tests.support.unprivileged import unprivileged_home
from tests.support.warm import ON, kept

pytestmark = pytest.mark.long

LIST = """
import json
found = get_ipython().magics_manager.magics
print(json.dumps(sorted(['%' + name for name in found['line']] + ['%%' + name for name in found['cell']])))
"""

# One cell for each magic, in this order: later ones use what earlier ones have made.
MAGICS = {
    "%tb": "%tb",
    "%mkdir": "%mkdir one",
    "%cd": "%cd one",
    "%pwd": "%pwd",
    "%pushd": "%pushd ..",
    "%popd": "%popd",
    "%dirs": "%dirs",
    "%dhist": "%dhist",
    "%bookmark": "%bookmark here\n%bookmark -l\n%cd -b here\n%bookmark -d here",
    "%rehashx": "%rehashx",
    "%alias": "%alias shout echo\n%store shout",
    "%unalias": "%unalias shout",
    "%alias_magic": "%alias_magic clock timeit",
    "%store": "value = 1\n%store value\n%store -r value\n%store\n%store -d value\n%store -z",
    "%macro": "%macro again 1",
    "%save": "%save -f saved 1",
    "%%writefile": "%%writefile script.py\nanswer = 42",
    "%%file": "%%file other.py\nanswer = 43",
    "%run": "%run script.py\nassert answer == 42",
    "%load": "%load script.py",
    "%loadpy": "%loadpy script.py",
    "%cat": "%cat script.py",
    "%pycat": "%pycat script.py",
    "%more": "%more script.py",
    "%less": "%less script.py",
    "%cp": "%cp script.py copied.py",
    "%mv": "%mv copied.py moved.py",
    "%rm": "%rm moved.py",
    "%rmdir": "%mkdir empty\n%rmdir empty",
    "%ls": "%ls",
    "%ll": "%ll",
    "%lf": "%lf",
    "%lk": "%lk",
    "%lx": "%lx",
    "%ldir": "%ldir",
    "%env": "%env NBR_MAGIC=1",
    "%set_env": "%set_env NBR_MAGIC 2",
    "%history": "%history -n -f history.txt",
    "%hist": "%hist -g answer",
    "%recall": "%recall 1",
    "%rep": "%rep 1",
    "%rerun": "%rerun 1",
    "%notebook": "%notebook saved.ipynb",
    "%logstart": "%logstart -o log.py",
    "%logstate": "%logstate",
    "%logoff": "%logoff",
    "%logon": "%logon",
    "%logstop": "%logstop",
    "%edit": "%edit script.py",
    "%ed": "%ed script.py",
    # By way of a proxy that is not there: nothing is to leave this machine.
    "%pastebin": "%env https_proxy=http://127.0.0.1:9\n%pastebin script.py",
    "%load_ext": "%load_ext autoreload\n%autoreload 2",
    "%reload_ext": "%reload_ext autoreload",
    "%unload_ext": "%unload_ext autoreload",
    "%config": "%config IPCompleter\n%config IPCompleter.greedy = True",
    "%matplotlib": "%matplotlib inline",
    "%pylab": "%pylab --no-import-all inline",
    "%gui": "%gui asyncio",
    "%qtconsole": "%qtconsole",
    "%connect_info": "%connect_info",
    "%subshell": "%subshell",
    "%pip": "%pip --version",
    "%conda": "%conda --version",
    "%mamba": "%mamba --version",
    "%micromamba": "%micromamba --version",
    "%uv": "%uv --version",
    "%automagic": "%automagic on",
    "%autoawait": "%autoawait",
    "%autocall": "%autocall 1",
    "%autosave": "%autosave 60",
    "%colors": "%colors nocolor",
    "%xmode": "%xmode Verbose",
    "%doctest_mode": "%doctest_mode\n%doctest_mode",
    "%pprint": "%pprint\n%pprint",
    "%precision": "%precision 3",
    "%code_wrap": "%code_wrap --list",
    "%%code_wrap": "%%code_wrap before\n__code__",
    "%debug": "%debug",
    "%%debug": "%%debug\nvalue = 1",
    "%pdb": "%pdb on\n%pdb off",
    "%pdef": "import json\n%pdef json.dumps",
    "%pdoc": "%pdoc json.dumps",
    "%pfile": "%pfile json.dumps",
    "%pinfo": "%pinfo json.dumps",
    "%pinfo2": "%pinfo2 json.dumps",
    "%psource": "%psource json.dumps",
    "%psearch": "%psearch json.d*",
    "%page": "%page json",
    "%man": "%man ls",
    "%quickref": "%quickref",
    "%magic": "%magic",
    "%lsmagic": "%lsmagic",
    "%clear": "%clear",
    "%sc": "%sc -l lines = ls",
    "%sx": "%sx ls",
    "%system": "%system ls",
    "%%sx": "%%sx\nls",
    "%%system": "%%system\nls",
    "%%!": "%%!\nls",
    "%%sh": "%%sh\nls",
    "%%bash": "%%bash --bg\nls",
    "%killbgscripts": "%killbgscripts",
    "%%script": "%%script sh\nls",
    "%%perl": "%%perl\nprint 1",
    "%%pypy": "%%pypy\nprint(1)",
    "%%python": "%%python\nprint(1)",
    "%%python2": "%%python2\nprint(1)",
    "%%python3": "%%python3\nprint(1)",
    "%%ruby": "%%ruby\nputs 1",
    "%%capture": "%%capture kept\nprint(1)",
    "%%HTML": "%%HTML\n<b>bold</b>",
    "%%html": "%%html\n<b>bold</b>",
    "%%javascript": "%%javascript\n1",
    "%%js": "%%js\n1",
    "%%latex": "%%latex\n$x$",
    "%%markdown": "%%markdown\n*x*",
    "%%SVG": '%%SVG\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "%%svg": '%%svg\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "%prun": "%prun -q -D profile.prof -T profile.txt sum(range(9))",
    "%%prun": "%%prun -q\nsum(range(9))",
    "%time": "%time sum(range(9))",
    "%%time": "%%time\nsum(range(9))",
    "%timeit": "%timeit -n 1 -r 1 sum(range(9))",
    "%%timeit": "%%timeit -n 1 -r 1\nsum(range(9))",
    "%who": "%who",
    "%who_ls": "%who_ls",
    "%whos": "%whos",
    "%xdel": "%xdel value",
    "%reset_selective": "%reset_selective -f answer",
    "%reset": "%reset -f",
}
# What these need is not on every machine: a terminal, the network, another program, Qt.
NEEDS = {
    *("%debug", "%%debug", "%pastebin", "%qtconsole", "%matplotlib", "%pylab"),
    *("%conda", "%mamba", "%micromamba", "%uv", "%%perl", "%%pypy", "%%python2", "%%ruby", "%man"),
}
# What some of the cells use; and how many are in one run, which has a minute.
FIRST = ("%%writefile script.py\nanswer = 42", "import json\nanswer = value = 1")
PER_RUN = 35
MODES = {
    "warm": ON,
    "cold": ("--no-warm-kernels",),
    "off": ("--no-warm-kernels", "--sandbox", "off"),
}


def failures(server: Server) -> dict[str, str]:
    """What each magic raised, by its name, and which said that something is denied."""
    listed = json.loads(texts(perform(server.stub, inline(LIST)).events))
    assert set(listed) - set(MAGICS) == set(), "a magic that these tests do not have yet"
    used = {name: source for name, source in MAGICS.items() if name in listed}
    found: dict[str, str] = {}
    for names in (list(used)[at : at + PER_RUN] for at in range(0, len(used), PER_RUN)):
        if "--no-warm-kernels" not in server._command:
            kept(server)
        cells = [*FIRST, *(used[name] for name in names)]
        run = perform(server.stub, inline(*cells, allow_errors=True)).run
        assert run.state == pb.RUN_STATE_SUCCEEDED, run.failure
        executed_cells = executed(server.stub, run.run_id).cells[len(FIRST) :]
        found |= {
            name: why for name, cell in zip(names, executed_cells, strict=True) if (why := failed(cell))
        }
    return found


def failed(cell: NotebookNode) -> str:
    """What a cell raised, or printed where it says that something is wrong; empty: it did what it should."""
    raised = [output.ename for output in cell.outputs if output.output_type == "error"]
    text = cell_text(cell)
    return "".join(raised) or (text if "UsageError" in text or "denied" in text else "")


@pytest.fixture(scope="module", params=MODES)
def at_home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose user has a configuration and data of IPython's, at a home that the sandbox closes."""
    with unprivileged_home() as home:
        profile = home / ".ipython" / "profile_default"
        (profile / "startup").mkdir(parents=True)
        (profile / "startup" / "first.py").write_text("started = 'at start'")
        (profile / "ipython_config.py").write_text("c.InteractiveShell.cache_size = 77")
        (profile / "db" / "autorestore").mkdir(parents=True)
        (profile / "db" / "autorestore" / "value").write_bytes(b"\x80\x02K\x02.")
        options, environment = MODES[request.param], {"HOME": str(home)}
        with Server(tmp_path_factory.mktemp("state"), *options, environment=environment) as server:
            yield server


def test_every_magic_works(at_home: Server) -> None:
    """Only those fail that need what is not there, and none because something is denied."""
    found = failures(at_home)
    assert {name: why for name, why in found.items() if name not in NEEDS} == {}
    assert [name for name, why in found.items() if "denied" in why or "Permission" in why] == []


def test_the_database_is_the_runs_own(at_home: Server) -> None:
    """A run finds nothing that another one, or its own user, has stored, and leaves nothing at home."""
    leave = "value = 1\n%store value\n%bookmark here\n%alias shout echo\n%store shout\n%cd /"
    before = sorted(_ipython_dir(at_home).rglob("*"))
    assert perform(at_home.stub, inline(leave)).run.state == pb.RUN_STATE_SUCCEEDED
    look = "import os\n%store -r\n%store\nprint('value' in globals())\n%bookmark -l"
    run = perform(at_home.stub, inline(look, "print(os.environ['IPYTHONDIR'])")).run
    node = executed(at_home.stub, run.run_id)
    expected = "Stored variables and their in-db values:\nFalse\nCurrent bookmarks:\n"
    assert printed(node, 0) == expected
    assert not Path(printed(node, 1).strip()).exists()
    assert sorted(_ipython_dir(at_home).rglob("*")) == before


def _ipython_dir(server: Server) -> Path:
    return Path(server._environment["HOME"]) / ".ipython"


def test_the_configuration_is_the_users(at_home: Server) -> None:
    """Start-up files and settings in IPython's directory at home hold for a run."""
    ended = perform(at_home.stub, inline("print(started, get_ipython().cache_size)"))
    assert texts(ended.events) == "at start 77\n", ended.run.failure


def test_other_processes_of_the_run(at_home: Server) -> None:
    """IPython as a program, and a notebook that a notebook executes, write into the run's folders too."""
    notebook = (FOLDER / "cd-magic.ipynb").read_text()
    cells = [
        f"import sys\nopen('inner.ipynb', 'w').write({notebook!r})",
        "!{sys.executable} -m IPython --simple-prompt -c '%store -z'\nassert _exit_code == 0",
        "!{sys.executable} -m nbconvert --execute --to notebook inner.ipynb\nassert _exit_code == 0",
    ]
    run = perform(at_home.stub, inline(*cells)).run
    node = executed(at_home.stub, run.run_id)
    assert run.state == pb.RUN_STATE_SUCCEEDED, "\n".join(map(cell_text, node.cells))
