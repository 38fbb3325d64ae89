"""Consumers, their requests, and schedules: the server in memory against a real one."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from runtime.broker import stored
from runtime.broker.connection import ApiError
from tests.contract.both_servers import SERVERS, Case, Cases, run
from tests.support.probe import MS, Probe, statuses
from tests.support.servers import NatsServer

case = Cases()


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("function", case, ids=lambda each: each.__name__)
async def test_both_servers(function: Case, server: str, nats_server: NatsServer) -> None:
    await run(function, server, nats_server)


@case
async def messages_come_in_order_with_their_origin(probe: Probe) -> None:
    await probe.make()
    await probe.consume()
    await probe.put("a", "b")
    first, second = [each for each in await probe.pull() if each.reply]
    assert (first.data, second.data) == (b"a", b"b")
    assert first.reply.startswith("$JS.ACK.")
    stored_ns = int(first.reply.split(".")[-2])
    assert (await stored.fetch(probe.broker, probe.stream, 1)).stored_at_ns == stored_ns  # type: ignore[union-attr]


@case
async def a_filter_selects(probe: Probe) -> None:
    await probe.make()
    await probe.consume(filter_subjects=[f"{probe.root}.a", f"{probe.root}.c"])
    await probe.put("a", "b", "c")
    assert await probe.words() == ["a", "c"]
    assert (await probe.info())["num_pending"] == 0


@case
async def deliver_new_starts_after_what_is_stored(probe: Probe) -> None:
    await probe.make()
    await probe.put("a")
    await probe.consume(deliver_policy="new")
    await probe.put("b")
    assert await probe.words() == ["b"]


@case
async def deliver_last_starts_with_the_last(probe: Probe) -> None:
    await probe.make()
    await probe.put("a", "b")
    await probe.consume(deliver_policy="last")
    await probe.put("c")
    assert await probe.words() == ["b", "c"]


@case
async def deliver_by_sequence_starts_there(probe: Probe) -> None:
    await probe.make()
    await probe.put("a", "b", "c")
    await probe.consume(deliver_policy="by_start_sequence", opt_start_seq=2)
    assert await probe.words() == ["b", "c"]


@case
async def a_request_that_waits_gets_a_later_message(probe: Probe) -> None:
    await probe.make()
    await probe.consume()
    waiting = asyncio.create_task(probe.words(1, expires_ms=1000))
    await probe.wait_for_requests(1)
    await probe.put("a")
    assert await waiting == ["a"]


@case
async def a_request_ends_when_it_expires(probe: Probe) -> None:
    await probe.make()
    await probe.consume()
    assert statuses(await probe.pull()) == ["408 Request Timeout"]


@case
async def a_request_without_waiting_ends_at_once(probe: Probe) -> None:
    await probe.make()
    await probe.consume()
    assert statuses(await probe.pull(no_wait=True, expires=0)) == ["404 No Messages"]


@case
async def heartbeats_come_while_nothing_does(probe: Probe) -> None:
    await probe.make()
    await probe.consume()
    found = statuses(await probe.pull(expires_ms=400, idle_heartbeat=150 * MS))
    assert found == ["100 Idle Heartbeat", "100 Idle Heartbeat", "408 Request Timeout"]


@case
async def a_message_larger_than_the_request_ends_it(probe: Probe) -> None:
    await probe.make()
    await probe.consume()
    await probe.put("a" * 500)
    found = statuses(await probe.pull(max_bytes=300))
    assert found == ["409 Message Size Exceeds MaxBytes"]
    assert (await probe.info())["num_pending"] == 1


@case
async def a_request_takes_no_more_bytes_than_it_names(probe: Probe) -> None:
    await probe.make()
    await probe.consume()
    await probe.put(*["a" * 100] * 5)
    assert 1 <= len(await probe.words(max_bytes=700)) < 5


@case
async def requests_of_two_clients_take_turns(probe: Probe) -> None:
    await probe.make()
    await probe.consume()
    both = [asyncio.create_task(probe.words(2, expires_ms=1000)) for _ in range(2)]
    await probe.wait_for_requests(2)
    await probe.put("a", "b", "c", "d")
    assert sorted(map(sorted, await asyncio.gather(*both))) == [["a", "c"], ["b", "d"]]


@case
async def a_request_to_a_missing_consumer_finds_nobody(probe: Probe) -> None:
    await probe.make()
    assert [each.headers["Status"] for each in await probe.pull()] == ["503"]


@case
async def creating_and_updating_are_told_apart(probe: Probe) -> None:
    await probe.make()
    with pytest.raises(ApiError, match="10149"):
        await probe.consume("update")
    await probe.consume("create")
    await probe.consume("create")
    with pytest.raises(ApiError, match="10148"):
        await probe.consume("create", max_deliver=7)
    assert (await probe.consume("update", max_deliver=7))["config"]["max_deliver"] == 7


@case
async def a_start_cannot_be_changed(probe: Probe) -> None:
    await probe.make()
    await probe.consume()
    with pytest.raises(ApiError, match="10012"):
        await probe.consume("update", deliver_policy="new")


@case
async def overlapping_filters_of_one_consumer_are_refused(probe: Probe) -> None:
    await probe.make()
    with pytest.raises(ApiError, match="10138"):
        await probe.consume(filter_subjects=[f"{probe.root}.a", f"{probe.root}.*"])


@case
async def a_paused_consumer_delivers_nothing_until_its_time(probe: Probe) -> None:
    await probe.make()
    await probe.consume()
    await probe.put("a")
    until = datetime.now(UTC) + timedelta(seconds=0.5)
    text = until.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    subject = f"CONSUMER.PAUSE.{probe.stream}.{probe.durable}"
    assert (await probe.broker.api(subject, {"pause_until": text}))["paused"]
    assert await probe.words(1, expires_ms=100) == []
    assert await probe.words(1, expires_ms=1500) == ["a"]


@case
async def a_deleted_consumer_ends_its_requests(probe: Probe) -> None:
    await probe.make()
    await probe.consume()
    waiting = asyncio.create_task(probe.pull(expires_ms=1000))
    await probe.wait_for_requests(1)
    await probe.broker.api(f"CONSUMER.DELETE.{probe.stream}.c")
    assert statuses(await waiting) == ["409 Consumer Deleted"]


@case
async def an_inactive_consumer_is_deleted(probe: Probe) -> None:
    await probe.make()
    await probe.consume(inactive_threshold=200 * MS)
    await probe.wait_until_deleted()


@case
async def a_consumer_that_is_not_durable_works_and_goes_when_nobody_asks(probe: Probe) -> None:
    await probe.make()
    await probe.put("a")
    made = await probe.consume(durable_name=None, inactive_threshold=200 * MS)
    assert "durable_name" not in made["config"]
    await probe.settle(await probe.one())
    await probe.wait_until_deleted()


@case
async def consumers_are_listed_with_their_metadata(probe: Probe) -> None:
    await probe.make()
    await probe.consume(metadata={"runtime.function": "f"})
    listed = await probe.broker.api(f"CONSUMER.LIST.{probe.stream}", {"offset": 0})
    assert listed["total"] == 1
    assert listed["consumers"][0]["config"]["metadata"]["runtime.function"] == "f"


def _at(delay_s: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=delay_s)).strftime("@at %Y-%m-%dT%H:%M:%S.%fZ")


@case
async def a_schedule_posts_its_message_to_the_target_and_goes(probe: Probe) -> None:
    await probe.make(allow_msg_schedules=True)
    await probe.consume(filter_subjects=[f"{probe.root}.ready"])
    headers = {"Nats-Schedule": _at(1), "Nats-Schedule-Target": f"{probe.root}.ready", "Mine": "1"}
    await probe.put("parked", headers=headers, msg_id="x")
    assert await probe.words(1, expires_ms=100) == []
    message = await probe.one(expires_ms=4000)
    assert (message.data, message.headers["Mine"]) == (b"parked", "1")
    assert not {"Nats-Schedule", "Nats-Schedule-Target", "Nats-Msg-Id"} & message.headers.keys()
    assert (await probe.state())["messages"] == 1


@case
async def a_schedule_replaces_the_one_before_on_its_subject(probe: Probe) -> None:
    await probe.make(allow_msg_schedules=True)
    headers = {"Nats-Schedule": _at(60), "Nats-Schedule-Target": f"{probe.root}.ready"}
    await probe.put("parked", "parked", headers=headers)
    assert (await probe.state())["messages"] == 1


@case
async def a_schedule_that_was_deleted_posts_nothing(probe: Probe) -> None:
    await probe.make(allow_msg_schedules=True)
    await probe.consume(filter_subjects=[f"{probe.root}.ready"])
    headers = {"Nats-Schedule": _at(0.3), "Nats-Schedule-Target": f"{probe.root}.ready"}
    await probe.put("parked", headers=headers)
    await stored.delete(probe.broker, probe.stream, 1)
    assert await probe.words(1, expires_ms=1200) == []


@case
async def a_schedule_needs_permission_and_a_target_of_its_stream(probe: Probe) -> None:
    headers = {"Nats-Schedule": _at(1), "Nats-Schedule-Target": f"{probe.root}.ready"}
    await probe.make()
    assert await probe.refused("a", headers=headers) == "message schedules is disabled"
    await probe.broker.api(f"STREAM.DELETE.{probe.stream}")
    await probe.make(allow_msg_schedules=True)
    reason = await probe.refused("a", headers={**headers, "Nats-Schedule-Target": "elsewhere"})
    assert reason == "message schedules target is invalid"


@case
async def schedules_and_discard_new_exclude_each_other(probe: Probe) -> None:
    config = {
        "name": probe.stream,
        "subjects": [probe.root],
        "allow_msg_schedules": True,
        "discard": "new",
    }
    assert await probe.code(f"STREAM.CREATE.{probe.stream}", config) == 10052
