import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import nats
import pytest
import structlog
from nats.aio.client import Client
from nats.errors import NoRespondersError

from runtime.broker.connection import Broker
from runtime.broker.micro import Answer, EndpointStats, MicroEndpoint, MicroService
from runtime.errors import ConfigError, RequestFailed, Unavailable
from runtime.message import Message
from tests.support.servers import NatsServer

DEADLINE_S = 60.0


@pytest.fixture
async def client(nats_server: NatsServer) -> AsyncIterator[Client]:
    """A client of the client library, on a connection of its own."""
    connected = await nats.connect(nats_server.url)
    yield connected
    await connected.close()


class HeldHandler:
    """A handler that holds its requests until `open` is set, and counts its calls."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.entered: asyncio.Queue[bytes] = asyncio.Queue()

    async def __call__(self, message: Message) -> Answer:
        self.entered.put_nowait(message.data)
        await self.open.wait()
        return Answer(message.data)

    async def wait_entered(self, requests: int) -> None:
        for _ in range(requests):
            await asyncio.wait_for(self.entered.get(), DEADLINE_S)


async def echo(message: Message) -> Answer:
    return Answer(message.data)


def service(broker: Broker, *endpoints: MicroEndpoint, name: str = "host") -> MicroService:
    return MicroService(broker, name, "1.0.0", "The host.", {"workers": 2}, endpoints=endpoints)


async def everyone(client: Client, subject: str) -> list[dict[str, Any]]:
    """All answers up to that of a later request: a connection keeps the order of answers."""
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox)
    await client.publish(subject, b"", inbox, headers={"Trace": "1"})
    await client.request("marker", b"", timeout=DEADLINE_S)
    await client.flush()
    answers = []
    while subscription.pending_msgs:
        message = await subscription.next_msg()
        assert not message.headers or message.headers.get("Status") == "503"
        if not message.headers:
            answers.append(json.loads(message.data))
    await subscription.unsubscribe()
    return answers


@pytest.fixture
async def marker(broker: Broker) -> AsyncIterator[None]:
    """Answers after all earlier answers of the services on the same connection."""

    async def answer(message: Message) -> None:
        await broker.respond(message, b"")

    subscription = await broker.subscribe("marker", answer)
    yield
    await subscription.unsubscribe()


async def test_requests_are_handled_at_the_same_time(broker: Broker, client: Client) -> None:
    together = asyncio.Barrier(4)

    async def meet(message: Message) -> Answer:
        await together.wait()
        return Answer(message.data)

    host = service(broker, MicroEndpoint("meet", "meet.now", meet, concurrency=4))
    await host.start()
    answers = await asyncio.gather(
        *(client.request("meet.now", b"%d" % n, timeout=DEADLINE_S) for n in range(8))
    )
    assert [answer.data for answer in answers] == [b"%d" % n for n in range(8)]
    await host.stop(1)


async def test_what_finds_no_room_is_refused_at_once(broker: Broker, client: Client) -> None:
    gate = HeldHandler()
    endpoint = MicroEndpoint("slow", "slow.one", gate, concurrency=1, max_waiting=1)
    host = service(broker, endpoint)
    await host.start()
    asked = [asyncio.create_task(client.request("slow.one", b"1", timeout=DEADLINE_S))]
    await gate.wait_entered(1)
    asked.append(asyncio.create_task(client.request("slow.one", b"2", timeout=DEADLINE_S)))
    refused = await asyncio.create_task(client.request("slow.one", b"3", timeout=DEADLINE_S))
    assert refused.headers == {
        "Nats-Service-Error-Code": "429",
        "Nats-Service-Error": "TOO_MANY_REQUESTS",
    }
    assert json.loads(refused.data)["code"] == "TOO_MANY_REQUESTS"
    gate.open.set()
    assert [(await answer).data for answer in asked] == [b"1", b"2"]
    counters = endpoint.counters
    assert (counters.num_requests, counters.num_errors) == (3, 1)
    assert counters.last_error == "429:TOO_MANY_REQUESTS"
    await host.stop(1)


async def test_without_a_waiting_room_only_the_workers_take_requests(
    broker: Broker, client: Client
) -> None:
    gate = HeldHandler()
    host = service(broker, MicroEndpoint("slow", "slow.none", gate, concurrency=1, max_waiting=0))
    await host.start()
    first = asyncio.create_task(client.request("slow.none", b"1", timeout=DEADLINE_S))
    await gate.wait_entered(1)
    refused = await client.request("slow.none", b"2", timeout=DEADLINE_S)
    assert (refused.headers or {})["Nats-Service-Error-Code"] == "429"
    gate.open.set()
    await first
    assert (await client.request("slow.none", b"3", timeout=DEADLINE_S)).data == b"3"
    await host.stop(1)


async def test_a_stop_answers_all_that_were_in_flight_or_waiting(
    broker: Broker, client: Client
) -> None:
    gate = HeldHandler()
    host = service(broker, MicroEndpoint("slow", "slow.stop", gate, concurrency=2))
    await host.start()
    asked = [
        asyncio.create_task(client.request("slow.stop", b"%d" % n, timeout=DEADLINE_S))
        for n in range(20)
    ]
    await gate.wait_entered(2)
    await client.flush()
    stopping = asyncio.create_task(host.stop(DEADLINE_S))
    gate.open.set()
    assert [(await answer).data for answer in asked] == [b"%d" % n for n in range(20)]
    await stopping
    with pytest.raises(NoRespondersError):
        await client.request("slow.stop", b"", timeout=DEADLINE_S)


async def test_at_the_end_of_the_grace_period_every_caller_is_told(
    broker: Broker, client: Client
) -> None:
    gate = HeldHandler()
    host = service(broker, MicroEndpoint("slow", "slow.grace", gate, concurrency=1))
    await host.start()
    asked = [
        asyncio.create_task(client.request("slow.grace", b"", timeout=DEADLINE_S)) for _ in range(3)
    ]
    await gate.wait_entered(1)
    await client.flush()
    with structlog.testing.capture_logs() as lines:
        await host.stop(grace_s=0)
    codes = [(await answer).headers["Nats-Service-Error-Code"] for answer in asked]  # type: ignore[index]
    assert codes == ["503"] * 3
    assert [line["event"] for line in lines] == [
        "Requests were cancelled at the end of the grace period"
    ]


async def test_an_exceptions_text_never_reaches_the_caller(broker: Broker, client: Client) -> None:
    async def fail(_message: Message) -> Answer:
        raise ValueError("hunter2")

    endpoint = MicroEndpoint("fail", "fail.it", fail)
    host = service(broker, endpoint)
    await host.start()
    with structlog.testing.capture_logs() as lines:
        answer = await client.request("fail.it", b"", timeout=DEADLINE_S)
    body = json.loads(answer.data)
    assert (answer.headers or {})["Nats-Service-Error-Code"] == "500"
    assert b"hunter2" not in answer.data
    assert body["code"] == "INTERNAL_ERROR"
    assert [line["event_id"] for line in lines] == [body["event_id"]]
    assert endpoint.counters.num_errors == 1
    assert endpoint.counters.last_error == "500:INTERNAL_ERROR"
    await host.stop(1)


async def test_an_error_that_a_handler_answers_is_counted(broker: Broker) -> None:
    async def refuse(_message: Message) -> Answer:
        return Answer.failure(404, "UNKNOWN_DEVICE", "there is no such device")

    endpoint = MicroEndpoint("get", "get.it", refuse)
    host = service(broker, endpoint)
    await host.start()
    with pytest.raises(RequestFailed) as failure:
        await broker.request("get.it", b"")
    assert (failure.value.code, failure.value.description) == (404, "UNKNOWN_DEVICE")
    assert (endpoint.counters.num_requests, endpoint.counters.num_errors) == (1, 1)
    assert endpoint.counters.last_error == "404:UNKNOWN_DEVICE"
    await host.stop(1)


async def test_a_handler_that_is_cancelled_from_within_answers_and_its_worker_lives_on(
    broker: Broker,
) -> None:
    async def cancelled(message: Message) -> Answer:
        if message.data == b"cancel":
            task = asyncio.ensure_future(asyncio.Event().wait())
            task.cancel()
            await task
        return Answer(message.data)

    host = service(broker, MicroEndpoint("odd", "odd.it", cancelled, concurrency=1))
    await host.start()
    with structlog.testing.capture_logs(), pytest.raises(RequestFailed):
        await broker.request("odd.it", b"cancel")
    assert (await broker.request("odd.it", b"fine")).data == b"fine"
    await host.stop(1)


async def test_an_answer_larger_than_the_server_takes_becomes_an_error(broker: Broker) -> None:
    async def huge(_message: Message) -> Answer:
        return Answer(b"x" * (broker.max_payload_bytes + 1))

    async def huge_headers(_message: Message) -> Answer:
        return Answer(b"", {"Long": "x" * broker.max_payload_bytes})

    host = service(
        broker,
        MicroEndpoint("huge", "huge.it", huge),
        MicroEndpoint("headers", "huge.headers", huge_headers),
    )
    await host.start()
    with structlog.testing.capture_logs():
        for subject in ("huge.it", "huge.headers"):
            with pytest.raises(RequestFailed, match="ANSWER_TOO_LARGE"):
                await broker.request(subject, b"")
    await host.stop(1)


async def test_a_header_that_cannot_be_sent_becomes_an_error(broker: Broker) -> None:
    async def odd(_message: Message) -> Answer:
        return Answer(b"", {"Ü ber": "x"})

    host = service(broker, MicroEndpoint("odd", "odd.header", odd))
    await host.start()
    with structlog.testing.capture_logs(), pytest.raises(RequestFailed, match="ANSWER_NOT_SENT"):
        await broker.request("odd.header", b"")
    await host.stop(1)


async def test_a_request_that_wants_no_answer_is_handled(broker: Broker, client: Client) -> None:
    gate = HeldHandler()
    gate.open.set()
    host = service(broker, MicroEndpoint("note", "note.it", gate))
    await host.start()
    await client.publish("note.it", b"1")
    await gate.wait_entered(1)
    await host.stop(1)


@pytest.mark.usefixtures("marker")
async def test_every_verb_is_answered_on_all_three_levels(broker: Broker, client: Client) -> None:
    first, second = service(broker, MicroEndpoint("echo", "echo.it", echo)), service(broker)
    other = service(broker, name="other")
    for one in (first, second, other):
        await one.start()
    for verb in ("PING", "INFO", "STATS"):
        for subject, expected in (
            (f"$SRV.{verb}", {first.id, second.id, other.id}),
            (f"$SRV.{verb}.host", {first.id, second.id}),
            (f"$SRV.{verb}.host.{first.id}", {first.id}),
        ):
            answers = await everyone(client, subject)
            assert {answer["id"] for answer in answers} == expected
            assert len(answers) == len(expected)
            assert {answer["type"] for answer in answers} == {
                f"io.nats.micro.v1.{verb.lower()}_response"
            }
    for one in (first, second, other):
        await one.stop(1)
    assert await everyone(client, "$SRV.PING") == []


async def test_a_started_service_can_be_called_at_once(broker: Broker, client: Client) -> None:
    for number in range(20):
        host = service(broker, MicroEndpoint("echo", f"echo.{number}", echo))
        await host.start()
        assert (await client.request(f"echo.{number}", b"x", timeout=DEADLINE_S)).data == b"x"
        await host.stop(1)


@pytest.mark.usefixtures("marker")
async def test_a_virtual_endpoint_is_shown_but_does_not_listen(
    broker: Broker, client: Client
) -> None:
    counters = EndpointStats()
    lag = {"pending": 5}
    virtual = MicroEndpoint(
        "ingest",
        "raw.it",
        queue_group=None,
        counters=counters,
        stats=lambda: lag,
        metadata=lambda: lag,
    )
    host = service(broker, virtual)
    await host.start()
    with pytest.raises(NoRespondersError):
        await client.request("raw.it", b"", timeout=DEADLINE_S)
    counters.record(3_000, requests=3)
    counters.record_error("BAD_JSON")
    lag["pending"] = 6
    [answer] = await everyone(client, "$SRV.STATS.host")
    [shown] = answer["endpoints"]
    assert (shown["num_requests"], shown["num_errors"], shown["last_error"]) == (3, 1, "BAD_JSON")
    assert (shown["processing_time"], shown["average_processing_time"]) == (3000, 1000)
    assert shown["data"] == {"pending": 6}
    [answer] = await everyone(client, "$SRV.INFO.host")
    assert answer["endpoints"][0]["metadata"] == {"pending": "6"}
    await host.stop(1)


@pytest.mark.usefixtures("marker")
async def test_a_queue_group_shares_requests_and_none_gives_them_to_all(
    broker: Broker, client: Client
) -> None:
    shared = [MicroEndpoint("one", "one.it", echo) for _ in range(2)]
    all_of_them = [MicroEndpoint("all", "all.it", echo, queue_group=None) for _ in range(2)]
    hosts = [service(broker, *pair) for pair in zip(shared, all_of_them, strict=True)]
    for host in hosts:
        await host.start()
    for subject in ("one.it", "all.it"):
        await client.publish(subject, b"")
    await client.flush()
    for host in hosts:
        await host.stop(DEADLINE_S)
    assert sum(endpoint.counters.num_requests for endpoint in shared) == 1
    assert [endpoint.counters.num_requests for endpoint in all_of_them] == [1, 1]


async def test_endpoints_come_and_go_while_the_others_serve(broker: Broker, client: Client) -> None:
    host = service(broker, MicroEndpoint("echo", "echo.stay", echo))
    await host.start()
    await host.add_endpoint(MicroEndpoint("late", "echo.late", echo))
    assert (await client.request("echo.late", b"x", timeout=DEADLINE_S)).data == b"x"
    with pytest.raises(ConfigError, match="two endpoints named 'late'"):
        await host.add_endpoint(MicroEndpoint("late", "echo.other", echo))
    await host.remove_endpoint("late", 1)
    await client.flush()
    with pytest.raises(NoRespondersError):
        await client.request("echo.late", b"x", timeout=DEADLINE_S)
    assert (await client.request("echo.stay", b"x", timeout=DEADLINE_S)).data == b"x"
    await host.stop(1)


async def test_a_handler_that_never_waits_does_not_hold_the_loop(
    broker: Broker, client: Client
) -> None:
    turns = 0
    seen: list[int] = []

    def turn() -> None:
        nonlocal turns
        turns += 1
        if len(seen) < 50:
            asyncio.get_running_loop().call_soon(turn)

    async def at_once(message: Message) -> Answer:
        seen.append(turns)
        return Answer(message.data)

    host = service(broker, MicroEndpoint("fast", "fast.it", at_once, concurrency=1))
    await host.start()
    turn()
    await asyncio.gather(*(client.request("fast.it", b"", timeout=DEADLINE_S) for _ in range(50)))
    assert len(set(seen)) == 50
    await host.stop(1)


@pytest.mark.nats_cli
async def test_the_official_command_line_shows_the_service(
    broker: Broker, nats_server: NatsServer, nats_cli: Callable[..., str]
) -> None:
    counters = EndpointStats()
    counters.record(5_000_000, requests=10)
    counters.record_error("BAD_JSON")
    host = service(
        broker,
        MicroEndpoint("get_shadow", "shadow.get", echo, metadata={"http.status": 200}),
        MicroEndpoint(
            "ingest", "telemetry.>", counters=counters, stats=lambda: {"pending": 5, "lag": None}
        ),
        name="backbone",
    )
    await host.start()
    await broker.request("shadow.get", b"{}")

    async def run(*arguments: str) -> str:
        return await asyncio.to_thread(nats_cli, nats_server.url, *arguments)

    assert host.id in await run("micro", "ls")
    shown = await run("micro", "info", "backbone")
    for text in ("telemetry.>", "http.status: 200", "BAD_JSON", '"pending": 5'):
        assert text in shown
    stats = json.loads(await run("micro", "stats", "backbone", "--json"))
    assert [endpoint["num_requests"] for endpoint in stats[0]["endpoints"]] == [1, 10]
    await host.stop(1)


async def test_a_blocked_loop_costs_a_request_to_many_no_answer(broker: Broker) -> None:
    async def block(message: Message) -> None:
        time.sleep(0.4)  # noqa: ASYNC251 - what blocks the loop is what is tested
        await broker.respond(message, b"here")

    subscription = await broker.subscribe("everyone", block)
    replies = await broker.request_many("everyone", b"", wait_s=0.2)
    await subscription.unsubscribe()

    assert [reply.data for reply in replies] == [b"here"]


async def test_who_claims_that_nobody_listens_hides_no_answer(broker: Broker) -> None:
    async def claim(message: Message) -> None:
        await broker.respond(message, b"", {"Status": "503"})

    async def answer(message: Message) -> None:
        await broker.respond(message, b"here")

    claims = await broker.subscribe("everyone", claim)
    alone = await broker.request_many("everyone", b"", wait_s=0.5)
    answers = await broker.subscribe("everyone", answer)
    replies = await broker.request_many("everyone", b"", wait_s=0.5)
    await claims.unsubscribe()
    await answers.unsubscribe()

    assert alone == []
    assert [reply.data for reply in replies] == [b"here"]


async def test_a_flood_of_answers_is_refused_as_a_whole(broker: Broker) -> None:
    large = b"x" * 1_000_000

    async def flood(message: Message) -> None:
        for _ in range(70):
            await broker.respond(message, large)

    subscription = await broker.subscribe("everyone", flood)
    # Long enough for all of them; it ends before.
    with pytest.raises(Unavailable, match="more than 64000000 bytes"):
        await broker.request_many("everyone", b"", wait_s=20)
    await subscription.unsubscribe()
