"""Who a call's caller is, for what answers it, and what the scopes file may hold."""

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from notebook_runner_server.api.access_file import AccessFileError
from notebook_runner_server.api.auth_interceptor import AuthInterceptor, certified_caller
from notebook_runner_server.api.oidc_options import is_safe_url, parse_rules
from notebook_runner_server.api.tokens import Tokens, add_new
from notebook_runner_server.runs.caller import ANONYMOUS, Caller, Scope, current_caller, parse_scopes

EVERYTHING = frozenset(Scope)
LIST = "/notebook_runner.v1.NotebookRunner/List"
PROGRESS = "/notebook_runner.v1.NotebookRunner/Progress"


@dataclass(frozen=True)
class Details:
    """What gRPC says of a call before it is read."""

    method: str
    invocation_metadata: tuple[tuple[str, str], ...]


class RefusedError(Exception):
    """The call was ended with this status."""


class Context:
    """A call over a connection whose certificate names `properties`."""

    def __init__(self, **properties: list[bytes]) -> None:
        self._properties = properties

    def peer(self) -> str:
        """The address of the connection."""
        return "unix:"

    def invocation_metadata(self) -> tuple[()]:
        """The headers."""
        return ()

    async def abort(self, code: grpc.StatusCode, *_: object) -> None:
        """Ends the call (called by the interceptor)."""
        raise RefusedError(code.name)

    def auth_context(self) -> dict[str, list[bytes]]:
        """The properties of the connection (called by the interceptor)."""
        return self._properties


def seen(interceptor: AuthInterceptor, method: str, token: str = "", **properties: list[bytes]) -> Caller:
    """The caller that the function which answers a call sees."""

    async def answer(_request: Any, _context: Any) -> Caller:
        return current_caller()

    async def stream(_request: Any, _context: Any) -> Any:
        yield current_caller()

    async def continuation(_: Any) -> Any:
        if method == PROGRESS:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(answer)

    async def call() -> Caller:
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        details: Any = Details(method, metadata)
        handler: Any = await interceptor.intercept_service(continuation, details)
        if method == PROGRESS:
            callers: list[Caller] = [one async for one in handler.unary_stream(None, Context(**properties))]
        else:
            callers = [await handler.unary_unary(None, Context(**properties))]
        (caller,) = callers
        return caller

    return asyncio.run(call())


@pytest.mark.parametrize("method", [LIST, PROGRESS])
def test_the_caller_of_a_token(tmp_path: Path, method: str) -> None:
    """What answers a call sees the name and the scopes of its token."""
    token = add_new(tmp_path / "tokens", "ci", "run,read-all")
    interceptor = AuthInterceptor(Tokens(tmp_path / "tokens"), None, are_certified=True)
    caller = seen(interceptor, method, token, x509_pem_cert=[b"x"], x509_common_name=[b"other"])
    assert caller == Caller("ci", parse_scopes("run,read-all"))


@pytest.mark.parametrize("method", [LIST, PROGRESS])
def test_the_caller_of_a_certificate(method: str) -> None:
    """Without tokens it is who the certificate names, who may do everything."""
    interceptor = AuthInterceptor(None, None, are_certified=True)
    caller = seen(interceptor, method, x509_pem_cert=[b"x"], x509_common_name=[b"ci"])
    assert caller == Caller("ci", EVERYTHING)


@pytest.mark.parametrize("method", [LIST, PROGRESS])
def test_a_caller_without_the_certificate_that_all_have(method: str) -> None:
    """It is refused: it must not become the caller that may do everything."""
    with pytest.raises(RefusedError, match="UNAUTHENTICATED"):
        seen(AuthInterceptor(None, None, are_certified=True), method)


@pytest.mark.parametrize("method", [LIST, PROGRESS])
def test_a_caller_that_nobody_asks_for(method: str) -> None:
    """Without credentials all callers are the same one, who may do everything."""
    assert seen(AuthInterceptor(None, None, are_certified=False), method) == ANONYMOUS
    assert ANONYMOUS.scopes == EVERYTHING


def test_names_in_certificates() -> None:
    """The common name, else the first other name, else the certificate's hash."""
    pem = trustme.CA().issue_cert("runner.example").cert_chain_pems[0].bytes()
    sans = [b"spiffe://example/ci", b"ci.example"]
    both = certified_caller(
        {"x509_pem_cert": [pem], "x509_common_name": [b"ci"], "x509_subject_alternative_name": sans}
    )
    assert both.name == "ci"
    other = certified_caller({"x509_pem_cert": [pem], "x509_subject_alternative_name": sans})
    assert other.name == "spiffe://example/ci"
    strange = certified_caller({"x509_pem_cert": [pem], "x509_common_name": [b"a\nb"]})
    assert strange.name.startswith("sha256:")
    assert strange == certified_caller({"x509_pem_cert": [pem]})
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    assert strange.name == f"sha256:{hashlib.sha256(der).hexdigest()}"


def test_good_rules() -> None:
    """Names and groups with blanks, comments and empty lines; scopes of several rules add up."""
    rules = parse_rules(b"# who\n\nname run ada\r\n group\tread,run-all  data team \nanyone read\n", "f")
    assert rules.scopes("x", []) == parse_scopes("read")
    assert rules.scopes("ada", ["x"]) == parse_scopes("run")
    assert rules.scopes("x", ["y", "data team"]) == parse_scopes("run-all")
    assert parse_rules(b"name read ada", "f").scopes("x", ["ada"]) == frozenset()


@pytest.mark.parametrize(
    "text",
    [
        *("", "# nothing", "ada run", "name run", "name root ada", "user run ada", "name run, ada", "anyone"),
        *("anyone read x", "anyone root", "name run ada\nname read ada", "anyone read\nanyone run", "\xff"),
    ],
)
def test_bad_rules(text: str) -> None:
    """A file is refused as a whole, with its name."""
    with pytest.raises(AccessFileError, match=r"^f[:,]"):
        parse_rules(text.encode("latin-1"), "f")


@pytest.mark.parametrize(
    ("url", "is_safe"),
    [
        ("https://id.example.com", True),
        ("https://id.example.com:8443/realms/x", True),
        ("http://127.0.0.1:8000", True),
        ("http://[::1]:8000", True),
        ("http://localhost", True),
        ("http://id.example.com", False),
        ("http://127.0.0.1.example.com", False),
        ("https://user@id.example.com", False),
        ("https://", False),
        ("https://id.example.com:x", False),
        ("https://id.example.com/a b", False),
        ("https://id.example.com/\n", False),
        ("ftp://127.0.0.1", False),
        ("file:///etc/passwd", False),
        ("id.example.com", False),
        ("https://[", False),
    ],
)
def test_urls_that_nobody_can_change(url: str, is_safe: bool) -> None:
    """Keys come over https, or from this machine."""
    assert is_safe_url(url) == is_safe
