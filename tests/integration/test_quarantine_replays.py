"""Replays from quarantine: through the same functions, once, over deaths of hosts."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from functions.commands.acks import apply_ack
from functions.domain.message_counts import UNKNOWN, counts_of_tenant
from functions.domain.quarantine_replays import HEADER
from functions.ingest.replays import run_quarantine_replays
from functions.management import quarantine_replays as endpoints
from functions.management.quarantine import list_quarantine
from functions.shadow.device_requests import answer_device
from runtime import Context, Message, PublishFailed
from runtime.broker import stored
from runtime.broker.connection import Broker
from tests.support.calls import Caller
from tests.support.gateway import make_streams
from tests.support.ingest import GOOD, Ingest, register, started

WRONG = {**GOOD, "site_id": "elsewhere"}


@dataclass
class Scene:
    """Ingest, streams that its messages come from, and the functions that replay them."""

    broker: Broker
    dsn: str
    ingest: Ingest
    api: Caller
    _taken: dict[str, int] = field(default_factory=dict)

    async def send(self, *bodies: Any, subject: str = "telemetry.test.dev1") -> list[Message]:
        """Publish messages and have ingest take them."""
        for body in bodies:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            await self.broker.publish(subject, data, msg_id=None)
        return await self.deliver()

    async def new(self, stream: str = "TELEMETRY") -> list[Message]:
        """What a stream got since the last time, as first deliveries."""
        first = self._taken.get(stream, 0) + 1
        found = [each async for each in stored.scan(self.broker, stream, ">", first=first)]
        for message in found:
            message.stream = stream
        self._taken[stream] = first - 1 + len(found)
        return found

    async def deliver(self) -> list[Message]:
        messages = await self.new()
        if messages:
            await self.ingest.run(*messages)
        return messages

    async def replay(self, **fields: Any) -> endpoints.QuarantineReplay:
        """Ask for a replay, and send its copies."""
        asked = await self.api.ask(endpoints.create_quarantine_replay, **fields)
        return await self.send_all(asked.replay_id)

    async def step(self) -> None:
        """One run of the scheduled function, as if the time of the next one had come."""
        await self.ingest.pool.execute("UPDATE quarantine_replays SET run_at = now()")
        await run_quarantine_replays(Context(self.ingest.scope))

    async def send_all(self, replay_id: UUID) -> endpoints.QuarantineReplay:
        for _ in range(50):
            await self.step()
            found = await self.get(replay_id)
            if found.status != "running":
                return found
        raise AssertionError("the replay does not end")

    async def get(self, replay_id: UUID) -> endpoints.QuarantineReplay:
        return await self.api.ask(endpoints.get_quarantine_replay, replay_id=replay_id)

    async def statuses(self) -> list[tuple[str, str]]:
        """Status and reason of each message in quarantine, in the order of their making."""
        rows = await self.ingest.pool.fetch(
            "SELECT status, reason FROM quarantine_events ORDER BY quarantine_id"
        )
        return [(row["status"], row["reason"]) for row in rows]

    async def books(self, tenant_id: str = "test") -> dict[str, int]:
        counts = await counts_of_tenant(self.ingest.pool, tenant_id)
        ended = counts.written + counts.quarantined + counts.refused + counts.duplicate
        assert counts.received == ended, counts
        return {name: count for name, count in asdict(counts).items() if count}

    async def mend(self) -> None:
        """Register the device where it says it is."""
        await self.ingest.pool.execute("UPDATE device_registry SET site_id = 'elsewhere'")
        await self.ingest.restart()


@pytest.fixture
async def scene(postgres_dsn: str, broker: Broker) -> AsyncIterator[Scene]:
    async with make_streams(broker), started(postgres_dsn, broker) as ingest:
        await register(ingest.pool)
        yield Scene(broker, postgres_dsn, ingest, Caller(ingest.pool))


async def test_a_mended_message_becomes_the_row_that_it_would_have_been(scene: Scene) -> None:
    await scene.ingest.pool.execute(
        "INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type)"
        " VALUES ('test', 'all', '#', 'webhook')"
    )
    await scene.ingest.restart()
    [original] = await scene.send(WRONG)
    assert await scene.statuses() == [("quarantined", "SITE_MISMATCH_REGISTRY_VS_PAYLOAD")]
    await scene.mend()
    replay = await scene.replay(reason="SITE_MISMATCH_REGISTRY_VS_PAYLOAD")
    assert (replay.status, replay.found, replay.sent, replay.under_way) == ("done", 1, 1, 1)
    [copy] = await scene.deliver()
    assert (copy.subject, copy.data) == (original.subject, original.data)
    [row] = await scene.ingest.rows()
    assert row["seq"] == original.sequence
    assert row["time"].timestamp() == pytest.approx(original.stored_at_ns / 1e9, abs=1e-5)
    assert await scene.statuses() == [("replayed", "SITE_MISMATCH_REGISTRY_VS_PAYLOAD")]
    assert await scene.books() == {"received": 1, "written": 1}
    # Every later delivery of either changes nothing.
    await scene.ingest.run(copy)
    await scene.ingest.run(replace(copy, called_before=True), replace(original, attempt=2))
    assert await scene.ingest.counts() == (1, 1)
    assert await scene.books() == {"received": 4, "written": 1, "duplicate": 3}
    assert await scene.ingest.pool.fetchval("SELECT count(*) FROM delivery_jobs") == 1
    replay = await scene.get(replay.replay_id)
    assert (replay.accepted, replay.refused, replay.under_way) == (1, 0, 0)
    [shown] = (await scene.api.ask(list_quarantine, status="replayed")).items
    assert (shown.replay_id, shown.replays) == (replay.replay_id, 1)


async def test_a_message_that_is_refused_again_stays_one_with_the_new_reason(
    scene: Scene,
) -> None:
    await scene.send(WRONG)
    books = await scene.books()
    await scene.ingest.pool.execute("UPDATE device_registry SET status = 'REVOKED'")
    await scene.ingest.restart()
    first = await scene.replay()
    [old_copy] = await scene.deliver()
    assert await scene.statuses() == [("quarantined", "DEVICE_REVOKED")]
    assert await scene.books() == books == {"received": 1, "quarantined": 1}
    assert (await scene.get(first.replay_id)).refused == 1
    # The next replay takes it again, and a late delivery of the first copy does not disturb it.
    await scene.ingest.pool.execute("UPDATE device_registry SET status = 'ACTIVE'")
    await scene.mend()
    await scene.replay()
    await scene.ingest.run(replace(old_copy, attempt=2))
    assert await scene.ingest.counts() == (0, 1)
    await scene.deliver()
    assert await scene.ingest.counts() == (1, 1)
    assert await scene.statuses() == [("replayed", "DEVICE_REVOKED")]
    assert await scene.books() == {"received": 2, "written": 1, "duplicate": 1}


async def test_a_replay_takes_what_fits_its_filters_in_order_and_at_its_rate(
    scene: Scene,
) -> None:
    await register(scene.ingest.pool, device="dev2")
    await scene.send(*[{**WRONG, "n": n} for n in range(5)], b"?")
    await scene.send(WRONG, subject="telemetry.test.dev2")
    await scene.mend()
    fields = {"reason": "SITE_MISMATCH_REGISTRY_VS_PAYLOAD", "device_id": "dev1"}
    asked = await scene.api.ask(
        endpoints.create_quarantine_replay, tenant_id="test", rate_per_s=1, **fields
    )
    sent = []
    for _ in range(3):
        await scene.step()
        sent.append([json.loads(message.data)["n"] for message in await scene.deliver()])
    assert sent == [[0, 1], [2, 3], [4]]
    assert (await scene.send_all(asked.replay_id)).sent == asked.found == 5
    assert await scene.ingest.counts() == (5, 7)
    hour = timedelta(hours=1)
    now = datetime.now(UTC)
    assert (await scene.replay(since=now + hour)).found == 0
    assert (await scene.replay(until=now - hour)).found == 0
    assert (await scene.replay(tenant_id="other")).found == 0


async def test_a_replay_goes_on_where_its_host_died(scene: Scene) -> None:
    await scene.send(*[{**WRONG, "n": n} for n in range(6)])
    await scene.mend()
    asked = await scene.api.ask(endpoints.create_quarantine_replay, rate_per_s=1)
    # It dies before its copies are stored …
    config = (await scene.broker.api("STREAM.INFO.TELEMETRY"))["config"]
    await scene.broker.api("STREAM.UPDATE.TELEMETRY", {**config, "subjects": ["nothing"]})
    with pytest.raises(PublishFailed):
        await scene.step()
    assert [status for status, _ in await scene.statuses()].count("replaying") == 2
    await scene.broker.api("STREAM.UPDATE.TELEMETRY", config)
    await scene.step()
    # … and after that, before it notes them: the stream knows the copies by their ids.
    await scene.ingest.pool.execute("UPDATE quarantine_replays SET cursor = 0, sent = 0")
    replay = await scene.send_all(asked.replay_id)
    copies = await scene.deliver()
    assert sorted(json.loads(copy.data)["n"] for copy in copies) == list(range(6))
    assert replay.sent == 6
    assert await scene.ingest.counts() == (6, 6)
    # A stream that forgot the ids has copies twice: the second ones are duplicates.
    await scene.ingest.run(*(replace(copy, sequence=copy.sequence + 90) for copy in copies))
    assert await scene.ingest.counts() == (6, 6)
    assert await scene.books() == {"received": 12, "written": 6, "duplicate": 6}


async def test_copies_that_two_hosts_judge_at_once_have_one_end(scene: Scene) -> None:
    await scene.send(*[{**WRONG, "n": n} for n in range(30)])
    await scene.mend()
    await scene.replay()
    copies = await scene.new()
    # One host knows of the mending, one does not yet.
    async with started(scene.dsn, scene.broker) as other:
        for device in (await other.state.registry.devices([("test", "dev1")])).values():
            assert device is not None
            device.site_id = "s1"
        for pair in zip(copies[::2], copies[1::2], strict=True):
            await asyncio.gather(scene.ingest.run(*pair), other.run(*pair[::-1]))
    statuses = [status for status, _ in await scene.statuses()]
    rows, _ = await scene.ingest.counts()
    assert statuses.count("replayed") == rows
    assert statuses.count("quarantined") == 30 - rows
    assert await scene.books() == {
        key: count
        for key, count in {
            "received": 60,
            "written": rows,
            "quarantined": 30 - rows,
            "duplicate": 30,
        }.items()
        if count
    }


async def test_a_header_that_a_sender_wrote_moves_nothing_of_others(scene: Scene) -> None:
    await scene.send(WRONG)
    replay_id = (await scene.replay()).replay_id
    await scene.new()
    number = await scene.ingest.pool.fetchval("SELECT quarantine_id FROM quarantine_events")
    for header in (f"{number} {replay_id}", f"{number} {uuid4()}", "1", "x y", f"{2**62} nobody"):
        data = json.dumps(GOOD).encode()
        await scene.broker.publish(
            "telemetry.test.dev1", data, msg_id=None, headers={HEADER: header}
        )
    await scene.deliver()
    # Messages like any others, with rows of their own.
    assert await scene.ingest.counts() == (5, 1)
    assert [status for status, _ in await scene.statuses()] == ["replaying"]


async def test_no_rate_and_no_date_of_the_original_stops_its_replay(scene: Scene) -> None:
    flood = [GOOD] * 40
    await scene.send(*flood)
    rows, refused = await scene.ingest.counts()
    assert (rows + refused, refused > 10) == (40, True)
    await scene.replay(reason="RATE_LIMITED")
    await scene.deliver()
    assert await scene.ingest.counts() == (40, refused)
    # The subscription begins after the message came.
    await scene.ingest.pool.execute("DELETE FROM subscriptions")
    await scene.ingest.restart()
    await scene.send(GOOD)
    assert (await scene.statuses())[-1] == ("quarantined", "NO_SUBSCRIPTION_CAPACITY")
    await scene.ingest.pool.execute("INSERT INTO subscriptions (tenant_id) VALUES ('test')")
    await scene.ingest.restart()
    await scene.replay(reason="NO_SUBSCRIPTION_CAPACITY")
    await scene.deliver()
    assert (await scene.statuses())[-1][0] == "replayed"
    assert len(await scene.ingest.rows()) == 41


async def test_messages_of_a_tenant_that_was_unknown_become_the_tenants(scene: Scene) -> None:
    await scene.send(GOOD, subject="telemetry.later.dev1")
    assert await scene.books(UNKNOWN) == {"received": 1, "quarantined": 1}
    await register(scene.ingest.pool, tenant="later")
    await scene.ingest.restart()
    await scene.replay(tenant_id="later")
    await scene.deliver()
    assert await scene.books(UNKNOWN) == {}
    assert await scene.books("later") == {"received": 1, "written": 1}


async def test_reports_and_answers_are_replayed_to_their_functions(scene: Scene) -> None:
    pool, api = scene.ingest.pool, scene.api
    body = {"reported": {"a": 1}, "provision_token": "tok", "site_id": "elsewhere"}
    answer = {"command_id": "c", "status": "acked", "provision_token": "tok"}
    places: list[tuple[str, str, Any, Any]] = [
        ("SHADOW", "shadow.test.dev1.reported", body, answer_device),
        ("COMMANDS", "commands.test.dev1.ack", answer, apply_ack),
    ]
    for stream, subject, document, function in places:
        await scene.broker.publish(subject, json.dumps(document).encode(), msg_id=None)
        [message] = await scene.new(stream)
        await api.deliver(function, message)
    assert [reason for _, reason in await scene.statuses()] == [
        "SITE_MISMATCH_REGISTRY_VS_PAYLOAD",
        "UNKNOWN_COMMAND",
    ]
    for expected in ("quarantined", "replayed"):
        await scene.replay()
        for stream, _, _, function in places:
            [copy] = await scene.new(stream)
            for delivery in (copy, copy, replace(copy, called_before=True)):
                await api.deliver(function, delivery)
        assert [status for status, _ in await scene.statuses()] == [expected] * 2
        await scene.mend()
        await pool.execute(
            "INSERT INTO device_commands"
            " (command_id, tenant_id, device_id, name, expires_at, timeout_s)"
            " VALUES ('c', 'test', 'dev1', 'reboot', now() + interval '1 day', 60)"
            " ON CONFLICT DO NOTHING"
        )
    assert await pool.fetchval("SELECT version FROM device_shadows") == 1
    assert await pool.fetchval("SELECT status FROM device_commands") == "acked"
    assert await scene.books() == {"received": 10, "written": 2, "duplicate": 8}


async def test_a_replayed_report_overwrites_nothing_newer(scene: Scene) -> None:
    async def report(**fields: Any) -> None:
        body = {"provision_token": "tok", **fields}
        await scene.broker.publish(
            "shadow.test.dev1.reported", json.dumps(body).encode(), msg_id=None
        )
        for message in await scene.new("SHADOW"):
            await scene.api.deliver(answer_device, message)

    await report(reported={"temp": 20, "fan": 1}, site_id="elsewhere")
    await report(reported={"temp": 25})
    await scene.mend()
    await scene.replay()
    for copy in await scene.new("SHADOW"):
        await scene.api.deliver(answer_device, copy)
    assert [status for status, _ in await scene.statuses()] == ["replayed"]
    shadow = await scene.ingest.pool.fetchval("SELECT reported::text FROM device_shadows")
    assert json.loads(shadow) == {"temp": 25, "fan": 1}


async def test_a_cancelled_replay_leaves_in_quarantine_what_was_not_accepted(
    scene: Scene,
) -> None:
    await scene.send(*[{**WRONG, "n": n} for n in range(5)])
    await scene.mend()
    asked = await scene.api.ask(endpoints.create_quarantine_replay, rate_per_s=1)
    await scene.step()
    await scene.deliver()
    await scene.step()
    cancelled = await scene.api.ask(endpoints.cancel_quarantine_replay, replay_id=asked.replay_id)
    assert (cancelled.status, cancelled.accepted, cancelled.refused) == ("cancelled", 2, 2)
    await scene.deliver()
    await scene.step()
    assert await scene.deliver() == []
    assert len(await scene.ingest.rows()) == 2
    again = await scene.api.ask(endpoints.cancel_quarantine_replay, replay_id=asked.replay_id)
    assert again.finished_at == cancelled.finished_at
    # A new replay takes the rest.
    assert (await scene.replay()).sent == 3
    await scene.deliver()
    assert len(await scene.ingest.rows()) == 5


async def test_one_message_is_replayed_by_its_number(scene: Scene) -> None:
    ask, refuse = scene.api.ask, scene.api.refuse
    await scene.send(WRONG, WRONG)
    await scene.mend()
    number = (await ask(list_quarantine)).items[0].quarantine_id
    replay_id = uuid4()
    one = endpoints.replay_quarantined
    first = await ask(one, quarantine_id=number, replay_id=replay_id)
    assert (await ask(one, quarantine_id=number, replay_id=replay_id)) == first
    assert first.found == 1
    assert await refuse(one, quarantine_id=number - 1, replay_id=replay_id) == (
        "REPLAY_EXISTS",
        409,
    )
    await scene.send_all(replay_id)
    await scene.deliver()
    assert len(await scene.ingest.rows()) == 1
    assert await refuse(one, quarantine_id=number) == ("ALREADY_REPLAYED", 409)
    assert await refuse(one, quarantine_id=2**62) == ("QUARANTINE_NOT_FOUND", 404)
    nowhere = endpoints.get_quarantine_replay
    assert await refuse(nowhere, replay_id=uuid4()) == ("REPLAY_NOT_FOUND", 404)
    assert await refuse(
        endpoints.create_quarantine_replay,
        since=datetime.now(UTC),
        until=datetime.now(UTC) - timedelta(hours=1),
    ) == ("RANGE_INVALID", 422)
    await scene.ingest.pool.execute(
        "UPDATE quarantine_events SET subject = 'tenant.test.device.dev1.commands'"
        " WHERE status <> 'replayed'"
    )
    assert await refuse(one, quarantine_id=number - 1) == ("NOT_REPLAYABLE", 409)
    for _ in range(10):
        await ask(endpoints.create_quarantine_replay)
    assert await refuse(endpoints.create_quarantine_replay) == ("TOO_MANY_REPLAYS", 429)
    page = await ask(endpoints.list_quarantine_replays, limit=10)
    rest = await ask(endpoints.list_quarantine_replays, cursor=page.next_cursor)
    assert [each.replay_id for each in rest.items] == [replay_id]


async def test_a_message_that_cannot_be_sent_holds_up_no_other(scene: Scene) -> None:
    await scene.send(WRONG, WRONG, WRONG)
    await scene.mend()
    await scene.ingest.pool.execute(
        "UPDATE quarantine_events SET subject = 'telemetry.a b'"
        " WHERE quarantine_id = (SELECT min(quarantine_id) FROM quarantine_events)"
    )
    with capture_logs() as lines:
        replay = await scene.replay()
    assert (replay.status, replay.sent, replay.unsendable) == ("done", 2, 1)
    await scene.deliver()
    assert [status for status, _ in await scene.statuses()] == [
        "quarantined",
        "replayed",
        "replayed",
    ]
    assert [line["messages"] for line in lines if "cannot be sent" in line["event"]] == [1]
