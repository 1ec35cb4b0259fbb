"""HTTP/2 by hand, for what no client of gRPC would send."""

import socket
import ssl
import struct
from typing import Self

from hpack import Encoder
from hyperframe.frame import DataFrame, HeadersFrame, SettingsFrame

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SECONDS = 60.0


def headers(*pairs: tuple[bytes, bytes]) -> bytes:
    """A block of headers, as a connection begins: nothing of an earlier block is used."""
    return Encoder().encode(pairs, huffman=False)


def call_headers(path: str, *more: tuple[bytes, bytes]) -> bytes:
    """The headers of a call of gRPC."""
    usual = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"x")]
    return headers(*usual, (b"te", b"trailers"), (b"content-type", b"application/grpc"), *more)


def message(data: bytes) -> bytes:
    """A message of gRPC."""
    return b"\0" + struct.pack(">I", len(data)) + data


# An attacker does not ask whom it attacks.
_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_TLS.check_hostname, _TLS.verify_mode = False, ssl.CERT_NONE
_TLS.set_alpn_protocols(["h2"])


class Raw:
    """A connection on which anything can be sent."""

    def __init__(self, target: str, receive_bytes: int = 0, *, tls: bool = False) -> None:
        host, _, port = target.rpartition(":")
        self.socket = socket.socket()
        self.socket.settimeout(SECONDS)
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.connect((host, int(port)))
        if tls:
            self.socket = _TLS.wrap_socket(self.socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def greet(self) -> Self:
        """Begins HTTP/2."""
        self.socket.sendall(PREFACE + SettingsFrame(0).serialize())
        return self

    def send(self, data: bytes) -> bool:
        """Sends, as far as the server listens; tells whether it took all."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def call(self, stream: int, path: str, data: bytes, *more: tuple[bytes, bytes]) -> bool:
        """Makes a whole call with one message."""
        head = HeadersFrame(stream, call_headers(path, *more), flags=["END_HEADERS"])
        body = DataFrame(stream, message(data), flags=["END_STREAM"])
        return self.send(head.serialize() + body.serialize())

    def rest(self) -> bytes:
        """All that comes until the server ends the connection."""
        found = b""
        try:
            while data := self.socket.recv(65536):
                found += data
        except (ConnectionError, ssl.SSLError):
            pass
        return found

    def until(self, wanted: bytes) -> bool:
        """Whether this is in what comes."""
        found = b""
        while wanted not in found:
            data = self.socket.recv(65536)
            if not data:
                return False
            found += data
        return True
