"""The host refuses a message that the server would not accept before it is sent."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import structlog

from runtime import Context, Event, RequestFailed, Retry
from runtime.broker.connection import Broker
from runtime.context import Publication
from runtime.errors import PublishFailed, TooLarge, Unsendable
from runtime.message import Message
from tests.support.host import QUICK, Journal, fresh, running_host, wait_for_letters
from tests.support.servers import NatsServer

Send = Callable[[Broker, str, bytes], Awaitable[object]]

LONG = ".".join(["x" * 60] * 80)
"""A subject of more than 4 KB."""
WAYS: dict[str, Send] = {
    "publish": lambda broker, subject, data: broker.publish(subject, data, msg_id="1"),
    "publish_many": lambda broker, subject, data: broker.publish_many(
        [Publication("fine", b"", "1"), Publication(subject, data, "2")]
    ),
    "publish_together": lambda broker, subject, data: broker.publish_together(
        [Publication("fine", b"", "1"), Publication(subject, data, "2")]
    ),
    "publish_core": lambda broker, subject, data: broker.publish_core(
        subject, data, headers={"A": "b"}
    ),
    "request": lambda broker, subject, data: broker.request(subject, data, headers={"A": "b"}),
    "request_many": lambda broker, subject, data: broker.request_many(subject, data, wait_s=1),
    "send": lambda broker, subject, data: broker.send(subject, data, "reply"),
    "respond": lambda broker, subject, data: broker.respond(Message("a", b"", {}, subject), data),
}


async def _still_connected(broker: Broker, before: int) -> bool:
    await broker.ping()
    return broker.reconnects == before


@pytest.mark.parametrize("way", WAYS)
async def test_a_message_that_no_server_would_take_is_refused_before_it_is_sent(
    broker: Broker, way: str
) -> None:
    send, before = WAYS[way], broker.reconnects
    limit = broker.max_payload_bytes

    with pytest.raises(TooLarge):
        await send(broker, "a.subject", b"x" * (limit + 1))
    for subject in (LONG, "a b", "a\r\nPUB b 0", "a..b", "a.>"):
        with pytest.raises(Unsendable):
            await send(broker, subject, b"")

    assert await _still_connected(broker, before)


async def test_a_payload_of_exactly_the_servers_limit_is_sent(broker: Broker) -> None:
    arrived: asyncio.Queue[Message] = asyncio.Queue()
    subscription = await broker.subscribe("exactly", arrived.put_nowait)

    await broker.publish_core("exactly", b"x" * broker.max_payload_bytes)
    headed = broker.max_payload_bytes - len("NATS/1.0\r\nA: b\r\n\r\n")
    await broker.publish_core("exactly", b"x" * headed, headers={"A": "b"})

    sizes = [len((await asyncio.wait_for(arrived.get(), 60)).data) for _ in range(2)]
    assert sizes == [broker.max_payload_bytes, headed]
    await subscription.unsubscribe()


async def test_a_publish_whose_headers_make_it_too_large_is_refused(broker: Broker) -> None:
    before = broker.reconnects

    with pytest.raises(TooLarge):
        await broker.publish("a.b", b"x" * (broker.max_payload_bytes - 10), msg_id="one")

    assert await _still_connected(broker, before)
    assert not broker._confirmations._expected


async def test_names_that_would_end_a_command_reach_no_server(broker: Broker) -> None:
    evil = "S\r\nPUB evil 0\r\n\r\n"
    heard: list[Message] = []
    subscription = await broker.subscribe("evil", heard.append)

    for call in (
        broker.api(f"STREAM.INFO.{evil}"),
        broker.subscribe(evil, heard.append),
        broker.subscribe("fine", heard.append, queue=evil),
        broker.publish("fine.subject", b"", headers={evil: "x"}),
    ):
        with pytest.raises(Unsendable):
            await call
    await broker.send_all([(evil, b"+ACK"), ("evil.not", b"+ACK")])
    with pytest.raises(PublishFailed):
        await broker.publish("fine.subject", b"", msg_id=evil)

    await broker.flush()
    assert heard == []
    await subscription.unsubscribe()


async def test_a_function_that_publishes_too_much_fails_alone_and_the_others_go_on(
    nats_server: NatsServer,
) -> None:
    stream, other = fresh("LARGE"), fresh("OTHER")
    journal = Journal()
    broker = await Broker.connect(nats_server.url, name="test")
    limit = broker.max_payload_bytes

    async def large(ctx: Context, event: Event[bytes]) -> None:
        await ctx.publish(f"{stream.lower()}.out", b"x" * (limit - 10))

    async def long(ctx: Context, event: Event[bytes]) -> None:
        await ctx.publish(f"tallied.{LONG}", b"")

    async def fine(ctx: Context, event: Event[bytes]) -> None:
        journal.add(event.data)

    def consumer(of: str, part: str) -> dict[str, Any]:
        return {"stream": of, "filter_subjects": [f"{of.lower()}.{part}"]}

    functions = {
        "large": {"handler": "on_event", "consumer": consumer(stream, "large"), "retry": QUICK},
        "long": {"handler": "on_event", "consumer": consumer(stream, "long"), "retry": QUICK},
        "fine": {"handler": "on_event", "consumer": consumer(other, "in")},
    }
    streams = {name: {"subjects": [f"{name.lower()}.>"]} for name in (stream, other)}
    with structlog.testing.capture_logs():
        async with running_host(
            nats_server.url,
            functions,
            {"large": large, "long": long, "fine": fine},
            streams=streams,
        ) as host:
            assert host._broker is not None
            await broker.publish(f"{stream.lower()}.large", b"{}")
            await broker.publish(f"{stream.lower()}.long", b"{}")
            letters = [
                *await wait_for_letters(broker, "large"),
                *await wait_for_letters(broker, "long"),
            ]
            await broker.publish(f"{other.lower()}.in", b"still here")
            await journal.wait(1)
            assert host._broker.reconnects == 0
    await broker.close()

    assert [letter.error_type for letter in letters] == ["TooLarge", "Unsendable"]
    assert {letter.code for letter in letters} == {"ATTEMPTS_EXHAUSTED"}
    assert {letter.attempts for letter in letters} == {3}
    assert f"{limit:,}" in letters[0].reason


async def test_a_message_that_finds_no_room_for_its_parked_copy_waits_in_its_stream(
    nats_server: NatsServer,
) -> None:
    stream = fresh("FULL")
    journal = Journal()

    async def later(ctx: Context, event: Event[bytes]) -> None:
        journal.add((ctx.attempt, len(event.data)))
        raise Retry("not yet", delay_s=3600)

    spec = {"handler": "on_event", "consumer": {"stream": stream}}
    broker = await Broker.connect(nats_server.url, name="test")
    with structlog.testing.capture_logs() as lines:
        async with running_host(
            nats_server.url,
            {"later": spec},
            {"later": later},
            streams={stream: {"subjects": [f"{stream.lower()}.>"]}},
        ) as host:
            size = broker.max_payload_bytes - 100
            await broker.publish(f"{stream.lower()}.a", b"x" * size)
            await journal.wait(1)
            await broker.ping()
            assert host._broker is not None
            assert host._broker.reconnects == 0
        kept = (await broker.api(f"STREAM.INFO.{stream}"))["state"]["messages"]
    await broker.close()

    assert kept == 1
    assert journal.entries == [(1, size)]
    [told] = [line for line in lines if line["event"].startswith("Parking failed")]
    assert "bytes with its headers" in told["reason"]


async def test_a_reply_that_is_too_large_is_an_error_for_its_caller(
    nats_server: NatsServer,
) -> None:
    async def answer(ctx: Context, event: Event[bytes]) -> bytes:
        return b"x" * int(event.data)

    name = fresh("huge").replace("_", "-")
    spec = {"handler": "on_raw_request", "endpoint": {"subject": f"{name}.ask"}}
    broker = await Broker.connect(nats_server.url, name="test")
    with structlog.testing.capture_logs():
        async with running_host(nats_server.url, {name: spec}, {name: answer}):
            with pytest.raises(RequestFailed, match="ANSWER_TOO_LARGE"):
                await broker.request(f"{name}.ask", str(2 * broker.max_payload_bytes).encode())
            assert (await broker.request(f"{name}.ask", b"5")).data == b"xxxxx"
    await broker.close()


async def test_a_request_whose_answer_has_nowhere_to_go_harms_nobody(
    nats_server: NatsServer,
) -> None:
    async def answer(ctx: Context, event: Event[bytes]) -> bytes:
        return event.data

    name = fresh("nowhere").replace("_", "-")
    spec = {"handler": "on_raw_request", "endpoint": {"subject": f"{name}.ask"}}
    broker = await Broker.connect(nats_server.url, name="test")
    with structlog.testing.capture_logs():
        async with running_host(nats_server.url, {name: spec}, {name: answer}) as host:
            room = 4096 - len(f"PUB {name}.ask  1\r\n")
            await broker.send(f"{name}.ask", b"1", "r" * room)
            assert (await broker.request(f"{name}.ask", b"5")).data == b"5"
            assert host._broker is not None
            assert host._broker.reconnects == 0
    await broker.close()


async def test_a_message_that_finds_no_room_for_its_copy_is_given_back_by_a_host_that_drains(
    nats_server: NatsServer,
) -> None:
    stream, name = fresh("DRAIN"), fresh("drain")
    journal = Journal()

    async def hang(ctx: Context, event: Event[bytes]) -> None:
        journal.add((ctx.attempt, len(event.data)))
        if ctx.attempt == 1:
            await asyncio.Event().wait()

    broker = await Broker.connect(nats_server.url, name="test")
    options: dict[str, Any] = {"streams": {stream: {"subjects": [f"{stream.lower()}.>"]}}}
    spec = {name: {"handler": "on_event", "consumer": {"stream": stream}}}
    size = broker.max_payload_bytes - 100
    with structlog.testing.capture_logs():
        async with running_host(nats_server.url, spec, {name: hang}, grace_s=0.1, **options):
            await broker.publish(f"{stream.lower()}.a", b"x" * size)
            await journal.wait(1)
        async with running_host(nats_server.url, spec, {name: hang}, **options):
            await journal.wait(2)
    await broker.close()

    assert journal.entries == [(1, size), (2, size)]
