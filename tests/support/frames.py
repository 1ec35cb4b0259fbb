"""HTTP/2 by hand, for what no client of gRPC would send."""

import socket
import ssl
import struct
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_STREAM, END_HEADERS = 1, 4
SECONDS = 60.0


def frame(kind: int, flags: int, stream: int, data: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(data))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + data


def number(value: int, bits: int) -> bytes:
    """A number as HPACK writes it, in the last bits of a byte and more bytes."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([value])
    found, value = [most], value - most
    while value >= 128:
        found.append(value % 128 + 128)
        value //= 128
    return bytes([*found, value])


def header(name: bytes, value: bytes) -> bytes:
    """A header as it is, in no table."""
    return b"\0" + number(len(name), 7) + name + number(len(value), 7) + value


def call_headers(path: str, *more: tuple[bytes, bytes]) -> bytes:
    """The headers of a call of gRPC."""
    usual = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"x")]
    usual += [(b"te", b"trailers"), (b"content-type", b"application/grpc"), *more]
    return b"".join(header(*each) for each in usual)


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
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0))
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
        headers = frame(HEADERS, END_HEADERS, stream, call_headers(path, *more))
        return self.send(headers + frame(DATA, END_STREAM, stream, message(data)))

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
