"""A polled route: its jobs are read over HTTP's endpoints, each reader at its own position."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import structlog

from functions.route_delivery import poll_readers as reading
from functions.route_delivery.job import Job
from functions.route_delivery.poll import PollSettings, deliver, start, stop
from runtime import Context, Event, Message, NoAnswer, Reject, Retry
from runtime.broker.connection import Broker
from runtime.context import Scope
from runtime.resource.postgres import open_pool
from tests.support.host import eventually, running_host
from tests.support.servers import NatsServer

TOKEN = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD = "whsec_" + "b2xk" * 8
STREAM = {
    "name": "POLLED",
    "subjects": ["polled.*.*"],
    "storage": "file",
    "discard": "new",
    "max_msgs_per_subject": 50,
}


@dataclass
class Polling:
    """The functions of polled routes, with one route."""

    pool: "asyncpg.Pool[asyncpg.Record]"
    broker: Broker
    delivery: Scope
    route_id: str
    token: str = TOKEN
    state: Any = field(default_factory=Counter)

    async def deliver(self, *numbers: int, size: int = 0) -> None:
        for number in numbers:
            job = Job(
                job_id=f"T-{number}-1-r",
                route_id=self.route_id,
                tenant_id="test",
                device_id="d1",
                topic="tenant/test/device/d1/telemetry",
                msg_type="telemetry",
                payload={"n": number, "text": "x" * size},
                stored_at=datetime(2026, 8, 1, tzinfo=UTC),
            )
            message = Message("routes.test.poll", b"", stream="ROUTES", sequence=number)
            await deliver(Event(message, job), Context(self.delivery, message))

    async def ask(self, function: Any, model: Any, **fields: Any) -> Any:
        scope = Scope("poll", None, self.broker, {"postgres": self.pool}, structlog.get_logger())
        scope.state = self.state
        message = Message("polling", b"", {"Authorization": f"Bearer {self.token}"})
        wanted = {"tenant_id": "test", "route_id": self.route_id, **fields}
        return await function(Event(message, model.model_validate(wanted)), Context(scope))

    async def poll(self, consumer: str = "a", **fields: Any) -> tuple[list[int], str | None]:
        found = await self.ask(reading.poll, reading.Poll, consumer=consumer, **fields)
        return [item.body["data"]["payload"]["n"] for item in found.items], found.cursor

    async def durables(self) -> list[str]:
        told = await self.broker.api("CONSUMER.NAMES.POLLED")
        return sorted(told["consumers"] or [])


@pytest.fixture
async def polling(postgres_dsn: str, broker: Broker) -> AsyncIterator[Polling]:
    pool = await open_pool(postgres_dsn, max_size=4)
    await broker.api("STREAM.CREATE.POLLED", STREAM)
    await pool.execute("INSERT INTO tenants (tenant_id) VALUES ('test'), ('other')")
    secrets = {
        "secret": TOKEN,
        "previous_secrets": [{"secret": OLD, "until": "2999-01-01T00:00:00Z"}],
    }
    route_id = await pool.fetchval(
        "INSERT INTO message_routes"
        " (tenant_id, name, topic_filter, destination_type, destination_config)"
        " VALUES ('test', 'polled', '#', 'poll', $1::text::jsonb) RETURNING id::text",
        json.dumps(secrets),
    )
    settings = PollSettings(bytes_per_tenant=100_000)
    scope = Scope("deliver_poll", settings, broker, {"postgres": pool}, structlog.get_logger())
    scope.state = await start(Context(scope))
    yield Polling(pool, broker, scope, route_id)
    await stop(Context(scope))
    await broker.api("STREAM.DELETE.POLLED")
    await pool.close()


async def test_each_reader_has_its_own_position_which_a_cursor_moves(polling: Polling) -> None:
    await polling.deliver(1, 2, 3)
    first, cursor = await polling.poll(limit=2)
    other, _ = await polling.poll("b")
    rest, last = await polling.poll(ack=cursor)
    assert (first, other, rest) == ([1, 2], [1, 2, 3], [3])
    assert await polling.poll(ack=last) == ([], None)
    # What was confirmed stays so, in another process too; an unconfirmed answer comes again.
    [one, two] = await polling.durables()
    floors = [
        (await polling.broker.api(f"CONSUMER.INFO.POLLED.{name}"))["ack_floor"]["stream_seq"]
        for name in (one, two)
    ]
    assert floors == [3, 0]


async def test_a_host_answers_a_reader(
    polling: Polling, nats_server: NatsServer, postgres_dsn: str
) -> None:
    await polling.deliver(1, 2)
    spec = {
        "handler": "functions.route_delivery.poll_readers:poll",
        "endpoint": {"subject": "polling.poll", "service": "polling"},
        "uses": ["postgres"],
        "settings": {"secrets_keys": "k" * 32},
    }
    wanted = {"tenant_id": "test", "route_id": polling.route_id, "consumer": "a"}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with running_host(nats_server.url, {"poll_jobs": spec}, database_url=postgres_dsn):
        for numbers in ([1, 2], []):
            answer = await polling.broker.request(
                "polling.poll", json.dumps(wanted).encode(), headers=headers
            )
            told = json.loads(answer.data)
            wanted["ack"] = told["cursor"]
            assert [item["body"]["data"]["payload"]["n"] for item in told["items"]] == numbers


async def test_a_poll_waits_for_the_next_job(polling: Polling) -> None:
    assert await polling.poll(wait_s=0.05) == ([], None)
    await polling.deliver(7)
    assert (await polling.poll(wait_s=8))[0] == [7]


async def test_a_tenant_with_many_polls_that_wait_gets_the_next_ones_answered_at_once(
    polling: Polling,
) -> None:
    polling.state = await reading.start(Context(polling.delivery))
    for number in range(8):
        await polling.poll(f"r{number}")
    waiting = [
        asyncio.create_task(polling.poll(f"r{number % 8}", wait_s=8))
        for number in range(reading.MAX_WAITING)
    ]

    async def are_under_way() -> bool:
        return bool(polling.state["test"] == reading.MAX_WAITING)

    await eventually(are_under_way, "polls that wait")
    began_s = time.monotonic()
    assert await polling.poll("a", wait_s=8) == ([], None)
    assert time.monotonic() - began_s < 7
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert polling.state == {}


async def test_a_reader_seeks_to_a_sequence_a_time_or_the_beginning(polling: Polling) -> None:
    await polling.deliver(1, 2, 3)
    _, cursor = await polling.poll()
    seek = polling.ask
    await seek(reading.seek, reading.Seek, consumer="a", sequence=2)
    with pytest.raises(Reject, match="CURSOR_GONE"):
        await polling.poll(ack=cursor)
    assert (await polling.poll())[0] == [2, 3]
    await seek(reading.seek, reading.Seek, consumer="a", time=datetime(2999, 1, 1, tzinfo=UTC))
    assert (await polling.poll())[0] == []
    await polling.deliver(4)
    assert (await polling.poll())[0] == [4]
    found = await polling.ask(reading.poll, reading.Poll, consumer="b")
    at = found.items[2].stored_at
    await seek(reading.seek, reading.Seek, consumer="a", time=at)
    assert (await polling.poll())[0] == [3, 4]
    await seek(reading.seek, reading.Seek, consumer="a", time=datetime.now(UTC))
    assert (await polling.poll())[0] == []
    await seek(reading.seek, reading.Seek, consumer="a")
    assert (await polling.poll())[0] == [1, 2, 3, 4]
    assert len(await polling.durables()) == 2


@pytest.mark.parametrize("cursor", ["x", "", "MS8xLjEuMS4x", "Li4v", "MS8+Lj4uPi4+Lj4"])
async def test_a_cursor_that_no_answer_had_is_refused(polling: Polling, cursor: str) -> None:
    await polling.deliver(1)
    with pytest.raises(Reject, match="CURSOR_INVALID"):
        await polling.poll(ack=cursor)


async def test_readers_are_bounded_listed_and_forgotten(polling: Polling) -> None:
    await polling.deliver(1)
    for number in range(reading.MAX_READERS):
        await polling.poll(f"r{number}")
    with pytest.raises(Reject, match="TOO_MANY_READERS"):
        await polling.poll("one-more")
    listed = await polling.ask(reading.list_readers, reading.ReaderRequest)
    assert len(listed.items) == reading.MAX_READERS
    await polling.ask(reading.forget_reader, reading.Forget, consumer="r0")
    assert (await polling.poll("one-more"))[0] == [1]
    with pytest.raises(Reject, match="READER_NOT_FOUND"):
        await polling.ask(reading.forget_reader, reading.Forget, consumer="r0")


async def test_only_the_token_of_the_route_opens_it(polling: Polling) -> None:
    await polling.deliver(1)
    for token, fields in (
        ("wrong", {}),
        ("", {}),
        (TOKEN, {"tenant_id": "other"}),
        (TOKEN, {"route_id": UUID(int=7)}),
    ):
        polling.token = token
        with pytest.raises(Reject, match="WRONG_TOKEN") as refused:
            await polling.poll(**fields)
        assert refused.value.status == 403
    assert await polling.durables() == []
    polling.token = OLD
    assert (await polling.poll())[0] == [1]


async def test_a_position_that_the_server_removed_is_made_again(polling: Polling) -> None:
    await polling.deliver(1)
    await polling.poll()
    [durable] = await polling.durables()
    await polling.broker.api(f"CONSUMER.DELETE.POLLED.{durable}")
    assert (await polling.poll())[0] == [1]


async def test_a_position_that_does_not_answer_for_a_while_is_kept(
    polling: Polling, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def have_no_leader(*_: Any) -> list[Message]:
        raise NoAnswer("$JS.API.CONSUMER.MSG.NEXT", "no responders")

    await polling.deliver(1)
    _, cursor = await polling.poll()
    durables = await polling.durables()
    with monkeypatch.context() as patched:
        # As a consumer of a cluster that has no leader does.
        patched.setattr(reading, "_pull", have_no_leader)
        with pytest.raises(NoAnswer):
            await polling.poll()
    assert await polling.durables() == durables
    assert await polling.poll(ack=cursor) == ([], None)


async def test_positions_of_a_deleted_route_are_removed(polling: Polling) -> None:
    await polling.deliver(1)
    await polling.poll()
    await polling.pool.execute("DELETE FROM message_routes")
    scope = Scope("tidy", None, polling.broker, {"postgres": polling.pool}, structlog.get_logger())
    await reading.tidy_polled(Context(scope))
    assert await polling.durables() == []


async def test_a_tenants_bytes_are_bounded_and_the_job_waits(polling: Polling) -> None:
    await polling.deliver(1, size=60_000)
    with pytest.raises(Retry, match="POLL_FULL"):
        await polling.deliver(2, size=60_000)
    with pytest.raises(Reject, match="PAYLOAD_TOO_LARGE"):
        await polling.deliver(3, size=70_000)
    assert (await polling.poll())[0] == [1]
    rows = await polling.pool.fetch("SELECT error_code FROM delivery_attempts ORDER BY job_id")
    assert [row["error_code"] for row in rows] == [None, "POLL_FULL", "PAYLOAD_TOO_LARGE"]


async def test_a_route_keeps_its_newest_jobs(polling: Polling) -> None:
    await polling.deliver(*range(60))
    assert (await polling.poll(limit=100))[0] == list(range(10, 60))
