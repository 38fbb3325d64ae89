"""EMQX's HTTP sink: a failure that may pass gets 503, and every message of a device is stored."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from functions.domain.downlink_marks import DownlinkMarks
from functions.domain.envelope import read_envelope
from runtime import Message
from runtime.broker.connection import Broker
from tests.support.gateway import (
    BRIDGE,
    JSON,
    REGISTRATION_KEY,
    Gateway,
    count_stored,
    make_streams,
    read_stored,
    run_gateway,
)

PATH = "/bridge/v1/mqtt"


@pytest.fixture
async def gateway(broker: Broker) -> AsyncIterator[Gateway]:
    async with make_streams(broker), run_gateway(broker) as running:
        yield running


def publish(**fields: Any) -> dict[str, Any]:
    return {
        "id": "0005F8F84FFFAFB9F44200000D810002",
        "clientid": "c1",
        "username": "t1/d1",
        "topic": "tenant/t1/device/d1/telemetry",
        "qos": 1,
        "payload": '{"metrics": {"temp": 22}}',
        "publish_received_at": 1645003578536,
        **fields,
    }


async def test_a_message_is_stored_as_ingest_reads_it(gateway: Gateway, broker: Broker) -> None:
    answer = await gateway.client.post(PATH, json=publish(), headers=BRIDGE)
    assert (answer.status_code, answer.content) == (204, b"")
    stored = await read_stored(broker, "TELEMETRY")
    envelope = read_envelope(Message(stored.subject, stored.data))
    assert (envelope.username, envelope.payload) == ("t1/d1", {"metrics": {"temp": 22}})


async def test_a_repetition_by_emqx_is_stored_once(gateway: Gateway, broker: Broker) -> None:
    for _ in range(3):
        answer = await gateway.client.post(PATH, json=publish(), headers=BRIDGE)
        assert answer.status_code == 204
    assert await count_stored(broker) == {"TELEMETRY": 1}


async def test_nothing_that_a_device_publishes_is_turned_away(
    gateway: Gateway, broker: Broker
) -> None:
    odd: list[dict[str, Any]] = [
        {"topic": "tenant/t1/device/d1/shadow/reported"},
        {"topic": "tenant/t1/device/d1/commands/ack"},
        {"topic": "tenant/*/device/>/telemetry"},
        {"topic": ""},
        {"topic": "tenant/t1/device/d1/\n\r"},
        {"payload": "no JSON"},
        {"payload": ""},
        {"payload": None},
        {"payload": {"decoded": "by the rule"}},
        {"payload_base64": base64.b64encode(b"\xff\x00").decode()},
        {"payload": "x" * 2_000_000},
        {"username": None, "qos": "?", "id": None, "publish_received_at": None},
    ]
    for number, fields in enumerate(odd):
        message = publish(**{"id": f"M{number}", **fields})
        answer = await gateway.client.post(PATH, json=message, headers=BRIDGE)
        assert answer.status_code == 204, fields
    assert sum((await count_stored(broker)).values()) == len(odd)
    assert set(await count_stored(broker)) == {"TELEMETRY", "SHADOW", "COMMANDS", "UNMAPPED"}


@pytest.mark.parametrize("kind", ["commands", "shadow/delta", "shadow/name/config/delta", "routed"])
async def test_what_the_platform_has_sent_comes_back_and_is_no_device_s(
    gateway: Gateway, broker: Broker, kind: str
) -> None:
    topic, body = f"tenant/t1/device/d1/{kind}", b'{"command_id": "c1", "text": "\xc3\xa4"}'
    marks = DownlinkMarks(SecretStr(REGISTRATION_KEY))
    # The body of the sink of deploy/emqx/runtime.hocon.
    own = {
        "id": "0006543AA25F58E0F442000008FC0000",
        "clientid": "auto-1CD1B6AB-4D31-1B45-2A0E-4F5B6F9A9E51",
        "username": "bridge",
        "topic": topic,
        "qos": 1,
        "publish_received_at": 1764437265000,
        "payload_base64": base64.b64encode(body).decode(),
        "sent_by": marks.make(topic, body),
    }
    # Each with one thing wrong: EMQX writes `undefined` for what a message has not.
    forged: list[dict[str, Any]] = [
        {"sent_by": "undefined"},
        {"sent_by": "runtime/" + "0" * 64},
        {"sent_by": DownlinkMarks(SecretStr("another key")).make(topic, body)},
        {"topic": topic.replace("d1", "d2")},
        {"payload_base64": base64.b64encode(body + b" ").decode()},
        {"sent_by": {"sent-by": own["sent_by"]}},
    ]
    for number, wrong in enumerate([{}, *forged, {}]):
        message = {**own, "id": f"M{number}", **wrong}
        answer = await gateway.client.post(PATH, json=message, headers=BRIDGE)
        assert (answer.status_code, answer.content) == (204, b"")
    assert await count_stored(broker) == {"TELEMETRY": len(forged)}
    sentence = "Messages of the platform to devices came back, and were not stored."
    assert (await gateway.lines.wait(sentence))["messages"] == 1


async def test_a_message_that_its_stream_finds_too_large_is_cut(
    gateway: Gateway, broker: Broker
) -> None:
    config = {"name": "TELEMETRY", "subjects": ["telemetry.>"], "storage": "memory"}
    await broker.api("STREAM.UPDATE.TELEMETRY", {**config, "max_msg_size": 8_000})
    answer = await gateway.client.post(PATH, json=publish(payload="x" * 30_000), headers=BRIDGE)
    assert answer.status_code == 204
    assert (await read_stored(broker, "TELEMETRY")).document["payload_cut_from_bytes"] == 30_000


async def test_a_mark_on_a_device_s_own_topic_counts_for_nothing(
    gateway: Gateway, broker: Broker
) -> None:
    message = publish()
    mark = DownlinkMarks(SecretStr(REGISTRATION_KEY)).make(
        message["topic"], message["payload"].encode()
    )
    await gateway.client.post(PATH, json={**message, "sent_by": mark}, headers=BRIDGE)
    assert await count_stored(broker) == {"TELEMETRY": 1}


async def test_bytes_that_are_no_text_are_stored_exactly(gateway: Gateway, broker: Broker) -> None:
    raw = bytes(range(256))
    message = publish(payload_base64=base64.b64encode(raw).decode())
    await gateway.client.post(PATH, json=message, headers=BRIDGE)
    stored = await read_stored(broker, "TELEMETRY")
    assert (stored.subject, stored.data) == ("telemetry.t1.d1.telemetry", raw)


async def test_a_message_of_emqx_needs_no_content_type(gateway: Gateway) -> None:
    answer = await gateway.client.post(PATH, content=json.dumps(publish()), headers=BRIDGE)
    assert answer.status_code == 204


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"X-Internal-Auth": ""}, 401),
        ({"X-Internal-Auth": "wrong"}, 403),
        ({"X-Internal-Auth": "the bridge's key"}, 204),
        ({"X-Internal-Auth": "the bridge's ke"}, 403),
        ({"Authorization": "Bearer the bridge's key"}, 401),
    ],
)
async def test_the_bridge_accepts_the_right_key_only(
    gateway: Gateway, headers: dict[str, str], status: int
) -> None:
    answer = await gateway.client.post(PATH, json=publish(), headers={**JSON, **headers})
    assert answer.status_code == status
    assert ("www-authenticate" in answer.headers) == (status == 401)


async def test_a_key_of_strange_bytes_is_only_wrong(gateway: Gateway) -> None:
    answer = await gateway.client.post(
        PATH, json=publish(), headers=[(b"X-Internal-Auth", b"\xff\xfe")]
    )
    assert answer.status_code == 403


@pytest.mark.parametrize("key", [None, ""])
async def test_without_a_key_of_its_own_the_bridge_keeps_emqx_waiting(
    broker: Broker, key: str | None
) -> None:
    async with make_streams(broker), run_gateway(broker, bridge_key=key) as gateway:
        for headers in ({}, {"X-Internal-Auth": ""}, BRIDGE):
            answer = await gateway.client.post(PATH, json=publish(), headers=headers)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert await count_stored(broker) == {}
        assert "No bridge key" in gateway.lines.text


@pytest.mark.parametrize("body", [b"", b"garbage", b"[]", b'{"topic": 1}', b"\xff"])
async def test_garbage_is_refused(gateway: Gateway, broker: Broker, body: bytes) -> None:
    answer = await gateway.client.post(PATH, content=body, headers=BRIDGE)
    assert (answer.status_code, answer.json()["code"]) == (400, "NOT_FROM_EMQX")
    assert await count_stored(broker) == {}


async def test_what_jetstream_did_not_confirm_is_a_503(gateway: Gateway, broker: Broker) -> None:
    closed = {"name": "TELEMETRY", "subjects": ["elsewhere.>"], "storage": "memory"}
    await broker.api("STREAM.UPDATE.TELEMETRY", closed)
    answer = await gateway.client.post(PATH, json=publish(), headers=BRIDGE)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    opened = {**closed, "subjects": ["telemetry.>"]}
    await broker.api("STREAM.UPDATE.TELEMETRY", opened)
    assert (await gateway.client.post(PATH, json=publish(), headers=BRIDGE)).status_code == 204
    assert await count_stored(broker) == {"TELEMETRY": 1}


async def test_a_message_that_comes_too_slowly_is_a_503(broker: Broker) -> None:
    async with make_streams(broker), run_gateway(broker, read_timeout_s=0.2) as gateway:
        key = BRIDGE["X-Internal-Auth"]
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nX-Internal-Auth: {key}\r\n"
        answer = await gateway.ask_raw(f"{head}Content-Length: 10\r\n\r\n{{".encode())
        assert answer.startswith(b"HTTP/1.1 503")
