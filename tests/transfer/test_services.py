"""The helper process and its services: TLS that it trusts or not, and objects that are written in pieces."""

import datetime as dt
import ipaddress
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.web import Web, object_store

pytestmark = pytest.mark.integration

LARGE = 20 * 1024 * 1024


def asked(
    action: str, uri: str, content: bytes, environment: Mapping[str, str]
) -> tuple[dict[str, str], bytes]:
    """What the helper answers, and the notebook's file afterwards."""
    notebook = os.memfd_create("notebook")
    with os.fdopen(notebook, "r+b") as file:
        file.write(content)
        file.seek(0)
        request = {
            "action": action,
            "uri": uri,
            "notebook": notebook,
            "limit": 2 * LARGE,
            "any_address": True,
        }
        helper = subprocess.Popen(
            [sys.executable, "-P", "-m", "notebook_runner_server.transfer.program"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[notebook],
            env={**os.environ, **environment},
        )
        with helper:
            assert helper.stdin is not None
            assert helper.stdout is not None
            helper.stdin.write(json.dumps({**request, "folders": []}).encode() + b"\n")
            helper.stdin.flush()
            answer: dict[str, str] = json.loads(helper.stdout.read())
        file.seek(0)
        return answer, file.read()


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
    trusting = {"SSL_CERT_FILE": str(tmp_path / "certificate.pem")}
    assert asked("read", uri, b"", trusting) == ({}, b"content")
    assert asked("write", f"{secure.url}/objects/b?signature", b"result", trusting)[0] == {}
    assert secure.objects["/objects/b"] == b"result"
    answer, rest = asked("read", f"{uri}?signature", b"", {})
    assert answer == {"error": "unreachable", "message": "the service's certificate is not valid for it"}
    assert rest == b""


def test_a_large_object_is_written_in_pieces() -> None:
    """It is whole at the end, and arrives again as it was."""
    content = os.urandom(LARGE)
    with object_store() as objects:
        assert asked("write", "s3://notebooks/large", content, objects.environment)[0] == {}
        assert objects.get("large") == content
        assert asked("read", "s3://notebooks/large", b"", objects.environment) == ({}, content)
