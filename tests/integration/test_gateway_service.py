"""The gateway as a service: its port, its limits, its pages and its drain."""

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator

import pytest

from functions.http_gateway.boundary import MAX_HEAD_BYTES
from runtime import ConfigError
from runtime.broker.connection import Broker
from runtime.broker.micro import Answer
from runtime.message import Message
from tests.support.gateway import JSON, Gateway, echo, run_endpoint, run_gateway
from tests.support.servers import NatsServer

_GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
async def gateway(broker: Broker) -> AsyncIterator[Gateway]:
    async with run_gateway(broker) as running:
        yield running


async def test_a_taken_port_is_an_error_that_names_it(broker: Broker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"GATEWAY_PORT: port {port} .* is taken"):
            async with run_gateway(broker, port=port):
                pass


async def test_a_second_gateway_on_one_port_is_refused(gateway: Gateway, broker: Broker) -> None:
    with pytest.raises(ConfigError, match="GATEWAY_PORT"):
        async with run_gateway(broker, port=gateway.port):
            pass
    assert (await gateway.client.get("/healthz")).status_code == 200


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
async def test_an_address_of_another_machine_is_an_error_that_names_it(
    broker: Broker, host: str
) -> None:
    with pytest.raises(ConfigError, match=host):
        async with run_gateway(broker, host=host):
            pass


async def test_the_processs_signal_handlers_are_left_alone(broker: Broker) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with run_gateway(broker) as gateway:
        assert (await gateway.client.get("/healthz")).status_code == 200
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


async def test_stopping_answers_what_is_under_way_and_takes_nothing_new(
    gateway: Gateway, broker: Broker
) -> None:
    asked, release = asyncio.Event(), asyncio.Event()

    async def wait(message: Message) -> Answer:
        asked.set()
        await release.wait()
        return Answer(b'"done"')

    async with run_endpoint(broker, wait):
        under_way = asyncio.create_task(gateway.client.post("/probe", json={}))
        await asyncio.wait_for(asked.wait(), 60)
        gateway.stopping.set()
        await _until_closed(gateway.port)
        assert not gateway.served.done()
        release.set()
        answer = await under_way
        assert (answer.status_code, answer.content) == (200, b'"done"')
        await asyncio.wait_for(gateway.served, 60)


async def test_an_idle_connection_does_not_hold_up_the_end(gateway: Gateway) -> None:
    await gateway.client.get("/healthz")
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    gateway.stopping.set()
    await asyncio.wait_for(gateway.served, 60)
    assert await reader.read() == b""
    writer.close()


async def test_a_cancelled_gateway_leaves_nothing_behind(broker: Broker) -> None:
    async with run_gateway(broker) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        gateway.served.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gateway.served
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", gateway.port)
        assert await _read_end(reader) == b""
        writer.close()


async def test_the_pages_of_the_gateway_itself(gateway: Gateway, broker: Broker) -> None:
    health = await gateway.client.get("/healthz")
    assert health.json()["status"] == "ok"
    docs = await gateway.client.get("/docs")
    assert docs.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in docs.headers["content-security-policy"]
    assert "://" not in docs.text
    for asset in ("/docs/docs.js", "/docs/docs.css"):
        assert asset.removeprefix("/") in docs.text
        assert (await gateway.client.get(asset)).status_code == 200
    assert (await gateway.client.post("/docs")).status_code == 405
    assert (await gateway.client.get("/docs/../settings.py")).status_code == 404
    assert (await gateway.client.get("/docs/settings.py")).status_code == 404


async def test_the_openapi_document_follows_the_routes(gateway: Gateway, broker: Broker) -> None:
    assert "/probe" not in (await gateway.client.get("/openapi.json")).json()["paths"]
    schema = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}})
    async with run_endpoint(broker, echo, schema__request=schema, http__status="201"):
        await gateway.lines.wait("A route is served.", path="/probe")
        drawn = (await gateway.client.get("/openapi.json")).json()
        assert drawn["openapi"] == "3.1.0"
        assert "201" in drawn["paths"]["/probe"]["post"]["responses"]


async def test_head_and_options_of_the_pages(gateway: Gateway) -> None:
    head = await gateway.client.head("/healthz")
    assert (head.status_code, head.content) == (200, b"")
    options = await gateway.client.options("/openapi.json")
    assert options.status_code == 204
    assert "GET" in options.headers["allow"]


async def test_too_many_requests_get_503_and_health_still_answers(broker: Broker) -> None:
    asked, release = asyncio.Event(), asyncio.Event()

    async def wait(message: Message) -> Answer:
        asked.set()
        await release.wait()
        return Answer(b"1")

    async with run_gateway(broker, max_concurrent=1) as gateway, run_endpoint(broker, wait):
        first = asyncio.create_task(gateway.client.post("/probe", json={}))
        await asyncio.wait_for(asked.wait(), 60)
        refused = await gateway.client.post("/probe", json={})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["code"] == "OVERLOADED"
        assert (await gateway.client.get("/healthz")).status_code == 200
        assert (await gateway.client.get("/openapi.json")).status_code == 200
        release.set()
        assert (await first).status_code == 200
        assert (await gateway.client.post("/probe", json={})).status_code == 200


async def test_clients_that_do_not_read_or_do_not_send_take_no_place_from_others(
    broker: Broker,
) -> None:
    schema = json.dumps({"type": "object", "description": "x" * 200_000})
    async with (
        run_gateway(broker, max_concurrent=4, write_timeout_s=0.5, read_timeout_s=2) as gateway,
        run_endpoint(broker, echo, schema__request=schema),
    ):
        await gateway.lines.wait("A route is served.", path="/probe")
        slow: list[asyncio.StreamWriter] = []
        read: list[asyncio.StreamReader] = []
        for number in range(40):
            # A reader with a small limit stops reading, so the answer fills the buffers.
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1)
            if number % 2:
                writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 40)
            else:
                head = b"POST /probe HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
                writer.write(head)
            slow.append(writer)
            read.append(reader)
        answers = [await gateway.client.post("/probe", json={"n": n}) for n in range(20)]
        assert {answer.status_code for answer in answers} == {200}
        # Wait for the end of another connection, which lasts longer than the deadline for writing.
        assert await gateway.ask_raw(b"G") == b""
        # The deadline ends the connections that do not read.
        assert not (await asyncio.wait_for(_read_end(read[1]), 20)).endswith(b"}")
        for writer in slow:
            writer.transport.abort()


async def test_incomplete_bodies_are_bounded_together(broker: Broker) -> None:
    async with run_gateway(broker, max_buffered_bytes=50_000) as gateway:
        path = "/ingest/v1/tenant/t1/device/d1/telemetry"
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: 40000\r\n\r\n".encode() + b" " * 30_000
        _, first = await asyncio.open_connection("127.0.0.1", gateway.port)
        first.write(request)
        await first.drain()
        refused = await gateway.ask_raw(request)
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"connection: close" in refused.lower()
        first.transport.abort()


async def test_when_all_connections_are_at_work_one_more_is_told_to_come_back(
    broker: Broker,
) -> None:
    asked: list[Message] = []
    both, release = asyncio.Event(), asyncio.Event()

    async def wait(message: Message) -> Answer:
        asked.append(message)
        if len(asked) == 2:
            both.set()
        await release.wait()
        return Answer(b"1")

    async with (
        run_gateway(broker, max_connections=2, max_connections_per_address=2) as gateway,
        run_endpoint(broker, wait),
    ):
        under_way = [
            asyncio.create_task(gateway.client.post("/probe", json={"n": n})) for n in range(2)
        ]
        await asyncio.wait_for(both.wait(), 60)
        refused = await gateway.ask_raw(b"")
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 1" in refused
        release.set()
        assert [(await each).status_code for each in under_way] == [200, 200]


@pytest.mark.parametrize(
    "limits", [{"max_connections": 3, "max_connections_per_address": 9}, {"max_connections": 6}]
)
async def test_a_new_connection_takes_the_place_of_the_idlest(
    broker: Broker, limits: dict[str, int]
) -> None:
    async with run_gateway(broker, **limits) as gateway:
        idle = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(3)]
        request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        # The third, which sends half a head, is the idlest, and then the second.
        for reader, writer in (idle[1], idle[0]):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(_header(head, b"content-length")))
        idle[2][1].write(request[:10])
        assert (await gateway.client.get("/healthz")).status_code == 200
        assert await _read_end(idle[2][0]) == b""
        assert await gateway.ask_raw(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert await _read_end(idle[1][0]) == b""
        for _, writer in idle:
            writer.close()


async def test_headers_that_do_not_come_end_the_connection(broker: Broker) -> None:
    async with run_gateway(broker, read_timeout_s=0.2) as gateway:
        for begun in (b"", b"G", b"GET / HTTP/1.1\r\nX-Slow: "):
            assert await gateway.ask_raw(begun) == b""


async def test_a_body_that_does_not_come_is_a_408(broker: Broker) -> None:
    async with run_gateway(broker, read_timeout_s=0.2) as gateway:
        path = "/ingest/v1/tenant/t1/device/d1/telemetry"
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        answer = await gateway.ask_raw(f"{head}Content-Length: 10\r\n\r\n{{".encode())
        assert answer.startswith(b"HTTP/1.1 408")


async def test_an_idle_connection_outlives_the_time_for_headers(broker: Broker) -> None:
    async with run_gateway(broker, read_timeout_s=0.2) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for _ in range(3):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            await reader.readexactly(int(_header(head, b"content-length")))
            # Wait for the end of another connection, which lasts longer than the limit.
            assert await gateway.ask_raw(b"G") == b""
        writer.close()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b"400"),
        (_GET + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
        (_GET.replace(b"/", b"/" + b"x" * 9000, 1) + b"Connection: close\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (MAX_HEAD_BYTES + 1), b"431"),
    ],
)
async def test_what_is_no_sound_http_is_refused_with_problem_details(
    gateway: Gateway, request_bytes: bytes, status: bytes
) -> None:
    answer = await gateway.ask_raw(request_bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == status
    assert json.loads(body)["status"] == int(status)
    assert (await gateway.client.get("/healthz")).status_code == 200


async def test_a_malformed_body_harms_no_other_request(gateway: Gateway) -> None:
    path = "/ingest/v1/tenant/t1/device/d1/telemetry"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = await gateway.ask_raw(f"{head}Transfer-Encoding: chunked\r\n\r\nnonsense\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 400")
    assert (await gateway.client.get("/healthz")).status_code == 200
    assert "unexpectedly" not in gateway.lines.text


async def test_a_client_that_leaves_in_the_middle_harms_no_other_request(gateway: Gateway) -> None:
    path = "/ingest/v1/tenant/t1/device/d1/telemetry"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(f"{head}Content-Length: 100\r\n\r\n{{".encode())
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await gateway.client.get("/healthz")).status_code == 200
    assert "unexpectedly" not in gateway.lines.text


async def test_while_nats_is_away_senders_are_told_and_afterwards_all_goes_on(
    nats_server: NatsServer, broker: Broker
) -> None:
    config = {"name": "TELEMETRY", "subjects": ["telemetry.>"]}
    await broker.api("STREAM.CREATE.TELEMETRY", config)
    path = "/ingest/v1/tenant/t1/device/d1/telemetry"
    async with run_gateway(broker, discovery_every_s=0.05) as gateway, run_endpoint(broker, echo):
        await gateway.lines.wait("A route is served.", path="/probe")
        nats_server.kill()
        lost = await gateway.client.post(path, json={}, headers={"Idempotency-Key": "k"})
        assert (lost.status_code, lost.headers["retry-after"]) == (503, "1")
        assert (await gateway.client.get("/healthz")).status_code == 200
        rebuilt = asyncio.Event()
        broker.on_reconnect(rebuilt.set)
        nats_server.start()
        await asyncio.wait_for(rebuilt.wait(), 20)
        again = await gateway.client.post(path, json={}, headers={"Idempotency-Key": "k"})
        assert again.status_code == 202
        assert (await gateway.client.post("/probe", json={"a": 1})).json() == {"a": 1}
        info = await broker.api("STREAM.INFO.TELEMETRY")
        assert info["state"]["messages"] == 1
    await broker.api("STREAM.DELETE.TELEMETRY")


async def _until_closed(port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionError:
                return
            writer.close()
            await asyncio.sleep(0)


async def _read_end(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


def _header(head: bytes, name: bytes) -> bytes:
    for line in head.lower().split(b"\r\n"):
        key, _, value = line.partition(b":")
        if key == name:
            return value.strip()
    raise KeyError(name)


async def test_requests_are_taken_for_a_moment_after_the_host_was_asked_to_stop(
    broker: Broker,
) -> None:
    async with run_endpoint(broker, echo), run_gateway(broker, linger_s=2) as gateway:
        await gateway.lines.wait("Routes were found.")
        before = await gateway.client.post("/probe", content=b"{}", headers=JSON)
        gateway.stopping.set()
        after = await gateway.client.post("/probe", content=b"{}", headers=JSON)

    assert before.status_code == after.status_code == 200


@pytest.mark.parametrize(
    ("settings", "host", "status"),
    [
        ({}, "localhost", 200),
        ({}, "LOCALHOST:8080", 200),
        ({}, "gateway.localhost", 200),
        ({}, "127.0.0.1:1", 200),
        ({}, "[::1]:8080", 200),
        ({}, "evil.example", 421),
        ({}, "127.0.0.1.evil.example", 421),
        ({}, "localhost.evil.example:8080", 421),
        ({"allowed_hosts": "iot.example.com, other"}, "IOT.example.com:443", 200),
        ({"allowed_hosts": "iot.example.com, other"}, "localhost", 200),
        ({"allowed_hosts": "iot.example.com, other"}, "evil.example", 421),
    ],
)
async def test_a_web_page_under_a_name_of_its_own_is_told_nothing(
    broker: Broker, settings: dict[str, str], host: str, status: int
) -> None:
    async with run_gateway(broker, **settings) as gateway:
        answer = await gateway.client.get("/healthz", headers={"Host": host})
    assert answer.status_code == status
    if status == 421:
        assert answer.json()["code"] == "HOST_NOT_ALLOWED"
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET http://localhost/healthz HTTP/1.1\r\nHost: evil.example\r\n", b"200"),
        (b"GET HTTP://LOCALHOST/healthz?a=1 HTTP/1.1\r\nHost: localhost\r\n", b"200"),
        (b"GET http://evil.example/healthz HTTP/1.1\r\nHost: localhost\r\n", b"421"),
        (b"GET http://localhost HTTP/1.1\r\nHost: localhost\r\n", b"404"),
        (b"GET http:///healthz HTTP/1.1\r\nHost: localhost\r\n", b"400"),
        (b"GET http://:80/healthz HTTP/1.1\r\nHost: localhost\r\n", b"400"),
        (b"GET http://user@localhost/healthz HTTP/1.1\r\nHost: localhost\r\n", b"400"),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000 + b"\r\n", b"431"),
        (
            b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n"
            b"Transfer-Encoding: chunked\r\n",
            b"400",
        ),
    ],
)
async def test_requests_are_read_as_the_rfcs_say(
    gateway: Gateway, request_bytes: bytes, status: bytes
) -> None:
    answer = await gateway.ask_raw(request_bytes + b"Connection: close\r\n\r\n")
    assert answer.split()[1] == status


async def test_a_request_with_both_lengths_ends_its_connection(gateway: Gateway) -> None:
    head = b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
    answer = await gateway.ask_raw(head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")


async def test_a_client_that_closes_its_side_after_the_request_gets_its_answer(
    gateway: Gateway, broker: Broker
) -> None:
    async with run_endpoint(broker, echo):
        await gateway.lines.wait("A route is served.", path="/probe")
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        head = b"POST /probe HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(head + b'Content-Length: 7\r\n\r\n{"a":1}')
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b'{"a":1}')


async def test_empty_lines_between_two_requests_are_skipped(gateway: Gateway) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    answers = await gateway.ask_raw(
        b"\r\n" + request + b"\r\n\r\n\r\n" + request + b"Connection: close\r\n\r\n"
    )
    assert answers.count(b"HTTP/1.1 200 OK") == 2
