"""The keys of an issuer: what an issuer may answer, and which keys are usable."""

import json
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from joserfc.jwk import OctKey

from notebook_runner_server.api import oidc_keys
from notebook_runner_server.api.oidc_keys import IssuerError, fetch_keys
from notebook_runner_server.api.oidc_options import OidcOptions
from tests.support.issuer import AUDIENCE, Issuer, new_key

pytestmark = pytest.mark.integration

DISCOVERY = "/.well-known/openid-configuration"


def options(issuer: Issuer, **more: Any) -> OidcOptions:
    """The options that name an issuer."""
    return OidcOptions(issuer.url, AUDIENCE, "sub", "groups", Path("/nowhere"), **more)


def test_the_keys_of_an_issuer() -> None:
    """Each key has its id, and the one algorithm that it is for."""
    kinds = ["RS256", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
    with Issuer() as issuer:
        issuer.keys = [new_key(kind) for kind in kinds]
        found = fetch_keys(options(issuer))
        assert [found[str(key.kid)].algorithms for key in issuer.keys] == [(kind,) for kind in kinds]


def unusable() -> dict[str, dict[str, Any]]:
    """Keys that no token may be verified with."""
    good: dict[str, Any] = dict(new_key().as_dict(private=False))
    curve: dict[str, Any] = dict(new_key("ES256").as_dict(private=False))
    secret: dict[str, Any] = dict(OctKey.generate_key(256, {"kid": "x", "alg": "HS256"}).as_dict())
    return {
        "a secret": secret,
        "a secret without an algorithm": {name: value for name, value in secret.items() if name != "alg"},
        "for encryption": {**good, "use": "enc"},
        "for signing alone": {**good, "key_ops": ["sign"]},
        "operations that are a text": {**good, "key_ops": "verify"},
        "a symmetric algorithm": {**good, "alg": "HS256"},
        "no algorithm at all": {**good, "alg": "none"},
        "another curve's algorithm": {**curve, "alg": "ES384"},
        "a curve that is a list": {**curve, "crv": ["P-256"]},
        "an unknown type": {**good, "kty": "XYZ"},
        "no modulus": {name: value for name, value in good.items() if name != "n"},
        "a modulus that is a number": {**good, "n": 5},
        "a small modulus": {**good, "n": good["n"][:100]},
        "a huge modulus": {**good, "n": good["n"] * 5},
        "a point beside its curve": {**curve, "x": curve["y"]},
    }


UNUSABLE = unusable()


@pytest.mark.parametrize("how", UNUSABLE)
def test_a_key_that_cannot_be_used(how: str) -> None:
    """It is left out; if there is no other, that is an error."""
    with Issuer() as issuer:
        good = new_key().as_dict(private=False)
        issuer.documents["/keys"] = {"keys": [UNUSABLE[how], None, 5, good]}
        assert list(fetch_keys(options(issuer))) == [good["kid"]]
        issuer.documents["/keys"] = {"keys": [UNUSABLE[how]]}
        with pytest.raises(IssuerError, match="has no key"):
            fetch_keys(options(issuer))


def test_a_private_key_is_not_kept() -> None:
    """Of a key that an issuer publishes with its private part, only the public part is used."""
    with Issuer() as issuer:
        issuer.documents["/keys"] = {"keys": [issuer.keys[0].as_dict(private=True)]}
        (key,) = fetch_keys(options(issuer)).values()
        assert not hasattr(key.public_key, "private_numbers")


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "another name": ({DISCOVERY: {"issuer": "https://x"}}, "describes the issuer 'https://x'"),
    "no name": ({DISCOVERY: {}}, "describes the issuer 'None'"),
    "no JSON": ({DISCOVERY: "<html>"}, "did not answer with JSON"),
    "a list": ({DISCOVERY: []}, "did not answer with a JSON object"),
    "nested": ({DISCOVERY: "[" * 100_000}, "did not answer with JSON"),
    "a status": ({DISCOVERY: ("", 503)}, "answered with status 503"),
    "a redirect": ({DISCOVERY: ("", 302, {"Location": "http://127.0.0.1:1/"})}, "answered with status 302"),
    "large": ({DISCOVERY: "x" * (oidc_keys.MAX_DOCUMENT_BYTES + 1)}, "more than"),
    "no keys": ({"/keys": {}}, "has no key"),
    "keys that are a text": ({"/keys": {"keys": "x"}}, "has no key"),
    "keys elsewhere": ({"/keys": ("", 404)}, "answered with status 404"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_an_issuer_whose_answers_are_broken(how: str) -> None:
    """Whatever it answers is an error with its URL."""
    with Issuer() as issuer:
        issuer.documents, sentence = BROKEN[how]
        with pytest.raises(IssuerError) as caught:
            fetch_keys(options(issuer))
        assert sentence in str(caught.value)
        assert issuer.url in str(caught.value)


@pytest.mark.parametrize("url", ["http://keys.example", "file:///etc/passwd", 5, None])
def test_keys_that_others_could_change(url: Any) -> None:
    """They must come over https."""
    with Issuer() as issuer:
        issuer.documents[DISCOVERY] = json.dumps({"issuer": issuer.url, "jwks_uri": url})
        with pytest.raises(IssuerError, match="no https:// URL as jwks_uri"):
            fetch_keys(options(issuer))


def test_an_issuer_with_the_certificate_of_a_stranger(tmp_path: Path) -> None:
    """Nobody else can answer in its place, nor can it be asked with files that do not exist."""
    ours, theirs = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.issue_cert("127.0.0.1").configure_cert(context)
    ours.cert_pem.write_to_path(tmp_path / "ours.crt")
    theirs.cert_pem.write_to_path(tmp_path / "theirs.crt")
    with Issuer(context) as issuer:
        for ca in (None, tmp_path / "ours.crt"):
            with pytest.raises(IssuerError, match="certificate verify failed"):
                fetch_keys(options(issuer, ca=ca))
        for missing in ({"ca": tmp_path / "no"}, {"token_file": tmp_path / "no"}):
            more: dict[str, Any] = {"ca": tmp_path / "theirs.crt", **missing}
            with pytest.raises(IssuerError, match="No such file"):
                fetch_keys(options(issuer, **more))
        assert fetch_keys(options(issuer, ca=tmp_path / "theirs.crt"))
