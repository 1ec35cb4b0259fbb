"""A run's folder: the notebook put together from segments equals what nbformat writes."""

import hashlib
import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat import NotebookNode

from notebook_runner_server.errors import DamagedRunError
from notebook_runner_server.execution.interface import FilePiece, FilesLeft, KeptContent
from notebook_runner_server.execution.notebook import encode_cell, encode_tail
from notebook_runner_server.execution.segments import HEAD, TAIL
from notebook_runner_server.runs.folder import COPY_BYTES, RunFolder
from notebook_runner_server.runs.model import Segment
from tests.support.notebooks import code, markdown, notebook, written

pytestmark = pytest.mark.state_folder("it is about the files of a run")

CELLS: list[list[str | NotebookNode]] = [
    [],
    ["1"],
    ["print('ä €')", markdown("# title\n\ntext"), code("a = 1\nb = 2\n", "parameters", "tag")],
    [str(number) for number in range(30)],
]
sources = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=5)


def filed(path: Path, node: NotebookNode) -> tuple[RunFolder, list[Segment]]:
    """A folder with the segments of a notebook, and where they are."""
    folder = RunFolder(path)
    folder.create()
    pieces = {**dict(enumerate(map(encode_cell, node.cells))), TAIL: encode_tail(node)}
    segments, start = [], 0
    for number, data in pieces.items():
        segments.append(Segment(number, 0, start, len(data)))
        start += len(data)
    folder.write(0, pieces.values())
    return folder, segments


@pytest.mark.parametrize("cells", CELLS, ids=len)
def test_a_notebook_equals_what_nbformat_writes(tmp_path: Path, cells: list[str | NotebookNode]) -> None:
    """Byte for byte, with its final newline, with no cell, one or many."""
    node = notebook(*cells, kernelspec={"name": "python3", "display_name": "Python"}, title="ü")
    folder, segments = filed(tmp_path, node)
    path = tmp_path / "reference.ipynb"
    nbformat.write(node, path)
    assert b"".join(folder.notebook(segments)) == path.read_bytes()


@settings(deadline=None, database=None, max_examples=100)
@given(sources=sources)
def test_any_source_equals_what_nbformat_writes(
    tmp_path_factory: pytest.TempPathFactory, sources: list[str]
) -> None:
    """Whatever characters and line ends the cells have."""
    node = notebook(*sources)
    folder, segments = filed(tmp_path_factory.mktemp("run"), node)
    assert b"".join(folder.notebook(segments)).removesuffix(b"\n") == written(node).removesuffix(b"\n")


def test_segments_are_put_in_order_and_only_the_given_versions(tmp_path: Path) -> None:
    """The order on disk does not matter, and what is on disk beside the given versions is not read."""
    folder = RunFolder(tmp_path)
    folder.create()
    folder.write(0, [b"TAIL", b"two", b"old", b"ten", b"one"])
    segments = [Segment(10, 1, 10, 3), Segment(TAIL, 0, 0, 4), Segment(2, 3, 4, 3), Segment(1, 2, 13, 3)]
    assert b"".join(folder.notebook(segments)) == HEAD + b"one,two,tenTAIL"


def test_a_segment_larger_than_a_copy_is_read_in_pieces(tmp_path: Path) -> None:
    """No more than a bounded piece is in memory at once, and the pieces are the segment."""
    folder = RunFolder(tmp_path)
    folder.create()
    data = b"0123456789" * (COPY_BYTES // 4)
    folder.write(0, [data])
    pieces = list(folder.notebook([Segment(0, 0, 0, len(data)), Segment(TAIL, 0, 0, 0)]))
    assert max(map(len, pieces)) == COPY_BYTES
    assert hashlib.sha256(b"".join(pieces)).digest() == hashlib.sha256(HEAD + data).digest()


def test_writing_at_a_place_replaces_what_a_crash_has_left(tmp_path: Path) -> None:
    """Bytes after the last known segment are written over, those before it stay."""
    folder = RunFolder(tmp_path)
    folder.create()
    assert folder.segments_size() == 0
    folder.write(0, [b"known", b"torn"])
    folder.write(5, [b"ne", b"w"])
    assert folder.segments_size() == 9
    segments = [Segment(0, 1, 0, 5), Segment(1, 2, 5, 3), Segment(TAIL, 0, 0, 0)]
    assert b"".join(folder.notebook(segments)) == HEAD + b"known,new"


def test_removing_is_well_however_little_is_there(tmp_path: Path) -> None:
    """A folder with files in it goes, and one that has gone is no error."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.create()
    (folder.work / "below").mkdir()
    (folder.work / "below" / "file").write_text("x")
    folder.remove()
    folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_pieces_of_a_file_may_come_twice(tmp_path: Path) -> None:
    """A server that was started again is told of what it had already; the file is as it was left."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    pieces = [
        FilePiece("deep/a", start, data, 0o440, 10**18)
        for start, data in ((0, b"one"), (3, b"two"), (6, b""))
    ]
    for piece in [*pieces, *pieces[1:]]:
        folder.write_file(piece)
    file = folder.work / "deep" / "a"
    assert file.read_bytes() == b"onetwo"
    assert (file.stat().st_mode & 0o777, file.stat().st_mtime_ns) == (0o640, 10**18)


@pytest.mark.parametrize("name", ["../segments", "deep/../../segments", "/etc/passwd"])
def test_nothing_is_brought_to_another_place(tmp_path: Path, name: str) -> None:
    """What a worker says is for a file of the folder, or for none."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    with pytest.raises(OSError, match="out of its folder"):
        folder.write_file(FilePiece(name, 0, b"x", 0o600, 0))
    assert not (folder.path / "segments").exists()


def test_too_much_is_remembered(tmp_path: Path) -> None:
    """How large the folder was is known, also to the next server."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    assert folder.files_left() == 0
    folder.write_file(FilesLeft(10))
    assert RunFolder(tmp_path / "run").files_left() == 10


@pytest.mark.parametrize("other", [os.mkfifo, os.mkdir, lambda path: os.symlink("missing", path)])
def test_what_is_in_the_place_of_the_segments_is_damage(
    tmp_path: Path, other: Callable[[Path], None]
) -> None:
    """Nobody waits for the other end of a pipe."""
    folder, segments = filed(tmp_path, notebook("1"))
    (tmp_path / "segments").unlink()
    other(tmp_path / "segments")
    with pytest.raises(DamagedRunError):
        list(folder.notebook(segments))


def test_kept_content_is_part_of_the_file_of_segments(tmp_path: Path) -> None:
    """So it counts as the run's, and is checked like a segment."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    before = folder.size()
    folder.write(0, [b"segment", b"abc", b"de"])
    kept = [KeptContent(0, 7, 3, zlib.crc32(b"abc")), KeptContent(4, 10, 2, zlib.crc32(b"de"))]
    assert folder.contents(kept) == {0: b"abc", 4: b"de"}
    assert folder.size() == before + 12
    for one in (replace(kept[0], checksum=1), replace(kept[1], length=3)):
        with pytest.raises(DamagedRunError, match="the content of a display"):
            folder.contents([one])
