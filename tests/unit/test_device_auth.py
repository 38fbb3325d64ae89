"""Authorization requests and answers, and who a client claims to be."""

import base64
import dataclasses
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from functions.device_auth import DeviceAuthSettings
from functions.device_auth.identity import (
    Claimant,
    Refusal,
    permissions_of,
    read_claimant,
)
from functions.device_auth.tokens import (
    AuthRequest,
    BadRequest,
    read_request,
    write_accepted,
    write_refused,
)
from functions.ingest import IngestSettings
from runtime import AccountKey
from runtime.nkeys import _encode

SERVER = Ed25519PrivateKey.from_private_bytes(bytes(32))
SERVER_ID = _encode(bytes([13 << 3]) + SERVER.public_key().public_bytes_raw())
KEY = AccountKey(bytes(range(32)))
HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}
ASKED = {
    "type": "authorization_request",
    "server_id": {"id": SERVER_ID},
    "user_nkey": "U123",
    "client_info": {"host": "192.0.2.1", "type": "mqtt", "mqtt_id": "t/d"},
    "connect_opts": {"user": "t/d", "pass": "secret"},
}
REQUEST = AuthRequest(SERVER_ID, "U123", "192.0.2.1", True, "t/d", "t/d", "secret")


def encode(content: Any) -> bytes:
    data = content if isinstance(content, bytes) else orjson.dumps(content)
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def decode(part: str) -> dict[str, Any]:
    content: dict[str, Any] = orjson.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return content


def asked(nats: Any = ASKED, *, header: Any = HEADER, issuer: Any = SERVER_ID) -> bytes:
    signed = encode(header) + b"." + encode({"iss": issuer, "nats": nats})
    return signed + b"." + encode(SERVER.sign(signed))


def test_a_server_s_request_is_read_and_shows_no_password() -> None:
    assert read_request(asked()) == REQUEST
    assert "secret" not in repr(REQUEST)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a.b",
        b"a.b.c",
        b"..",
        b"\xff.\xff.\xff",
        b"." * 70_000,
        encode([]) + b"." + encode([]) + b"." + encode(b""),
        asked(header={"typ": "JWT", "alg": "none"}),
        asked(issuer=KEY.public),
        asked(issuer=None),
        asked(issuer=SERVER_ID[:-1]),
        asked(nats=None),
        asked(nats=[]),
        asked(nats={"type": "user"}),
        asked(nats={**ASKED, "server_id": {"id": "another"}}),
        asked(nats={**ASKED, "server_id": None}),
        asked()[:-4] + b"AAAA",
        asked().replace(b".", b"..", 1),
    ],
)
def test_what_no_server_has_signed_is_refused(data: bytes) -> None:
    with pytest.raises(BadRequest):
        read_request(data)


@pytest.mark.parametrize("part", ["client_info", "connect_opts", "client_tls", "user_nkey"])
@pytest.mark.parametrize("value", [None, [], 7, "x", {"user": 7, "host": [], "verified_chains": 1}])
def test_a_part_of_another_shape_counts_as_absent(part: str, value: Any) -> None:
    request = read_request(asked(nats={**ASKED, part: value}))

    assert isinstance(read_claimant(request), Claimant | Refusal)


def test_an_answer_is_signed_and_addressed_to_the_server_that_asked() -> None:
    permissions = {"pub": {"allow": ["x"]}}
    answer = write_accepted(
        REQUEST, KEY, account="$G", name="t/d", permissions=permissions, until_s=99
    )
    signed, _, signature = answer.decode().rpartition(".")
    claims = decode(signed.partition(".")[2])
    user = decode(claims["nats"]["jwt"].split(".")[1])
    raw = base64.urlsafe_b64decode(signature + "==")
    public = base64.b32decode(KEY.public)[1:33]

    Ed25519PublicKey.from_public_bytes(public).verify(raw, signed.encode())
    assert (claims["aud"], claims["sub"], claims["iss"]) == (SERVER_ID, "U123", KEY.public)
    assert (user["aud"], user["sub"], user["exp"]) == ("$G", "U123", 99)
    assert user["nats"]["pub"] == {"allow": ["x"]}


def test_a_refusal_says_why_and_nothing_else() -> None:
    claims = decode(write_refused(REQUEST, KEY, "no").decode().split(".")[1])

    assert claims["nats"] == {"type": "authorization_response", "version": 2, "error": "no"}


@pytest.mark.parametrize(
    ("change", "device"),
    [
        ({}, "d"),
        ({"client_id": "t/d/2"}, "d"),
        ({"user": "t/d.1", "client_id": "t/d//1"}, "d.1"),
        ({"user": "t/d.1", "client_id": "t/d//1/2"}, "d.1"),
        ({"user": "t/a:b-c_d", "client_id": "t/a:b-c_d"}, "a:b-c_d"),
    ],
)
def test_a_client_names_its_device(change: dict[str, str], device: str) -> None:
    claimant = read_claimant(dataclasses.replace(REQUEST, **change))  # type: ignore[arg-type]

    assert isinstance(claimant, Claimant)
    assert (claimant.tenant_id, claimant.device_id) == ("t", device)
    assert "secret" not in str(permissions_of(claimant))


@pytest.mark.parametrize(
    "change",
    [
        {"is_mqtt": False},
        {"user": "d"},
        {"user": "t/d/e"},
        {"user": "t/*"},
        {"user": "t/>"},
        {"user": "t/d e"},
        {"user": ""},
        {"client_id": ""},
        {"client_id": "d"},
        {"client_id": "t/d2"},
        {"client_id": "t/d//x"},
        {"password": ""},
        {"password": "x" * 257},
        {"password": "", "certificate": "no certificate"},
    ],
    ids=str,
)
def test_a_client_that_names_no_device_is_refused(change: dict[str, Any]) -> None:
    found = read_claimant(dataclasses.replace(REQUEST, **change))

    assert isinstance(found, Refusal)
    assert not any(str(value) in found.reason for value in change.values() if len(str(value)) > 6)


def test_a_device_may_send_at_once_what_ingest_takes_after_an_outage() -> None:
    settings = DeviceAuthSettings()

    assert settings.max_messages_per_s * settings.sweep_s > IngestSettings().backfill_burst
