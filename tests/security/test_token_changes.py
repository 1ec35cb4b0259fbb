"""A tokens file that changes while the server serves."""

from collections.abc import Callable
from pathlib import Path

import pytest

from notebook_runner.v1 import notebook_runner_pb2 as pb
from tests.support.calls import SECONDS, inline
from tests.support.errors import refused
from tests.support.secure import BAD, bearer, listed, new_token
from tests.support.server import Server


def test_a_removed_token(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """A token that leaves the file is refused with the next call, and its open stream ends; others go on."""
    file = tmp_path / "tokens"
    old = new_token(file, "ci")
    before = file.read_text()
    new = new_token(file, "ci")
    after = file.read_text().removeprefix(before)
    server = make_server("--tokens-file", str(file), "--heartbeat-interval", "0.2")
    run = server.stub.Start(inline("import time; time.sleep(600)"), metadata=bearer(old), timeout=SECONDS).run
    request = pb.ProgressRequest(run_id=run.run_id)
    revoked = server.stub.Progress(request, metadata=bearer(old), timeout=SECONDS)
    kept = server.stub.Progress(request, metadata=bearer(new), timeout=SECONDS)
    assert next(revoked)
    assert next(kept)
    file.write_text(after)
    assert refused(lambda: listed(server.channel, old)).kind == BAD
    assert refused(lambda: list(revoked)).kind == BAD
    ended = server.stub.Kill(pb.KillRequest(), metadata=bearer(new), timeout=SECONDS)
    assert ended.run.state == pb.RUN_STATE_KILLED
    assert list(kept)[-1].run_changed.state == pb.RUN_STATE_KILLED
    assert "Traceback" not in server.tail()


@pytest.mark.parametrize("broken", [b"", b"ci run sha256:12", b"\xff\xfe\n", None])
def test_a_broken_tokens_file(
    make_server: Callable[..., Server], tmp_path: Path, broken: bytes | None
) -> None:
    """A file that is half written, or gone, changes nothing, is told once in the log, and may be mended."""
    file = tmp_path / "tokens"
    token = new_token(file)
    good = file.read_bytes()
    server = make_server("--tokens-file", str(file))
    if broken is None:
        file.unlink()
    else:
        file.write_bytes(broken)
    for _ in range(3):
        listed(server.channel, token)
    file.write_bytes(good)
    other = new_token(file)
    listed(server.channel, other)
    told = server.logged("tokens_not_reloaded")
    assert [entry["level"] for entry in told] == ["error"]
