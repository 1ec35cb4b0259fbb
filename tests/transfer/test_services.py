"""The helper process and its services: TLS that it trusts or not, and objects that are written in pieces."""

import asyncio
import datetime as dt
import ipaddress
import os
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from notebook_runner_server.run_in_subprocess import SubprocessOptions, start_in_subprocess
from notebook_runner_server.transfer import program
from notebook_runner_server.transfer.interface import UnreachableError
from notebook_runner_server.transfer.policy import UriPolicy
from tests.support.web import Web, object_store

pytestmark = pytest.mark.integration

LARGE = 20 * 1024 * 1024


def call(function: Callable[..., None], uri: str, content: bytes, *args: object, **environment: str) -> bytes:
    """What the notebook's file has after a call in a process of its own."""
    with os.fdopen(os.memfd_create("notebook"), "r+b") as file:
        file.write(content)
        file.seek(0)
        options = SubprocessOptions({**os.environ, **environment}, [file.fileno()])
        policy = UriPolicy(hosts=frozenset({"any"}))
        asyncio.run(start_in_subprocess(options, function, uri, file.fileno(), policy, *args))
        file.seek(0)
        return file.read()


def read(uri: str, **environment: str) -> bytes:
    """What is read at a URI."""
    return call(program.read, uri, b"", 2 * LARGE, **environment)


def write(uri: str, content: bytes, **environment: str) -> None:
    """Write to a URI."""
    call(program.write, uri, content, **environment)


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[Web]:
    """A web server with TLS; `certificate.pem` in the folder is its certificate, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(days=1)
    addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
        .add_extension(addresses, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (tmp_path / "certificate.pem").write_bytes(certificate.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    with Web(context) as serving:
        yield serving


def test_https_needs_a_certificate_that_the_server_trusts(secure: Web, tmp_path: Path) -> None:
    """What OpenSSL is told to trust is trusted, for reading and for writing; all else is refused."""
    uri = secure.put("a", b"content")
    assert uri.startswith("https://")
    trusted = str(tmp_path / "certificate.pem")
    assert read(uri, SSL_CERT_FILE=trusted) == b"content"
    write(f"{secure.url}/objects/b?signature", b"result", SSL_CERT_FILE=trusted)
    assert secure.objects["/objects/b"] == b"result"
    with pytest.raises(UnreachableError, match=r"^the service's TLS certificate is not trusted$"):
        read(f"{uri}?signature")


def test_a_large_object_is_written_in_pieces() -> None:
    """It is whole at the end, and arrives again as it was."""
    content = os.urandom(LARGE)
    with object_store() as objects:
        write("s3://notebooks/large", content, **objects.environment)
        assert objects.get("large") == content
        assert read("s3://notebooks/large", **objects.environment) == content
