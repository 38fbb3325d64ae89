"""Batches of a device over HTTP, and bodies that are coded with gzip."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

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

ONE = "/ingest/v1/tenant/t1/device/d1/telemetry"
PATH = f"{ONE}/batch"
LINES = {"Content-Type": "application/x-ndjson"}
GZIP = {"Content-Encoding": "gzip"}


def zipped(plain: bytes) -> bytes:
    return gzip.compress(plain, mtime=0)


@pytest.fixture
async def gateway(broker: Broker) -> AsyncIterator[Gateway]:
    async with make_streams(broker), run_gateway(broker) as running:
        yield running


async def test_every_item_has_its_answer_and_the_good_ones_are_stored(
    gateway: Gateway, broker: Broker
) -> None:
    lines = [b'{"n": 1.50}', b"no json", b"[]", b"", b'{"a":1,"a":2}', b'{"n": 2}\r']
    lines += [b'{"a":"' + b"x" * 65_536 + b'"}']
    answer = await gateway.client.post(PATH, content=b"\n".join(lines) + b"\n", headers=LINES)
    assert answer.status_code == 207
    told = answer.json()
    assert (told["accepted"], told["refused"]) == (2, 4)
    assert [(item["status"], item.get("code")) for item in told["items"]] == [
        (202, None),
        (400, "INVALID_JSON"),
        (422, "INVALID_PAYLOAD"),
        (400, "INVALID_JSON"),
        (202, None),
        (413, "BODY_TOO_LARGE"),
    ]
    assert [item["index"] for item in told["items"]] == list(range(6))
    assert told["items"][4] | {"stream": "TELEMETRY", "sequence": 2} == told["items"][4]
    assert await count_stored(broker) == {"TELEMETRY": 2}
    # A line is stored byte for byte.
    assert b'{"n": 1.50}' in (await read_stored(broker, "TELEMETRY")).data


async def test_an_array_of_readings_is_stored_in_its_order(
    gateway: Gateway, broker: Broker
) -> None:
    readings = [{"site_id": "s1", "metrics": {"n": n, "f": 0.1}} for n in range(120)]
    answer = await gateway.client.post(
        PATH, json=readings, headers={"X-Provision-Token": "of the device"}
    )
    assert answer.status_code == 202
    assert [item["sequence"] for item in answer.json()["items"]] == list(range(1, 121))
    last = (await read_stored(broker, "TELEMETRY", 120)).document
    assert last["payload"] == {"provision_token": "of the device", **readings[-1]}
    assert last["topic"] == "tenant/t1/device/d1/telemetry"


async def test_a_message_may_be_as_deep_in_an_array_as_alone(gateway: Gateway) -> None:
    deepest = '{"x":' + "[" * 31 + "]" * 31 + "}"
    for path, body in ((PATH.removesuffix("/batch"), deepest), (PATH, f"[{deepest}]")):
        answer = await gateway.client.post(path, content=body, headers=JSON)
        assert answer.status_code == 202, path
    deeper = deepest.replace("[]", "[[]]")
    answer = await gateway.client.post(PATH, content=f"[{deeper}]", headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_JSON")


@pytest.mark.parametrize(
    ("msg_type", "stream"), [("shadow/reported", "SHADOW"), ("commands/ack", "COMMANDS")]
)
async def test_every_message_type_has_batches(
    gateway: Gateway, broker: Broker, msg_type: str, stream: str
) -> None:
    path = f"/ingest/v1/tenant/t1/device/d1/{msg_type}/batch"
    assert (await gateway.client.post(path, json=[{}, {}])).status_code == 202
    assert await count_stored(broker) == {stream: 2}


async def test_a_batch_that_is_sent_again_is_stored_once_whatever_part_is_sent(
    gateway: Gateway, broker: Broker
) -> None:
    key = {"Idempotency-Key": "k1"}
    readings: list[dict[str, Any]] = [{"n": 1}, {"n": 2}, {"n": 1}]
    first = await gateway.client.post(PATH, json=readings, headers=key)
    again = await gateway.client.post(PATH, json=readings, headers=key)
    part = await gateway.client.post(PATH, json=readings[1:2], headers=key)
    alone = await gateway.client.post(ONE, content=b'{"n":2}', headers={**JSON, **key})
    assert [item["duplicate"] for item in first.json()["items"]] == [False] * 3
    assert [item["duplicate"] for item in again.json()["items"]] == [True] * 3
    assert part.json()["items"][0]["sequence"] == alone.json()["sequence"] == 2
    other = await gateway.client.post(PATH, json=readings, headers={"Idempotency-Key": "k2"})
    assert other.json()["accepted"] == 3
    assert await count_stored(broker) == {"TELEMETRY": 6}


@pytest.mark.parametrize(
    ("content", "headers", "refusal"),
    [
        (b"{}", JSON, (422, "INVALID_PAYLOAD")),
        (b"[]", JSON, (422, "INVALID_PAYLOAD")),
        (b"\n\n", LINES, (422, "INVALID_PAYLOAD")),
        (b"[{}", JSON, (400, "INVALID_JSON")),
        (b'[{"a": NaN}]', JSON, (400, "INVALID_JSON")),
        (b"[{}]", {"Content-Type": "text/plain"}, (415, "UNSUPPORTED_MEDIA_TYPE")),
        (b"[{}]", {**JSON, "Content-Encoding": "br"}, (415, "UNSUPPORTED_CONTENT_ENCODING")),
        (b"[" + b"{}," * 500 + b"{}]", JSON, (413, "TOO_MANY_ITEMS")),
        (b"{}\n" * 501, LINES, (413, "TOO_MANY_ITEMS")),
        (b" " * 524_289, JSON, (413, "BODY_TOO_LARGE")),
        (zipped(b" " * 524_289), {**JSON, **GZIP}, (413, "BODY_TOO_LARGE")),
    ],
)
async def test_a_batch_that_is_none_is_refused_as_a_whole(
    gateway: Gateway,
    broker: Broker,
    content: bytes,
    headers: dict[str, str],
    refusal: tuple[int, str],
) -> None:
    answer = await gateway.client.post(PATH, content=content, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == refusal
    assert await count_stored(broker) == {}


async def test_a_bad_path_has_no_batches(gateway: Gateway, broker: Broker) -> None:
    for path in (PATH + "/batch", PATH.replace("t1", "*")):
        answer = await gateway.client.post(path, json=[{}])
        assert answer.status_code == 400, path
    assert await count_stored(broker) == {}


async def test_when_nothing_can_be_stored_the_batch_is_to_be_sent_again(
    gateway: Gateway, broker: Broker
) -> None:
    closed = {"name": "TELEMETRY", "subjects": ["elsewhere.>"], "storage": "memory"}
    await broker.api("STREAM.UPDATE.TELEMETRY", closed)
    answer = await gateway.client.post(PATH, json=[{"n": 1}, {"n": 2}])
    assert (answer.status_code, answer.json()["code"]) == (503, "NOT_STORED")
    assert "retry-after" in answer.headers


async def test_when_the_stream_is_full_in_the_middle_the_rest_is_to_be_sent_again(
    gateway: Gateway, broker: Broker
) -> None:
    config: dict[str, Any] = {"name": "TELEMETRY", "subjects": [STREAMS["TELEMETRY"]]}
    config |= {"storage": "memory", "discard": "new", "max_msgs": 2}
    await broker.api("STREAM.UPDATE.TELEMETRY", config)
    answer = await gateway.client.post(PATH, json=[{"n": n} for n in range(4)])
    assert answer.status_code == 207
    statuses = [item["status"] for item in answer.json()["items"]]
    assert sorted(statuses) == [202, 202, 503, 503]
    assert {item.get("code") for item in answer.json()["items"]} == {None, "NOT_STORED"}


async def test_a_body_may_be_coded_with_gzip(gateway: Gateway, broker: Broker) -> None:
    body = b'{"site_id":"s1","metrics":{"n":1}}'
    one = await gateway.client.post(
        ONE, content=zipped(body), headers={**JSON, **GZIP, "Idempotency-Key": "k"}
    )
    plain = await gateway.client.post(ONE, content=body, headers={**JSON, "Idempotency-Key": "k"})
    many = await gateway.client.post(
        PATH, content=zipped(b"\n".join([body] * 300)), headers={**LINES, **GZIP}
    )
    assert (one.status_code, plain.json()["duplicate"]) == (202, True)
    assert (many.status_code, many.json()["accepted"]) == (202, 300)
    assert body in (await read_stored(broker, "TELEMETRY")).data


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "INVALID_GZIP"),
        (b"{}", 400, "INVALID_GZIP"),
        (zipped(b"{}")[:-1], 400, "INVALID_GZIP"),
        (zipped(b"{}") + b"x", 400, "INVALID_GZIP"),
        (zipped(b"{}") * 2, 400, "INVALID_GZIP"),
        (zipped(b"{}")[:-8] + bytes(8), 400, "INVALID_GZIP"),
        (zipped(b"no json"), 400, "INVALID_JSON"),
        # 64 MB in 62 kB: only as much as a body may have is ever expanded.
        (zipped(b" " * 64_000_000), 413, "BODY_TOO_LARGE"),
    ],
)
async def test_gzip_that_is_none_or_a_bomb_is_refused(
    gateway: Gateway, broker: Broker, content: bytes, status: int, code: str
) -> None:
    answer = await gateway.client.post(ONE, content=content, headers={**JSON, **GZIP})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert await count_stored(broker) == {}


async def test_a_batch_leaves_other_requests_their_turn(gateway: Gateway) -> None:
    batches = [
        asyncio.create_task(gateway.client.post(PATH, json=[{"n": n} for n in range(500)]))
        for _ in range(4)
    ]
    one = await gateway.client.post(ONE, json={"n": 1})
    assert one.status_code == 202
    assert {answer.status_code for answer in await asyncio.gather(*batches)} == {202}
    assert json.loads((await batches[0]).content)["refused"] == 0
