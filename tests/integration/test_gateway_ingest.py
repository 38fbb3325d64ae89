"""Device ingest over HTTP: 202 means stored, any other status not stored."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from functions.domain.envelope import read_envelope
from runtime import Message
from runtime.broker.connection import Broker
from tests.support.gateway import (
    JSON,
    STREAMS,
    Gateway,
    count_stored,
    make_streams,
    read_stored,
    run_gateway,
)

PATH = "/ingest/v1/tenant/t1/device/d.1/telemetry"
PAYLOAD = {"site_id": "s1", "provision_token": "tok", "metrics": {"temp": 22}}
CLOSED = {"name": "TELEMETRY", "subjects": ["elsewhere.>"], "storage": "memory"}


@pytest.fixture
async def gateway(broker: Broker) -> AsyncIterator[Gateway]:
    async with make_streams(broker), run_gateway(broker) as running:
        yield running


async def test_an_accepted_message_is_stored_where_the_answer_says(
    gateway: Gateway, broker: Broker
) -> None:
    answer = await gateway.client.post(PATH, json=PAYLOAD)
    assert answer.status_code == 202
    assert answer.json() == {"stream": "TELEMETRY", "sequence": 1, "duplicate": False}
    stored = await read_stored(broker, "TELEMETRY")
    envelope = read_envelope(Message(stored.subject, stored.data))
    assert stored.subject == "telemetry.t1"
    assert envelope.topic.text == "tenant/t1/device/d.1/telemetry"
    assert (envelope.payload, envelope.username) == (PAYLOAD, "")
    assert (stored.document["tenant_id"], stored.document["device_id"]) == ("t1", "d.1")


@pytest.mark.parametrize(
    ("msg_type", "stream", "subject"),
    [
        ("events", "TELEMETRY", "telemetry.t1"),
        ("batch", "TELEMETRY", "telemetry.t1"),
        ("shadow/reported", "SHADOW", "shadow.t1"),
        ("commands/ack", "COMMANDS", "commands.t1"),
    ],
)
async def test_every_message_type_has_its_stream(
    gateway: Gateway, broker: Broker, msg_type: str, stream: str, subject: str
) -> None:
    answer = await gateway.client.post(f"/ingest/v1/tenant/t1/device/d1/{msg_type}", json={})
    assert (answer.status_code, answer.json()["stream"]) == (202, stream)
    assert (await read_stored(broker, stream)).subject == subject


async def test_the_bodys_bytes_are_kept(gateway: Gateway, broker: Broker) -> None:
    body = b'{ "b" : 1.50,\n\t"a": "\\u00fc", "metrics": {}}'
    await gateway.client.post(PATH, content=body, headers=JSON)
    assert body in (await read_stored(broker, "TELEMETRY")).data


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        (b"{}", "from the header"),
        (b' { "metrics": {} } ', "from the header"),
        (b'{"provision_token": "own"}', "own"),
        (b'{"provision_token": null}', None),
    ],
)
async def test_a_token_in_the_header_fills_in_only_for_a_missing_one(
    gateway: Gateway, broker: Broker, body: bytes, seen: str | None
) -> None:
    answer = await gateway.client.post(
        PATH, content=body, headers={**JSON, "X-Provision-Token": "from the header"}
    )
    assert answer.status_code == 202
    stored = await read_stored(broker, "TELEMETRY")
    assert stored.document["payload"]["provision_token"] == seen


async def test_a_repetition_under_one_key_is_stored_once(gateway: Gateway, broker: Broker) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = await gateway.client.post(PATH, json=PAYLOAD, headers=headers)
    again = await gateway.client.post(PATH, json=PAYLOAD, headers=headers)
    assert (again.status_code, again.json()["duplicate"]) == (202, True)
    assert again.json()["sequence"] == first.json()["sequence"]
    assert await count_stored(broker) == {"TELEMETRY": 1}


async def test_one_key_hides_neither_another_device_nor_another_measurement(
    gateway: Gateway, broker: Broker
) -> None:
    headers = {"Idempotency-Key": "k1"}
    for path in (PATH, PATH.replace("d.1", "d2"), PATH.replace("t1", "t2")):
        await gateway.client.post(path, json=PAYLOAD, headers=headers)
    await gateway.client.post(PATH, json={**PAYLOAD, "metrics": {"temp": 23}}, headers=headers)
    assert await count_stored(broker) == {"TELEMETRY": 4}


async def test_a_corrected_token_is_not_a_repetition_of_the_wrong_one(
    gateway: Gateway, broker: Broker
) -> None:
    for token in ("wrong", "right"):
        headers = {"Idempotency-Key": "k1", "X-Provision-Token": token}
        answer = await gateway.client.post(PATH, json={"metrics": {}}, headers=headers)
        assert (answer.status_code, answer.json()["duplicate"]) == (202, False)
    assert await count_stored(broker) == {"TELEMETRY": 2}


async def test_without_a_key_the_same_message_twice_is_two(
    gateway: Gateway, broker: Broker
) -> None:
    for _ in range(2):
        await gateway.client.post(PATH, json=PAYLOAD)
    assert await count_stored(broker) == {"TELEMETRY": 2}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "INVALID_JSON"),
        (b"not json", 400, "INVALID_JSON"),
        (b'{"a": NaN}', 400, "INVALID_JSON"),
        (b'{"a": Infinity}', 400, "INVALID_JSON"),
        (b'{"a": 1e999}', 400, "INVALID_JSON"),
        (b'{"a": 99999999999999999999}', 400, "INVALID_JSON"),
        (b'{"a": 1, "a": 2}', 400, "INVALID_JSON"),
        (b'{"a": "\xff"}', 400, "INVALID_JSON"),
        (b'{"a": "\\ud800"}', 400, "INVALID_JSON"),
        (b'{"a": 1} {"b": 2}', 400, "INVALID_JSON"),
        (b'{"a": 1,}', 400, "INVALID_JSON"),
        (b'{"a":' * 60 + b"1" + b"}" * 60, 400, "INVALID_JSON"),
        (b'{"a":' * 10_000, 400, "INVALID_JSON"),
        (b"\xef\xbb\xbf{}", 400, "INVALID_JSON"),
        (b"[]", 422, "INVALID_PAYLOAD"),
        (b'"text"', 422, "INVALID_PAYLOAD"),
        (b"7", 422, "INVALID_PAYLOAD"),
        (b"null", 422, "INVALID_PAYLOAD"),
    ],
)
async def test_a_bad_body_is_refused_at_once(
    gateway: Gateway, broker: Broker, body: bytes, status: int, code: str
) -> None:
    answer = await gateway.client.post(PATH, content=body, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["instance"] == PATH
    assert await count_stored(broker) == {}


@pytest.mark.parametrize(
    "path",
    [
        "/ingest/v1/tenant/t.1/device/d1/telemetry",
        "/ingest/v1/tenant/*/device/d1/telemetry",
        "/ingest/v1/tenant/%3E/device/d1/telemetry",
        "/ingest/v1/tenant//device/d1/telemetry",
        "/ingest/v1/tenant/t1/device/*/telemetry",
        "/ingest/v1/tenant/t1/device/a%20b/telemetry",
        "/ingest/v1/tenant/t1/device/%2e%2e/telemetry",
        "/ingest/v1/tenant/t1/device/a%0D%0AX/telemetry",
        "/ingest/v1/tenant/t1/device/a%2Fshadow/reported",
        "/ingest/v1/tenant/t1/device/d%C3%A9/telemetry",
        "/ingest/v1/tenant/t1/device/d%ff/telemetry",
        "/ingest/v1/tenant/t1/device/d1/",
        "/ingest/v1/tenant/t1/device/d1/Telemetry",
        "/ingest/v1/tenant/t1/device/d1/shadow/desired",
        "/ingest/v1/tenant/t1/device/d1/commands",
        "/ingest/v1/tenant/t1/device/d1/telemetry/more",
        "/ingest/v1/tenant/t1/d1",
        f"/ingest/v1/tenant/{'t' * 65}/device/d1/telemetry",
        f"/ingest/v1/tenant/t1/device/{'d' * 129}/telemetry",
    ],
)
async def test_a_bad_id_is_refused_and_nothing_is_stored(
    gateway: Gateway, broker: Broker, path: str
) -> None:
    answer = await gateway.client.post(path, json=PAYLOAD)
    assert answer.status_code == 400
    assert answer.json()["code"] in {"BAD_TOPIC_FORMAT", "MALFORMED_PATH"}
    assert await count_stored(broker) == {}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json", "Content-Encoding": "br"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip, gzip"},
        {"Content-Type": "evil/application/json; x"},
    ],
)
async def test_a_body_of_another_type_than_json_is_refused(
    gateway: Gateway, headers: dict[str, str]
) -> None:
    answer = await gateway.client.post(PATH, content=b"{}", headers=headers)
    assert answer.status_code == (202 if "evil" in str(headers) else 415)


async def test_json_may_name_its_charset(gateway: Gateway) -> None:
    answer = await gateway.client.post(
        PATH, content=b"{}", headers={"Content-Type": "Application/JSON; charset=utf-8"}
    )
    assert answer.status_code == 202


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "a\tb"])
async def test_a_key_that_could_not_be_a_message_id_is_refused(gateway: Gateway, key: str) -> None:
    answer = await gateway.client.post(PATH, json={}, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_IDEMPOTENCY_KEY")


async def test_any_other_method_is_told_what_is_allowed(gateway: Gateway) -> None:
    device = PATH.rpartition("/")[0]
    for path, allow in (
        (PATH, "POST, OPTIONS"),
        (f"{PATH}/batch", "POST, OPTIONS"),
        (f"{device}/shadow", "GET, HEAD, OPTIONS"),
        (f"{device}/shadow/name/commands", "GET, HEAD, OPTIONS"),
        (f"{device}/commands", "GET, OPTIONS"),
        ("/healthz", "GET, HEAD, OPTIONS"),
        ("/bridge/v1/mqtt", "POST, OPTIONS"),
    ):
        got = await gateway.client.put(path)
        assert (got.status_code, got.headers["allow"]) == (405, allow)
        assert got.json()["code"] == "METHOD_NOT_ALLOWED"
        options = await gateway.client.options(path)
        assert (options.status_code, options.headers["allow"]) == (204, allow)
    assert (await gateway.client.head(f"{device}/commands")).status_code == 405


async def test_a_body_that_says_it_is_too_large_is_refused_unread(gateway: Gateway) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(f"{head}Content-Length: 65537\r\n\r\n".encode())
    status = await asyncio.wait_for(reader.readline(), 60)
    assert status.startswith(b"HTTP/1.1 413")
    writer.close()


async def test_a_body_that_grows_too_large_is_refused(gateway: Gateway, broker: Broker) -> None:
    async def grow() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 100_000

    answer = await gateway.client.post(PATH, content=grow(), headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (413, "BODY_TOO_LARGE")
    assert (await gateway.client.post(PATH, json={})).status_code == 202
    assert await count_stored(broker) == {"TELEMETRY": 1}


async def test_a_body_of_exactly_the_limit_is_stored(gateway: Gateway) -> None:
    body = b'{"a":"' + b"x" * (65_536 - 8) + b'"}'
    assert len(body) == 65_536
    answer = await gateway.client.post(PATH, content=body, headers=JSON)
    assert answer.status_code == 202


async def test_trace_and_request_id_travel_with_the_message(
    gateway: Gateway, broker: Broker
) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    answer = await gateway.client.post(
        PATH, json={}, headers={"traceparent": trace, "X-Request-Id": "r-1"}
    )
    assert answer.headers["x-request-id"] == "r-1"
    headers = (await read_stored(broker, "TELEMETRY")).headers
    assert trace in headers
    assert "X-Request-Id: r-1" in headers


@pytest.mark.parametrize("forged", ["a b", "x" * 65, "a\tb", ""])
async def test_a_request_id_that_is_none_is_replaced(gateway: Gateway, forged: str) -> None:
    answer = await gateway.client.post(
        PATH, json={}, headers=[("X-Request-Id", forged), ("traceparent", "nonsense")]
    )
    assert answer.status_code == 202
    assert len(answer.headers["x-request-id"]) == 32


async def test_when_no_stream_takes_it_the_device_is_told_to_come_back(
    gateway: Gateway, broker: Broker
) -> None:
    await broker.api("STREAM.UPDATE.TELEMETRY", CLOSED)
    for _ in range(3):
        answer = await gateway.client.post(PATH, json=PAYLOAD)
        assert (answer.status_code, answer.json()["code"]) == (503, "NOT_STORED")
        assert answer.headers["retry-after"] == "1"
    # The log has one line for the outage, not one for each message.
    assert gateway.lines.text.count("Messages are not stored") == 1


async def test_when_the_stream_is_full_the_device_is_told_to_come_back(
    gateway: Gateway, broker: Broker
) -> None:
    config: dict[str, Any] = {"name": "TELEMETRY", "subjects": [STREAMS["TELEMETRY"]]}
    config |= {"storage": "memory", "discard": "new", "max_msgs": 1}
    await broker.api("STREAM.UPDATE.TELEMETRY", config)
    assert (await gateway.client.post(PATH, json=PAYLOAD)).status_code == 202
    full = await gateway.client.post(PATH, json=PAYLOAD)
    assert full.status_code == 503
    assert "maximum" not in full.text


async def test_a_message_that_its_stream_would_not_take_is_refused_for_good(
    gateway: Gateway, broker: Broker
) -> None:
    config = {"name": "TELEMETRY", "subjects": [STREAMS["TELEMETRY"]], "storage": "memory"}
    await broker.api("STREAM.UPDATE.TELEMETRY", {**config, "max_msg_size": 8_000})
    answer = await gateway.client.post(PATH, json={"text": "x" * 9_000})
    assert (answer.status_code, answer.json()["code"]) == (413, "MESSAGE_TOO_LARGE")
    assert (await gateway.client.post(PATH, json=PAYLOAD)).status_code == 202


async def test_a_message_that_nats_would_not_take_is_refused_for_good(broker: Broker) -> None:
    reconnects = broker.reconnects
    async with (
        make_streams(broker),
        run_gateway(broker, max_device_body_bytes=9_000_000) as gateway,
    ):
        body = b'{"a":"' + b"x" * broker.max_payload_bytes + b'"}'
        answer = await gateway.client.post(PATH, content=body, headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (413, "MESSAGE_TOO_LARGE")
        await gateway.lines.wait("A message is not stored.", level="warning")
        assert (await gateway.client.post(PATH, json=PAYLOAD)).status_code == 202
    assert broker.reconnects == reconnects


async def test_many_devices_at_once_are_all_stored(gateway: Gateway, broker: Broker) -> None:
    answers = await asyncio.gather(
        *(
            gateway.client.post(f"/ingest/v1/tenant/t{n % 7}/device/d{n}/telemetry", json={"n": n})
            for n in range(300)
        )
    )
    assert {answer.status_code for answer in answers} == {202}
    assert {answer.json()["sequence"] for answer in answers} == set(range(1, 301))


async def test_tokens_never_reach_a_log(gateway: Gateway, broker: Broker) -> None:
    await broker.api("STREAM.UPDATE.TELEMETRY", CLOSED)
    secret = {"provision_token": "hunter2", "metrics": {}}
    answer = await gateway.client.post(PATH, json=secret)
    assert answer.status_code == 503
    assert "hunter2" not in gateway.lines.text + answer.text
    assert json.loads(answer.text)["event_id"] == answer.headers["x-request-id"]
