"""What is no call at all: the connection is ended, and nobody else notices."""

from typing import Any

import grpc
import pytest
from hyperframe.frame import DataFrame, HeadersFrame, SettingsFrame

from tests.support.calls import SECONDS
from tests.support.floods import KILL, Ordinary
from tests.support.frames import PREFACE, Raw
from tests.support.secure import Guarded

NONSENSE = {
    "HTTP/1": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 600,
    "a frame too large": PREFACE + SettingsFrame(0).serialize() + b"\xff\xff\xff\0\1\0\0\0\1",
    "no settings": PREFACE + DataFrame(1, b"x").serialize(),
    "broken headers": PREFACE
    + SettingsFrame(0).serialize()
    + HeadersFrame(1, b"\xff" * 50, flags=["END_STREAM", "END_HEADERS"]).serialize(),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_what_is_no_call(guarded: Guarded, name: str) -> None:
    """The connection is ended, and nobody else notices."""
    with Raw(guarded.server.target) as raw:
        assert raw.send(NONSENSE[name])
        raw.rest()
    Ordinary(guarded.server.target, guarded.run).until(lambda: True, least=1)
    assert guarded.server.process.poll() is None


@pytest.mark.parametrize("value", [b"Bearer\t", b"Bearer \xff\xfe", b"Bearer \0", b"Bearer \xc3\x9c"])
def test_a_header_that_is_no_text(guarded: Guarded, value: bytes) -> None:
    """What no client can send is refused like every wrong token, and none of it is in the log."""
    with Raw(guarded.server.target) as raw:
        raw.greet()
        raw.call(1, KILL, b"", (b"authorization", value + guarded.run.encode()))
        assert raw.until(b"authorization: Bearer TOKEN")
    assert guarded.run not in "".join(map(str, guarded.server.log))


def test_headers_too_large(guarded: Guarded) -> None:
    """A call with more headers than it may have is refused, the connection goes on."""
    call: Any = guarded.server.channel.unary_unary(KILL)
    big = (("authorization", f"Bearer {guarded.run}"), ("x", "y" * 20_000))
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", metadata=big, timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    Ordinary(guarded.server.target, guarded.run).once(guarded.server.stub)
