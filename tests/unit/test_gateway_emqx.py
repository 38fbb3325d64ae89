"""Every message of EMQX is stored unchanged in a stream, where ingest reads or refuses it."""

import base64
import json
from typing import Any

import pytest

from functions.domain.broker_messages import make_message
from functions.domain.envelope import BadEnvelope, read_envelope
from functions.domain.topics import parse_topic
from functions.http_gateway.emqx_bridge import read_publish
from functions.http_gateway.problems import ProblemError
from runtime import Message

TOPIC = "tenant/t1/device/d.1/telemetry"
LIMIT = 1_000_000


def body(**fields: Any) -> bytes:
    sent = {
        "id": "0005F8F84FFFAFB9F44200000D810002",
        "clientid": "c1",
        "username": "t1/d.1",
        "topic": TOPIC,
        "qos": 1,
        "payload": '{"metrics": {"temp": 22.50}}',
        "publish_received_at": 1645003578536,
    }
    return json.dumps({**sent, **fields}).encode()


def stored(**fields: Any) -> Message:
    subject, data = make_message(read_publish(body(**fields)), limit_bytes=LIMIT)
    return Message(subject, data)


def test_a_sound_message_is_one_that_ingest_reads() -> None:
    message = stored()
    envelope = read_envelope(message)
    assert message.subject == "telemetry.t1"
    assert (envelope.device_id, envelope.username) == ("d.1", "t1/d.1")
    assert envelope.payload == {"metrics": {"temp": 22.5}}
    assert envelope.ts == "2022-02-16T09:26:18.536000+00:00"
    assert json.loads(message.data)["payload"] == '{"metrics": {"temp": 22.50}}'


def test_the_id_that_emqx_gave_is_the_message_id() -> None:
    assert read_publish(body()).message_id == "emqx/0005F8F84FFFAFB9F44200000D810002"


@pytest.mark.parametrize("bad", [None, "", 7, "x" * 200, "line\nbreak", "é"])
def test_without_a_usable_id_a_repetition_still_has_the_same_one(bad: Any) -> None:
    first = read_publish(body(id=bad))
    assert first.message_id == read_publish(body(id=bad)).message_id
    assert first.message_id != read_publish(body(id=bad, payload="{}")).message_id
    assert first.message_id.isascii()


@pytest.mark.parametrize(
    ("topic", "subject"),
    [
        ("tenant/t1/device/d1/shadow/reported", "shadow.t1"),
        ("tenant/t1/device/d1/commands/ack", "commands.t1"),
        ("tenant/t1/device/d1/commands", "telemetry.t1"),
        ("tenant/t1/device/d1", "telemetry.t1"),
        ("tenant/t1/device/d1/UPPER", "telemetry.t1"),
        ("tenant/t1", "telemetry.t1"),
        ("tenant/t1/device/a b/telemetry", "telemetry.t1"),
        ("tenant/*/device/d1/telemetry", "tenant.unmapped"),
        ("tenant/>/device/d1/telemetry", "tenant.unmapped"),
        ("tenant/t.1/device/d1/telemetry", "tenant.unmapped"),
        ("tenant//device/d1/telemetry", "tenant.unmapped"),
        ("tenant", "tenant.unmapped"),
        ("", "tenant.unmapped"),
        ("/tenant/t1", "tenant.unmapped"),
        ("tenant/" + "x" * 70_000, "tenant.unmapped"),
    ],
)
def test_every_topic_has_a_subject(topic: str, subject: str) -> None:
    message = stored(topic=topic)
    assert message.subject == subject
    assert json.loads(message.data)["topic"] == topic


def test_a_bad_topic_is_refused_by_ingest_with_the_topic_in_hand() -> None:
    with pytest.raises(BadEnvelope) as refused:
        read_envelope(stored(topic="tenant/t1/device/d1"))
    assert refused.value.code == "BAD_TOPIC_FORMAT"
    assert refused.value.topic == "tenant/t1/device/d1"


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ("not JSON", "INVALID_JSON"),
        ('{"a": NaN}', "INVALID_JSON"),
        ('{"a": 1, "a": 2}', "INVALID_JSON"),
        ("[" * 50 + "]" * 50, "INVALID_JSON"),
        ("", "INVALID_JSON"),
        ("7", "INVALID_PAYLOAD"),
        (None, "INVALID_PAYLOAD"),
    ],
)
def test_a_bad_payload_is_stored_and_refused_by_ingest(payload: str | None, code: str) -> None:
    message = stored(payload=payload)
    with pytest.raises(BadEnvelope) as refused:
        read_envelope(message)
    assert refused.value.code == code
    if payload is not None:
        assert json.loads(message.data)["payload"] == payload


def test_a_payload_in_base64_is_exact_to_the_byte() -> None:
    text = '{"metrics": {"ü": 1}}\r\n'.encode()
    message = stored(payload=None, payload_base64=base64.b64encode(text).decode())
    assert json.loads(message.data)["payload"].encode() == text
    assert read_envelope(message).payload == {"metrics": {"ü": 1}}


@pytest.mark.parametrize(
    ("topic", "subject"),
    [
        (TOPIC, "telemetry.t1.d//1.telemetry"),
        ("tenant/t1/device/d1/shadow/reported", "shadow.t1.d1.reported"),
        ("tenant/t1/device/d1/commands/ack", "commands.t1.d1.ack"),
    ],
)
def test_bytes_that_are_no_text_go_out_raw_on_the_subject_of_their_device(
    topic: str, subject: str
) -> None:
    raw = b"\xff\xfe\x00{"
    message = stored(topic=topic, payload_base64=base64.b64encode(raw).decode())
    assert (message.subject, message.data) == (subject, raw)
    with pytest.raises(BadEnvelope) as refused:
        read_envelope(message)
    assert (refused.value.code, refused.value.topic) == ("INVALID_JSON", parse_topic(topic))


def test_bytes_that_are_no_text_on_a_bad_topic_are_kept_too() -> None:
    raw = b"\xff\xfe"
    message = stored(topic="tenant/t1/x", payload_base64=base64.b64encode(raw).decode())
    assert message.subject == "telemetry.t1"
    assert base64.b64decode(json.loads(message.data)["payload_base64"]) == raw


def test_invalid_base64_is_kept_unchanged() -> None:
    assert json.loads(stored(payload_base64="***").data)["payload"] == "***"


@pytest.mark.parametrize("filler", ["x", "\x01", '"', "ü", "\U0001f600"])
def test_a_message_too_large_for_nats_is_stored_cut_short(filler: str) -> None:
    publish = read_publish(body(payload=filler * 1_500_000, username="u" * 100_000))
    subject, data = make_message(publish, limit_bytes=LIMIT)
    document = json.loads(data)
    assert subject == "telemetry.t1"
    assert len(data) <= LIMIT
    assert document["topic"] == TOPIC
    assert document["payload_cut_from_bytes"] == len(filler.encode()) * 1_500_000
    assert document["payload"]


def test_a_very_long_topic_is_cut_too() -> None:
    publish = read_publish(body(topic="\x01" * 2_000_000))
    subject, data = make_message(publish, limit_bytes=LIMIT)
    assert subject == "tenant.unmapped"
    assert len(data) <= LIMIT


def test_raw_bytes_too_large_for_nats_are_cut_too() -> None:
    raw = base64.b64encode(b"\xff" * 1_500_000).decode()
    subject, data = make_message(read_publish(body(payload_base64=raw)), limit_bytes=LIMIT)
    assert subject == "telemetry.t1"
    assert len(data) <= LIMIT


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\xff", b"null", b"[]", b'"x"', b"{", b"{}", b'{"topic": 7}', b'{"payload": "{}"}'],
)
def test_a_body_that_no_rule_sends_is_refused(garbage: bytes) -> None:
    with pytest.raises(ProblemError) as refused:
        read_publish(garbage)
    assert refused.value.status == 400


@pytest.mark.parametrize("at", [None, "soon", -1, 10**30, True, 1.5])
def test_a_strange_clock_does_not_stop_a_message(at: Any) -> None:
    assert json.loads(stored(publish_received_at=at).data)["ts"]
