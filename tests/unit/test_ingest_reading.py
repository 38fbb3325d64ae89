import json
from typing import Any

import pytest

from functions.domain.envelope import BadEnvelope, Envelope, read_envelope
from functions.domain.quarantine import Refusal
from functions.domain.topics import Topic
from functions.http_gateway.bodies import read_object
from functions.http_gateway.device_messages import make_envelope
from functions.http_gateway.problems import ProblemError
from functions.ingest.plan import read_telemetry
from functions.ingest.unmapped import judge
from runtime import Message

PAYLOAD = {"site_id": "s1", "metrics": {"temp": 22}}
REPORTED_TOPIC = "tenant/t/device/d/shadow/reported"
ENVELOPE: dict[str, Any] = {
    "topic": "tenant/t/device/d/telemetry",
    "tenant_id": "t",
    "device_id": "d",
    "msg_type": "telemetry",
    "username": "u",
    "payload": PAYLOAD,
    "ts": 1,
}


def read(subject: str, body: Any) -> Envelope | Refusal:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_telemetry(Message(subject, data))


def test_both_forms_give_the_same_message() -> None:
    raw = read("telemetry.t.d", PAYLOAD)
    as_object = read("telemetry.t", ENVELOPE)
    as_text = read("telemetry.t", {**ENVELOPE, "payload": json.dumps(PAYLOAD)})
    for found in (raw, as_object, as_text):
        assert isinstance(found, Envelope)
        assert found.topic == Topic("t", "d", "telemetry")
        assert found.payload == PAYLOAD
        assert found.subject_tenant == "t"
    assert isinstance(raw, Envelope)
    assert raw.username == ""
    assert isinstance(as_object, Envelope)
    assert as_object.username == "u"


@pytest.mark.parametrize(
    ("subject", "payload", "headers", "username"),
    [
        ("telemetry.t.d//1", PAYLOAD, {"Nmqtt-Pub": "1"}, "t/d.1"),
        ("tenant.t.device.d.metrics", PAYLOAD, {"Nmqtt-Pub": "0"}, "t/d"),
        ("telemetry.t.d", {**PAYLOAD, "provision_token": None}, {"Nmqtt-Pub": "1"}, "t/d"),
        ("telemetry.t.d", {**PAYLOAD, "provision_token": "tok"}, {"Nmqtt-Pub": "1"}, ""),
        ("telemetry.t.d", {**PAYLOAD, "provision_token": ""}, {"Nmqtt-Pub": "1"}, ""),
        ("telemetry.t.d", PAYLOAD, {"other": "1"}, ""),
        # A door wrote this one: it knows a name itself, or none.
        ("telemetry.t", {**ENVELOPE, "username": ""}, {"Nmqtt-Pub": "1"}, ""),
    ],
)
def test_the_listener_s_subject_names_the_sender_of_a_message_without_a_token(
    subject: str, payload: dict[str, Any], headers: dict[str, str], username: str
) -> None:
    message = Message(subject, json.dumps(payload).encode(), headers=headers)

    assert read_envelope(message).username == username


def test_the_payloads_own_size_counts_and_not_its_envelopes() -> None:
    text = " " * 5000 + json.dumps(PAYLOAD)
    found = read("telemetry.t", {**ENVELOPE, "payload": text})
    assert isinstance(found, Envelope)
    assert found.payload_bytes == len(text)
    found = read("telemetry.t", {**ENVELOPE, "more": "x" * 9000})
    assert isinstance(found, Envelope)
    assert found.payload_bytes == len(json.dumps(PAYLOAD, separators=(",", ":")))


def nested(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


def test_every_door_takes_a_body_of_32_levels_and_none_takes_more() -> None:
    topic = Topic("t", "d", "telemetry")
    for levels, is_taken in ((1, True), (32, True), (33, False)):
        body = nested(levels)
        text = json.dumps({**ENVELOPE, "payload": body.decode()}).encode()
        forms = [
            read("telemetry.t.d", body),
            read("telemetry.t", make_envelope(topic, body)),
            read("telemetry.t", text),
        ]
        for found in forms:
            assert isinstance(found, Envelope if is_taken else Refusal), (levels, found)
        if is_taken:
            assert read_object(body, code="INVALID_PAYLOAD") == json.loads(body)
        else:
            assert [found.reason for found in forms if isinstance(found, Refusal)] == [
                "INVALID_JSON"
            ] * 3
            with pytest.raises(ProblemError, match="32 levels"):
                read_object(body, code="INVALID_PAYLOAD")


@pytest.mark.parametrize(
    ("subject", "body", "reason"),
    [
        ("telemetry.t.*", PAYLOAD, "BAD_TOPIC_FORMAT"),
        ("telemetry.t.d.x.y", b"not json", "BAD_TOPIC_FORMAT"),
        ("telemetry.t.d", b"not json", "INVALID_JSON"),
        ("telemetry.t.d", b"\xff", "INVALID_JSON"),
        ("telemetry.t.d", b"", "INVALID_JSON"),
        ("telemetry.t.d", b'{"a":NaN}', "INVALID_JSON"),
        ("telemetry.t.d", b'{"a":1,"a":1}', "INVALID_JSON"),
        ("telemetry.t.d", b"[" * 50 + b"]" * 50, "INVALID_JSON"),
        ("telemetry.t.d", b"x" * 1_000_000, "PAYLOAD_TOO_LARGE"),
        ("telemetry.t.d", [], "INVALID_PAYLOAD"),
        ("telemetry.t.d", 5, "INVALID_PAYLOAD"),
        ("telemetry.t", b"not json", "INVALID_JSON"),
        ("telemetry.t", [], "INVALID_PAYLOAD"),
        ("telemetry.t", {}, "BAD_TOPIC_FORMAT"),
        ("telemetry.t", {**ENVELOPE, "topic": 5}, "BAD_TOPIC_FORMAT"),
        ("telemetry.t", {**ENVELOPE, "topic": "tenant/t/device/*/x"}, "BAD_TOPIC_FORMAT"),
        ("telemetry.t", {**ENVELOPE, "topic": REPORTED_TOPIC}, "BAD_TOPIC_FORMAT"),
        ("telemetry.t", {**ENVELOPE, "topic": "tenant/t/device/d/commands"}, "BAD_TOPIC_FORMAT"),
        ("telemetry.t.d.commands", PAYLOAD, "BAD_TOPIC_FORMAT"),
        ("telemetry.t.d.shadow/delta", PAYLOAD, "BAD_TOPIC_FORMAT"),
        ("telemetry.t.d.shadow/reported", PAYLOAD, "BAD_TOPIC_FORMAT"),
        ("telemetry.t", {**ENVELOPE, "device_id": "e"}, "BAD_TOPIC_FORMAT"),
        ("telemetry.t", {**ENVELOPE, "payload": "not json"}, "INVALID_JSON"),
        ("telemetry.t", {**ENVELOPE, "payload": '{"a":1,"a":2}'}, "INVALID_JSON"),
        ("telemetry.t", {**ENVELOPE, "payload": "[]"}, "INVALID_PAYLOAD"),
        ("telemetry.t", {**ENVELOPE, "payload": None}, "INVALID_PAYLOAD"),
        ("telemetry.t", {**ENVELOPE, "version": "2"}, "unsupported_envelope_version:2"),
        ("telemetry.t", {**ENVELOPE, "version": []}, "unsupported_envelope_version:[]"),
        ("telemetry", {**ENVELOPE, "version": 1, "topic": ""}, "BAD_TOPIC_FORMAT"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_reason(
    subject: str, body: Any, reason: str
) -> None:
    refusal = read(subject, body)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason
    assert refusal.detail


@pytest.mark.parametrize(
    ("subject", "topic"),
    [
        ("tenant.t.device.d", "tenant/t/device/d"),
        ("tenant.t.device.d//1.x.y.z", "tenant/t/device/d.1/x/y/z"),
        ("tenant.t.device.d.Telemetry", "tenant/t/device/d/Telemetry"),
        ("tenant.t.device.d.alarm", Topic("t", "d", "alarm")),
    ],
)
def test_an_unmapped_topic_is_refused(subject: str, topic: Topic | str) -> None:
    refusal = judge(Message(subject, b"{}"))
    assert refusal is not None
    assert refusal.reason == "BAD_TOPIC_FORMAT"
    assert refusal.topic == topic


@pytest.mark.parametrize("kind", ["commands", "shadow.desired", "shadow.delta"])
def test_an_unmapped_downlink_is_done(kind: str) -> None:
    assert judge(Message(f"tenant.t.device.d//1.{kind}", b"{}")) is None


@pytest.mark.parametrize(
    "message",
    [
        Message("telemetry.t.d", b'{"a":' + b" " * 8187 + b"1}"),
        Message("telemetry.t.d", b"not JSON " * 1000),
        Message("telemetry.t", b'{"\\u0061":0}' * 10_000),
        Message(
            "telemetry.t",
            json.dumps({"topic": "tenant/t/device/d/telemetry", "payload": "x" * 8193}).encode(),
        ),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_parsed(message: Message) -> None:
    with pytest.raises(BadEnvelope) as refused:
        read_envelope(message)
    assert refused.value.code == "PAYLOAD_TOO_LARGE"


def test_a_payload_of_exactly_the_limit_may_be_escaped_throughout() -> None:
    payload = '{"a":"' + "x" * 8184 + '"}'
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in payload)
    data = f'{{"topic":"tenant/t/device/d/telemetry","payload":"{escaped}"}}'.encode()
    assert read_envelope(Message("telemetry.t", data)).payload_bytes == 8192
