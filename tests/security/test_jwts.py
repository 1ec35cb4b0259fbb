"""JWTs of a real issuer beside tokens: which are accepted, as whom, and how every other one is refused."""

import asyncio
import base64
import json
import random
import ssl
import string
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
import trustme

from notebook_runner.v1 import notebook_runner_pb2 as pb
from notebook_runner.v1 import notebook_runner_pb2_grpc as rpc
from tests.support.calls import SECONDS, inline
from tests.support.errors import refusal_of, refused
from tests.support.issuer import AUDIENCE, Issuer, new_key, signed
from tests.support.polling import pause
from tests.support.secure import (
    BAD,
    MISSING,
    TOO_LITTLE,
    TlsFolder,
    bearer,
    issue,
    listed,
    new_token,
    plain,
    roots,
    secure_channel,
)
from tests.support.server import PROGRAM, Server

NOT_READY = (grpc.StatusCode.UNAVAILABLE, "NOT_READY")
# How long a server keeps the keys of an issuer that is away.
KEY_SECONDS = 3
RULES = """
# who may do what
name run ada
name read Bea B
group run data team
group read,run-all operators
"""


def options(issuer: Issuer, folder: Path, rules: str = RULES) -> list[str]:
    """The options of a server that accepts an issuer's tokens."""
    file = folder / "scopes"
    file.write_text(rules)
    file.chmod(0o600)
    own = ["--oidc-issuer", issuer.url, "--oidc-audience", AUDIENCE, "--oidc-scopes-file", str(file)]
    return [*own, "--heartbeat-interval", "0.2"]


def ready(server: Server, issuer: Issuer, **claims: Any) -> None:
    """Waits until the server has the issuer's keys."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            listed(server.channel, issuer.token(**claims))
        except grpc.RpcError as error:
            assert refusal_of(error).kind == NOT_READY  # noqa: PT017 - any other status is a mistake
            assert time.monotonic() < end
            pause()
        else:
            return


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    """An issuer whose keys stay."""
    with Issuer() as issuer:
        yield issuer


@pytest.fixture(scope="module")
def trusting(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that accepts its tokens."""
    folder = tmp_path_factory.mktemp("trusting")
    with Server(folder / "state", *options(issuer, folder)) as server:
        ready(server, issuer)
        yield server


def test_a_valid_token(trusting: Server, issuer: Issuer) -> None:
    """It opens what its caller's scopes allow, and log lines name the caller."""
    run = trusting.stub.Start(inline("1"), metadata=bearer(issuer.token()), timeout=SECONDS).run
    request = pb.ProgressRequest(run_id=run.run_id)
    reader = issuer.token("Bea B", groups=["operators"])
    events = list(trusting.stub.Progress(request, metadata=bearer(reader), timeout=SECONDS))
    assert events[-1].run_changed.state == pb.RUN_STATE_SUCCEEDED
    assert trusting.logged("rpc", "NotebookRunner/Start")[0]["caller"] == "ada"
    assert refused(lambda: listed(trusting.channel)).kind == MISSING


SCOPES: dict[str, tuple[dict[str, Any], str]] = {
    "a name": ({"sub": "ada"}, "run"),
    "a name with a blank": ({"sub": "Bea B"}, "read"),
    "a group": ({"sub": "x", "groups": ["other", "data team"]}, "run"),
    "scopes above run": ({"sub": "x", "groups": ["operators"]}, "run"),
    "groups in a text": ({"sub": "x", "groups": "other operators"}, "run"),
    "no rule": ({"sub": "x"}, ""),
    "other groups": ({"sub": "x", "groups": ["ada", "data"]}, ""),
    "groups that are none": ({"sub": "x", "groups": [1, {"data team": 1}, None]}, ""),
    "a group that is a name": ({"sub": "data team"}, ""),
    "another case": ({"sub": "Ada"}, ""),
}


@pytest.mark.parametrize("name", SCOPES)
def test_scopes_by_name_and_group(trusting: Server, issuer: Issuer, name: str) -> None:
    """A caller has the scopes of its name and of its groups; one without any may do nothing."""
    claims, scope = SCOPES[name]
    metadata = bearer(issuer.token(**claims))
    calls: dict[str, Callable[[], Any]] = {
        "read": lambda: trusting.stub.List(pb.ListRequest(), metadata=metadata, timeout=SECONDS),
        "run": lambda: trusting.stub.Start(pb.StartRequest(), metadata=metadata, timeout=SECONDS),
    }
    if scope:
        calls["read"]()
    else:
        assert refused(calls["read"]).kind == TOO_LITTLE
    assert (refused(calls["run"]).kind == TOO_LITTLE) == (scope != "run")


def test_scopes_that_change(make_server: Callable[..., Server], issuer: Issuer, tmp_path: Path) -> None:
    """The file is read again with each call; a stream of a caller that lost its scope ends."""
    server = make_server(*options(issuer, tmp_path, "name run ada\nanyone read"))
    ready(server, issuer)
    listed(server.channel, issuer.token("x"))
    metadata = bearer(issuer.token())
    run = server.stub.Start(inline("import time; time.sleep(600)"), metadata=metadata, timeout=SECONDS).run
    stream = server.stub.Progress(pb.ProgressRequest(run_id=run.run_id), metadata=metadata, timeout=SECONDS)
    assert next(stream)
    file = tmp_path / "scopes"
    for broken in ("name root ada", ""):
        file.write_text(broken)
        listed(server.channel, issuer.token())
    file.write_text("name run-all x")
    assert refused(lambda: listed(server.channel, issuer.token())).kind == TOO_LITTLE
    assert refused(lambda: list(stream)).kind == BAD
    kill = pb.KillRequest(run_id=run.run_id)
    server.stub.Kill(kill, metadata=bearer(issuer.token("x")), timeout=SECONDS)
    assert [entry["level"] for entry in server.logged("oidc_scopes_not_reloaded")] == ["error", "error"]
    (line,) = server.logged("audit", "scopes_changed")
    assert (line["added"], line["removed"], line["changed"]) == (["name x"], ["anyone", "name ada"], [])
    assert not {"caller", "request_id", "peer"} & line.keys()


def part(content: Any) -> str:
    """A part of a token."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


class Forge:
    """What is at hand to forge tokens of an issuer."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.key = issuer.keys[0]
        self.good = issuer.token()
        self.header, self.payload, self.signature = self.good.split(".")
        self.about = {"alg": "RS256", "kid": self.key.kid}
        self.pem = self.key.as_pem(private=False)
        self.secret = self.key.as_pem(private=True).decode()
        self.confused = f"{part({'alg': 'HS256', 'kid': self.key.kid})}.{self.payload}"
        self.other_claims = part(issuer.claims("admin"))

    def raw(self, claims: bytes) -> str:
        """These bytes as claims, with the issuer's own signature."""
        return jwt.api_jws.encode(claims, self.secret, "RS256", {"kid": self.key.kid})

    def with_number(self, name: str, number: str) -> str:
        """Good claims, but for a number that only its text can name."""
        changed: dict[str, Any] = {name: 22}
        claims = self.issuer.claims(**changed)
        return self.raw(json.dumps(claims).replace(f'"{name}": 22', f'"{name}": {number}').encode())

    def headed(self, **header: Any) -> str:
        """Good claims with another header, and a signature that was for the right one."""
        return f"{part(header)}.{self.payload}.{self.signature}"


FOREIGN = new_key()
HMAC = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)


def now() -> int:
    """The time of the test, which may come long after the import of this module."""
    return int(time.time())


# Everything that comes close to a valid token and is none.
FORGED: dict[str, Callable[[Forge], str]] = {
    "algorithm none": lambda f: f"{part({'alg': 'none', 'kid': f.key.kid})}.{f.payload}.",
    "algorithm None": lambda f: f"{part({'alg': 'None', 'kid': f.key.kid})}.{f.payload}.",
    "none with a signature": lambda f: f.headed(alg="none", kid=f.key.kid),
    "no algorithm": lambda f: f.headed(kid=f.key.kid),
    "an algorithm that is a list": lambda f: f.headed(alg=["RS256"], kid=f.key.kid),
    "HS256 with the public key": lambda f: f"{f.confused}.{part(HMAC.sign(f.confused.encode(), f.pem))}",
    "HS256 with nothing": lambda f: f"{f.confused}.{part(HMAC.sign(f.confused.encode(), b''))}",
    "another algorithm of the same key": lambda f: jwt.encode(
        f.issuer.claims(), f.secret, "RS512", {"kid": f.key.kid}
    ),
    "padding of the same key": lambda f: jwt.encode(f.issuer.claims(), f.secret, "PS256", {"kid": f.key.kid}),
    "another's key with its id": lambda f: signed(f.issuer.claims(), FOREIGN, kid=f.key.kid),
    "another's key": lambda f: signed(f.issuer.claims(), FOREIGN),
    "another's key without an id": lambda f: signed(f.issuer.claims(), FOREIGN, kid=None),
    "an elliptic curve": lambda f: signed(f.issuer.claims(), new_key("ES256"), kid=f.key.kid),
    "jwk": lambda f: signed(f.issuer.claims(), FOREIGN, kid=f.key.kid, jwk=FOREIGN.as_dict(private=False)),
    "jku": lambda f: signed(f.issuer.claims(), FOREIGN, jku=f.issuer.url + "/attack"),
    "x5u": lambda f: signed(f.issuer.claims(), FOREIGN, kid=f.key.kid, x5u=f.issuer.url + "/attack"),
    "a key id that is a path": lambda f: signed(f.issuer.claims(), FOREIGN, kid="../" * 9 + "etc/passwd"),
    "a key id that is a URL": lambda f: signed(f.issuer.claims(), FOREIGN, kid=f.issuer.url + "/attack"),
    "a key id that is a number": lambda f: f.headed(alg="RS256", kid=1),
    "a key id that is a list": lambda f: f.headed(alg="RS256", kid=[f.key.kid]),
    "a key id that is null": lambda f: f.headed(alg="RS256", kid=None),
    "crit": lambda f: jwt.encode(f.issuer.claims(), f.secret, "RS256", {**f.about, "crit": ["x"], "x": 1}),
    "b64": lambda f: f.headed(**f.about, b64=False),
    "expired": lambda f: f.issuer.token(exp=now() - 60),
    "not yet valid": lambda f: f.issuer.token(nbf=now() + 600),
    "of the future": lambda f: f.issuer.token(iat=now() + 600),
    "no expiry": lambda f: f.issuer.token(exp=None),
    "an expiry that is a text": lambda f: f.issuer.token(exp="never"),
    "an expiry that is a list": lambda f: f.issuer.token(exp=[now()]),
    "an expiry that is null": lambda f: f.with_number("exp", "null"),
    "an expiry that is infinite": lambda f: f.with_number("exp", "Infinity"),
    "an expiry that is NaN": lambda f: f.with_number("exp", "NaN"),
    "an expiry beyond a float": lambda f: f.with_number("exp", "9" * 400),
    "an expiry beyond an integer": lambda f: f.with_number("exp", "9" * 5000),
    "a begin that is a text": lambda f: f.issuer.token(nbf="x"),
    "another audience": lambda f: f.issuer.token(aud="other"),
    "other audiences": lambda f: f.issuer.token(aud=["other", AUDIENCE + "x"]),
    "an audience that is a part": lambda f: f.issuer.token(aud=AUDIENCE[:-1]),
    "no audience": lambda f: f.issuer.token(aud=None),
    "an empty audience": lambda f: f.issuer.token(aud=[]),
    "an audience that is a number": lambda f: f.issuer.token(aud=1),
    "another issuer": lambda f: f.issuer.token(iss="https://issuer.example"),
    "an issuer with a slash": lambda f: f.issuer.token(iss=f.issuer.url + "/"),
    "an issuer that is a list": lambda f: f.issuer.token(iss=[f.issuer.url]),
    "no issuer": lambda f: f.issuer.token(iss=None),
    "no name": lambda f: f.issuer.token(sub=None),
    "an empty name": lambda f: f.issuer.token(sub=""),
    "a name that is a number": lambda f: f.issuer.token(sub=1),
    "a long name": lambda f: f.issuer.token(sub="x" * 257),
    "a name of two lines": lambda f: f.issuer.token(sub="ada\nadmin"),
    "a name that turns the line": lambda f: f.issuer.token(sub="ada\u202e"),
    "other claims": lambda f: f"{f.header}.{f.other_claims}.{f.signature}",
    "no signature": lambda f: f"{f.header}.{f.payload}.",
    "half a signature": lambda f: f"{f.header}.{f.payload}.{f.signature[: len(f.signature) // 2]}",
    "a longer signature": lambda f: f.good + "AAAA",
    "claims that are a list": lambda f: f.raw(b"[1]"),
    "claims that are a number": lambda f: f.raw(b"1"),
    "claims that are nothing": lambda f: f.raw(b""),
    "claims that are not UTF-8": lambda f: f.raw(b'{"sub": "\xff"}'),
    "claims that nest": lambda f: f.raw(b"[" * 3000),
    "a header that nests": lambda f: f"{part(b'[' * 3000)}.{f.payload}.{f.signature}",
    "a header that is a list": lambda f: f"{part([])}.{f.payload}.{f.signature}",
    "a header that is not UTF-8": lambda f: f"{part(bytes([255, 254]))}.{f.payload}.{f.signature}",
    "two dots": lambda _: "..",
    "letters": lambda _: "a.b.c",
    "not base64": lambda _: "+++.///.~~~",
    "a part more": lambda f: f.good + ".x",
    "two parts more": lambda f: f.good + ".x.y",
    "a dot before": lambda f: "." + f.good,
    "a dot after": lambda f: f.good + ".",
    "two parts": lambda f: f"{f.header}.{f.payload}",
    "long": lambda f: f"{f.header}.{f.payload}.{'A' * 6000}",
    "a long header": lambda f: f"{part({**f.about, 'x': 'y' * 4000})}.{f.payload}.{f.signature}",
}


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_token(trusting: Server, issuer: Issuer, how: str) -> None:
    """It is refused as invalid, in unary and streaming calls, and neither message nor log repeats it."""
    token = FORGED[how](Forge(issuer))
    asked = issuer.requests.count("/attack")
    for call in (
        lambda: listed(trusting.channel, token),
        lambda: list(trusting.stub.Progress(pb.ProgressRequest(), metadata=bearer(token), timeout=SECONDS)),
    ):
        refusal = refused(call)
        assert refusal.kind == BAD
        assert len(token) < 10 or token not in refusal.message
    text = trusting.tail()
    assert len(token) < 10 or token not in text
    assert "Traceback" not in text
    assert issuer.requests.count("/attack") == asked
    listed(trusting.channel, issuer.token())


def test_a_huge_token(trusting: Server, issuer: Issuer) -> None:
    """Up to the limit of headers it is refused like any other, beyond it by gRPC."""
    for size in (7_000, 12_000, 15_000):
        with pytest.raises(grpc.RpcError) as caught:
            listed(trusting.channel, f"{issuer.token()}{'A' * size}")
        assert caught.value.code() in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED}
    listed(trusting.channel, issuer.token())


def test_a_thousand_mutations(trusting: Server, issuer: Issuer) -> None:
    """A token with any character replaced, removed or added is refused, and the log stays short."""
    dice = random.Random(22)  # noqa: S311 - the same each time
    letters = string.ascii_letters + string.digits + "-_."
    good = issuer.token()

    def mutated() -> str:
        # The last character of a signature has bits without a meaning.
        at, other = dice.randrange(len(good) - 1), dice.choice(letters)
        if other == good[at]:
            return good[:at] + good[at + 1 :]
        return dice.choice(
            [good[:at] + other + good[at + 1 :], good[:at] + good[at + 1 :], good[:at] + other + good[at:]]
        )

    tokens = iter([mutated() for _ in range(1000)])
    found: list[tuple[grpc.StatusCode, str]] = []
    lines, begin = len(trusting.log), time.monotonic()

    async def attempts() -> None:
        async with grpc.aio.insecure_channel(trusting.target) as channel:
            stub: Any = rpc.NotebookRunnerStub(channel)

            async def attempt() -> None:
                for token in tokens:
                    try:
                        await stub.List(pb.ListRequest(), metadata=bearer(token), timeout=SECONDS)
                    except grpc.aio.AioRpcError as error:
                        found.append(refusal_of(error).kind)

            await asyncio.gather(*(attempt() for _ in range(20)))

    asyncio.run(attempts())
    assert (len(found), set(found)) == (1000, {BAD})
    # A line a second tells of all refused calls.
    assert len(trusting.log) - lines < 100 + time.monotonic() - begin
    assert "Traceback" not in trusting.tail()


def test_unknown_keys_ask_little_of_the_issuer(trusting: Server, issuer: Issuer) -> None:
    """Anyone can name an unknown key; the issuer is asked for its keys rarely."""
    asked = issuer.requests.count("/keys")
    begin = time.monotonic()
    for _ in range(200):
        assert refused(lambda: listed(trusting.channel, signed(issuer.claims(), FOREIGN))).kind == BAD
    assert issuer.requests.count("/keys") - asked <= 2 + (time.monotonic() - begin) / 10


# joserfc warns of the name that most issuers use for Ed25519.
@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
@pytest.mark.parametrize("kind", ["RS512", "PS256", "ES256", "ES384", "ES512", "EdDSA"])
def test_keys_that_rotate(make_server: Callable[..., Server], tmp_path: Path, kind: str) -> None:
    """A key that the issuer has added is accepted with its first token; one that it withdrew is refused."""
    with Issuer() as issuer:
        server = make_server(*options(issuer, tmp_path))
        ready(server, issuer)
        before = issuer.token()
        metadata = bearer(before)
        run = server.stub.Start(
            inline("import time; time.sleep(600)"), metadata=metadata, timeout=SECONDS
        ).run
        request = pb.ProgressRequest(run_id=run.run_id)
        stream = server.stub.Progress(request, metadata=metadata, timeout=SECONDS)
        assert next(stream)
        issuer.rotate(kind)
        listed(server.channel, issuer.token())
        assert refused(lambda: listed(server.channel, before)).kind == BAD
        assert refused(lambda: list(stream)).kind == BAD
        # The only key needs no id.
        listed(server.channel, signed(issuer.claims(), issuer.keys[0], kid=None))
        server.stub.Kill(pb.KillRequest(), metadata=bearer(issuer.token()), timeout=SECONDS)


def test_a_stream_ends_when_its_token_expires(trusting: Server, issuer: Issuer) -> None:
    """It ends with a heartbeat at the latest, and continues with the next token."""
    run = trusting.stub.Start(
        inline("import time; time.sleep(600)"), metadata=bearer(issuer.token()), timeout=SECONDS
    ).run
    request = pb.ProgressRequest(run_id=run.run_id)
    # The clocks may differ by 30 s.
    nearly = issuer.token(exp=int(time.time()) - 20)
    stream = trusting.stub.Progress(request, metadata=bearer(nearly), timeout=SECONDS)
    assert next(stream)
    assert refused(lambda: list(stream)).kind == BAD
    trusting.stub.Kill(pb.KillRequest(), metadata=bearer(issuer.token()), timeout=SECONDS)


def test_an_issuer_that_is_down(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """Down at the start, JWTs are UNAVAILABLE and tokens work; once it was up, its keys are kept."""
    with Issuer() as issuer:
        issuer.stop()
        token = new_token(tmp_path / "tokens")
        server = make_server(*options(issuer, tmp_path), "--tokens-file", str(tmp_path / "tokens"))
        listed(server.channel, token)
        refusal = refused(lambda: listed(server.channel, issuer.token()))
        assert refusal.kind == NOT_READY
        assert "cannot be reached" in refusal.message
        assert refusal.retry_seconds > 0
        # Nobody can tell from it whether a key exists, and wrong ones are wrong.
        assert refused(lambda: listed(server.channel, "a.b.c")).kind == BAD
        assert server.logged("oidc_keys_not_fetched")[0]["level"] == "error"
        issuer.start()
        ready(server, issuer)
        issuer.stop()
        listed(server.channel, issuer.token())
        assert refused(lambda: listed(server.channel, signed(issuer.claims(), FOREIGN))).kind == BAD
        issuer.start()


def test_keys_that_are_too_old(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """Without its issuer, a server keeps the keys for --oidc-key-max-age, and no longer."""
    with Issuer() as issuer:
        begin = time.monotonic()
        server = make_server(*options(issuer, tmp_path), "--oidc-key-max-age", f"{KEY_SECONDS}")
        ready(server, issuer)
        issuer.stop()
        while True:
            try:
                listed(server.channel, issuer.token())
            except grpc.RpcError as error:
                assert refusal_of(error).kind == NOT_READY  # noqa: PT017 - the only status that it may have
                break
            assert time.monotonic() - begin < SECONDS
            pause()
        assert time.monotonic() - begin >= KEY_SECONDS
        issuer.start()
        ready(server, issuer)


def test_a_slow_issuer(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """While it is silent, calls that need no new key are answered, and the one that does waits for it."""
    with Issuer() as issuer:
        server = make_server(*options(issuer, tmp_path))
        ready(server, issuer)
        before = issuer.token()
        issuer.is_open.clear()
        issuer.keys = [new_key(), *issuer.keys]
        found: list[list[pb.Run]] = []
        waiting = threading.Thread(target=lambda: found.append(listed(server.channel, issuer.token())))
        waiting.start()
        assert issuer.arrived.acquire(timeout=SECONDS)
        for _ in range(20):
            listed(server.channel, before)
        assert found == []
        issuer.is_open.set()
        waiting.join(SECONDS)
        assert found == [[]]


def test_an_issuer_as_kubernetes_is_one(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """Its keys are behind an authority of its own, for those with a token, which changes."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    ca, own = tmp_path / "ca.crt", tmp_path / "token"
    ca.write_bytes(authority.cert_pem.bytes())
    own.write_text("pods-first-token\n")
    subject = "system:serviceaccount:reports:nightly"
    with Issuer(context) as issuer:
        issuer.bearer = "pods-first-token"
        extra = ["--oidc-ca", str(ca), "--oidc-token-file", str(own)]
        server = make_server(*options(issuer, tmp_path, f"name run {subject}\nname read ada"), *extra)
        ready(server, issuer)
        claims = {"kubernetes.io": {"namespace": "reports", "serviceaccount": {"name": "nightly"}}}
        token = issuer.token(subject, aud=[AUDIENCE], **claims)
        server.stub.Start(inline("1"), metadata=bearer(token), timeout=SECONDS)
        issuer.bearer = "pods-second-token"
        own.write_text("pods-second-token\n")
        issuer.rotate()
        listed(server.channel, issuer.token(subject))
        assert (
            refused(lambda: listed(server.channel, issuer.token("system:serviceaccount:x:nightly"))).kind
            == TOO_LITTLE
        )
        assert set(issuer.requests.authorizations) <= {"Bearer pods-first-token", "Bearer pods-second-token"}
        assert "pods-" not in server.tail()


def test_other_claims(make_server: Callable[..., Server], issuer: Issuer, tmp_path: Path) -> None:
    """Name and groups may be in other claims; an address that nobody has verified is no name."""
    more = ["--oidc-name-claim", "email", "--oidc-groups-claim", "https://example.com/roles"]
    server = make_server(*options(issuer, tmp_path, "name run ada@example.com\ngroup read staff"), *more)
    address = {"email": "ada@example.com"}
    ready(server, issuer, **address)
    listed(server.channel, issuer.token(**address, email_verified=True))
    for value in (False, "false", None, 0):
        unverified = signed({**issuer.claims(**address), "email_verified": value}, issuer.keys[0])
        assert refused(partial(listed, server.channel, unverified)).kind == BAD
    assert refused(lambda: listed(server.channel, issuer.token())).kind == BAD
    roles: dict[str, Any] = {"email": "x@y", "https://example.com/roles": ["staff"]}
    listed(server.channel, issuer.token(**roles))


def test_check_names_an_issuer_that_is_down(issuer: Issuer, tmp_path: Path) -> None:
    """--check warns of it, because the server would start; with the issuer up, it has nothing to say."""
    command = [str(PROGRAM), *options(issuer, tmp_path), "--check"]

    def checked() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=plain())

    done = checked()
    assert (done.returncode, done.stderr) == (0, "")
    issuer.stop()
    done = checked()
    issuer.start()
    assert done.returncode == 0
    assert done.stderr.startswith(f"Warning: {issuer.url}")
    assert "cannot be reached" in done.stderr


def test_the_name_in_a_certificate(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """With mutual TLS alone, log lines name the caller as its certificate does; otherwise as its token."""
    authority = trustme.CA()
    folder = TlsFolder(tmp_path, issue(authority), client_ca=roots(authority))
    pair = issue(authority, "client.example", common_name="ci")
    token = new_token(tmp_path / "tokens", "nightly")
    for more, name in ([], "ci"), (["--tokens-file", str(tmp_path / "tokens")], "nightly"):
        server = make_server(*folder.options, *more)
        with secure_channel(server.target, roots(authority), pair) as channel:
            listed(channel, token)
        (line,) = server.logged("rpc")
        assert line["caller"] == name
