"""Topics and subjects of republished messages, and what a route may reach at its own host."""

import base64
import binascii
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from functions.domain.nats_credentials import parse_credentials, public_key, read_seed
from functions.outbound.receipt import Receipt
from functions.route_delivery import Job, mqtt_republish, nats_republish
from functions.route_delivery.nats_republish import Settings, escape, is_allowed
from runtime import TooLarge

OWN = Settings(own_subjects="republish.{tenant_id}.>")


def job(payload: Any = None, **fields: Any) -> Job:
    return Job.model_validate(
        {
            "job_id": "T-1-1-r",
            "route_id": "r",
            "tenant_id": "acme",
            "device_id": "d.1",
            "topic": "tenant/acme/device/d.1/telemetry",
            "msg_type": "shadow/reported",
            "payload": payload,
            "stored_at": datetime(2026, 8, 1, tzinfo=UTC),
        }
        | fields
    )


class OwnServer:
    """Records what is published, in place of the context of a call."""

    def __init__(self, settings: Any = OWN) -> None:
        self.settings = settings
        self.state = None
        self.published: list[tuple[str, bytes, str | None]] = []

    async def publish(self, subject: str, data: bytes, *, msg_id: str | None = None) -> None:
        if len(data) > 1000:
            raise TooLarge(subject, len(data), 1000)
        self.published.append((subject, data, msg_id))

    async def publish_core(self, subject: str, data: bytes) -> None:
        self.published.append((subject, data, None))


async def republish(config: dict[str, Any], given: Job, own: OwnServer) -> Receipt:
    destination = nats_republish.Destination.model_validate(config)
    return await nats_republish.send(given, destination, own)  # type: ignore[arg-type] # a part


async def test_a_message_is_stored_on_a_subject_of_its_tenant() -> None:
    own = OwnServer()
    assert (await republish({}, job({"a": 1}), own)).outcome == "delivered"
    assert (await republish({"jetstream": False}, job(1), own)).outcome == "delivered"
    subject = "republish.acme.d_1.shadow.reported"
    assert own.published == [(subject, b'{"a":1}', "T-1-1-r"), (subject, b"1", None)]


@pytest.mark.parametrize(
    "subject",
    [
        "republish.other.x",
        "republish.acme",
        "republish.{payload}.x",
        "routes.acme.webhook",
        "$JS.API.STREAM.DELETE.ROUTES",
        "$SYS.REQ.SERVER.PING",
        "mailbox.ready.ingest",
        "dead_letters.x",
        "telemetry.acme.d1",
        "_INBOX.x",
        "republish..acme.x",
        ".republish.acme.x",
        "republish.acme.x.",
    ],
)
async def test_every_other_subject_of_the_host_is_refused(subject: str) -> None:
    own = OwnServer()
    receipt = await republish({"subject": subject}, job("other"), own)
    assert (receipt.outcome, receipt.code) == ("refused", "SUBJECT_NOT_ALLOWED")
    assert own.published == []


async def test_without_the_operators_setting_a_route_reaches_nothing_of_the_host() -> None:
    own = OwnServer(Settings())
    assert (await republish({}, job(), own)).code == "SUBJECT_NOT_ALLOWED"


async def test_a_message_that_the_host_would_not_take_is_refused() -> None:
    assert (await republish({}, job("x" * 2000), OwnServer())).code == "PAYLOAD_TOO_LARGE"


@given(st.text(max_size=50))
def test_no_value_leaves_the_subjects_of_its_tenant(value: str) -> None:
    subject = "republish.acme." + escape(value)
    assert is_allowed(subject, "republish.{tenant_id}.>", "acme")
    assert not is_allowed(subject, "republish.{tenant_id}.>", "acm")
    assert not {" ", "*", ">", "\r", "\n"} & set(subject)
    assert "" not in subject.split(".")


@pytest.mark.parametrize(
    "pattern",
    [
        "republish.>",
        "republish.{tenant_id}",
        "routes.{tenant_id}.>",
        "$JS.{tenant_id}.>",
        "{tenant_id}.>",
        "telemetry.{tenant_id}.>",
        "mailbox.{tenant_id}.>",
        "management.{tenant_id}.>",
        "*.{tenant_id}.>",
        "notices.{tenant_id}.>",
        "downlinks.{tenant_id}.>",
        "device_events.{tenant_id}.>",
        "_RUNTIME.{tenant_id}.>",
    ],
)
def test_an_operator_cannot_open_what_the_host_uses_itself(pattern: str) -> None:
    with pytest.raises(ValidationError, match="own_subjects"):
        Settings(own_subjects=pattern)


def seed_of(key: Ed25519PrivateKey, kind: int = 20 << 3) -> str:
    raw = bytes([18 << 3 | kind >> 5, (kind & 31) << 3]) + key.private_bytes_raw()
    checked = raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")
    return base64.b32encode(checked).decode().rstrip("=")


def test_a_seed_is_read_and_names_its_user() -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    seed = seed_of(key)
    assert seed.startswith("SU")
    assert public_key(read_seed(seed)) == public_key(key)
    assert public_key(key).startswith("U")
    text = (
        "-----BEGIN NATS USER JWT-----\neyJ0.eyJq.c2ln\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    found = parse_credentials(text)
    assert (found.jwt, found.seed) == ("eyJ0.eyJq.c2ln", seed)


@pytest.mark.parametrize("wrong", ["", "SU", "SUAA", "x" * 58, "SU" + "A" * 56])
def test_what_is_no_seed_is_refused_and_not_quoted(wrong: str) -> None:
    with pytest.raises(ValueError, match="no seed") as refused:
        read_seed(wrong)
    assert len(wrong) < 3 or wrong not in str(refused.value)
    with pytest.raises(ValueError, match="no credentials"):
        parse_credentials(wrong)


@pytest.mark.parametrize(
    "config",
    [
        {"user": "a", "password": "b"},
        {"host": "h", "user": "a", "token": "b"},
        {"host": "h", "nkey_seed": "SUAA"},
        {"host": "h", "credentials": "no file"},
        {"host": "h", "tls": True, "authorities": "-----BEGIN CERTIFICATE-----\nnone"},
    ],
)
def test_credentials_that_cannot_be_used_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        nats_republish.Destination.model_validate(config)


async def to_device(topic: str, given: Job, **config: Any) -> tuple[Receipt, OwnServer]:
    own = OwnServer(SimpleNamespace())
    destination = mqtt_republish.Destination.model_validate({"topic": topic} | config)
    return await mqtt_republish.send(given, destination, own), own  # type: ignore[arg-type] # a part


async def test_a_route_without_a_host_sends_to_a_device_of_its_tenant() -> None:
    topic = "tenant/{tenant_id}/device/{payload.to}/routed"
    receipt, own = await to_device(topic, job({"to": "d.2"}))
    assert receipt.outcome == "delivered"
    assert own.published == [("tenant.acme.device.d//2.routed", b'{"to":"d.2"}', None)]


@pytest.mark.parametrize(
    "topic",
    [
        "tenant/other/device/d1/routed",
        "tenant/{payload}/device/d1/routed",
        "tenant/acme/device/d1/commands",
        "tenant/acme/device/d1/telemetry",
        "tenant/acme/device/d1/shadow/delta",
        "tenant/acme/device/{payload}/x/routed",
        "{topic}",
        "anything",
    ],
)
async def test_and_to_nobody_else(topic: str) -> None:
    receipt, own = await to_device(topic, job("other"))
    assert (receipt.outcome, receipt.code) == ("refused", "TOPIC_NOT_ALLOWED")
    assert own.published == []


@pytest.mark.parametrize("config", [{"retain": True}, {"tls": True}, {"username": "u"}])
def test_what_only_a_broker_has_needs_a_host(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="host"):
        mqtt_republish.Destination.model_validate(config)


@given(st.text(max_size=50))
def test_no_value_is_a_wildcard_of_a_topic(value: str) -> None:
    escaped = mqtt_republish.escape(value)
    assert not {"+", "#", "\0"} & set(escaped)
    assert len(escaped) == len(value)
