"""The server in memory against a real nats-server: the same cases, the same answers.

In memory the clock jumps whenever a case waits, so that sleeps there take no time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from runtime.broker import stored
from runtime.broker.connection import ApiError, Broker
from runtime.context import Publication
from runtime.errors import NoAnswer, PublishFailed
from runtime.message import Message
from runtime.testing.clock import FakeClock
from runtime.testing.server.memory_server import MemoryServer
from tests.support.probe import MS, PATIENCE_S, Probe, attempts, statuses
from tests.support.servers import NatsServer

Case = Callable[[Probe], Awaitable[None]]
CASES: list[Case] = []
_LIMIT_S = 30.0


def case(function: Case) -> Case:
    """Run the function on both servers."""
    CASES.append(function)
    return function


@pytest.mark.parametrize("server", ["memory", "real"])
@pytest.mark.parametrize("function", CASES, ids=lambda each: each.__name__)
async def test_both_servers(function: Case, server: str, nats_server: NatsServer) -> None:
    if server == "real":
        await _on(nats_server.url, function)
        return
    clock, memory = FakeClock.acquire(), MemoryServer(datetime.now(UTC))
    try:
        await clock.run(_on(memory.url, function), _LIMIT_S)
        assert not memory.not_modelled
    finally:
        memory.close()
        clock.release()


async def _on(url: str, function: Case) -> None:
    broker = await Broker.connect(url, name="test")
    try:
        await function(Probe(broker))
    finally:
        await broker.close()


@case
async def a_request_without_a_subscriber_finds_no_responders(probe: Probe) -> None:
    with pytest.raises(NoAnswer, match="no responders"):
        await probe.broker.request(f"{probe.root}.nobody", b"")


@case
async def wildcards_and_queue_groups_route(probe: Probe) -> None:
    seen: list[str] = []
    root, subscribe = probe.root, probe.broker.subscribe
    for pattern in (f"{root}.*", f"{root}.>", f"{root}.a"):
        await subscribe(pattern, lambda m, pattern=pattern: seen.append(pattern))  # type: ignore[misc]
    for _ in range(2):
        await subscribe(f"{root}.a", lambda m: seen.append("queue"), queue="q")
    await probe.broker.publish_core(f"{root}.a", b"")
    await probe.broker.publish_core(f"{root}.a.b", b"")
    await probe.broker.flush()
    assert sorted(seen) == sorted([f"{root}.*", f"{root}.>", f"{root}.a", "queue", f"{root}.>"])


@case
async def headers_and_bytes_pass_unchanged(probe: Probe) -> None:
    got: list[Message] = []
    await probe.broker.subscribe(probe.root, got.append)
    await probe.broker.publish_core(probe.root, b"\x00\r\nPING\r\n", headers={"A": "é", "b": ""})
    await probe.broker.flush()
    assert (got[0].data, got[0].headers) == (b"\x00\r\nPING\r\n", {"A": "é", "b": ""})


@case
async def an_unsubscribed_callback_gets_nothing(probe: Probe) -> None:
    got: list[Message] = []
    subscription = await probe.broker.subscribe(probe.root, got.append)
    await subscription.unsubscribe()
    await probe.broker.publish_core(probe.root, b"")
    await probe.broker.flush()
    assert not got


@case
async def a_publish_is_confirmed_with_stream_and_sequence(probe: Probe) -> None:
    await probe.make()
    await probe.put("a")
    ack = await probe.broker.publish(f"{probe.root}.b", b"")
    assert (ack.stream, ack.sequence, ack.duplicate) == (probe.stream, 2, False)


@case
async def a_publish_that_no_stream_takes_is_refused(probe: Probe) -> None:
    assert await probe.refused("a") == "no stream took it"


@case
async def an_id_within_the_window_stores_nothing_new(probe: Probe) -> None:
    await probe.make(duplicate_window=200 * MS)
    first = await probe.broker.publish(f"{probe.root}.a", b"1", msg_id="x")
    again = await probe.broker.publish(f"{probe.root}.b", b"2", msg_id="x")
    assert (again.sequence, again.duplicate) == (first.sequence, True)
    await asyncio.sleep(0.5)
    late = await probe.broker.publish(f"{probe.root}.a", b"3", msg_id="x")
    assert (late.sequence, late.duplicate) == (2, False)


@case
async def an_id_counts_although_its_message_is_gone(probe: Probe) -> None:
    await probe.make()
    await probe.put("a", msg_id="x")
    assert await stored.delete(probe.broker, probe.stream, 1)
    ack = await probe.broker.publish(f"{probe.root}.a", b"", msg_id="x")
    assert ack.duplicate


@case
async def the_newest_messages_stay_within_max_msgs(probe: Probe) -> None:
    await probe.make(max_msgs=2)
    await probe.put("a", "b", "c")
    state = await probe.state()
    assert (state["messages"], state["first_seq"], state["last_seq"]) == (2, 2, 3)


@case
async def a_full_stream_that_discards_new_messages_refuses(probe: Probe) -> None:
    await probe.make(max_msgs=1, discard="new")
    await probe.put("a")
    assert await probe.refused("b") == "maximum messages exceeded"


@case
async def a_full_stream_by_bytes_refuses(probe: Probe) -> None:
    await probe.make(max_bytes=100, discard="new")
    await probe.put("a")
    assert await probe.refused("b" * 90) == "maximum bytes exceeded"


@case
async def each_subject_keeps_its_newest_message(probe: Probe) -> None:
    await probe.make(max_msgs_per_subject=1)
    await probe.put("a", "b", "a")
    assert (await probe.state(subjects_filter=">"))["subjects"] == {
        f"{probe.root}.a": 1,
        f"{probe.root}.b": 1,
    }


@case
async def a_message_above_max_msg_size_is_refused(probe: Probe) -> None:
    await probe.make(max_msg_size=10)
    assert await probe.refused("b" * 11) == "message size exceeds maximum allowed"


@case
async def messages_expire_at_max_age(probe: Probe) -> None:
    await probe.make(max_age=200 * MS, duplicate_window=200 * MS)
    await probe.put("a")
    await asyncio.sleep(0.6)
    assert (await probe.state())["messages"] == 0


@case
async def an_expected_stream_must_match(probe: Probe) -> None:
    await probe.make()
    reason = await probe.refused("a", headers={"Nats-Expected-Stream": "OTHER"})
    assert reason == "expected stream does not match"


@case
async def an_expected_last_sequence_must_match(probe: Probe) -> None:
    await probe.make()
    await probe.put("a")
    reason = await probe.refused("b", headers={"Nats-Expected-Last-Sequence": "7"})
    assert reason == "wrong last sequence: 1"
    assert await probe.put("b", headers={"Nats-Expected-Last-Sequence": "1"}) == 2


@case
async def a_compare_and_set_on_a_subject_lets_one_through(probe: Probe) -> None:
    await probe.make()
    header = {"Nats-Expected-Last-Subject-Sequence": "0"}
    assert await probe.put("a", headers=header) == 1
    assert await probe.refused("a", headers=header) == "wrong last sequence: 1"


@case
async def a_rollup_needs_permission(probe: Probe) -> None:
    await probe.make()
    assert await probe.refused("a", headers={"Nats-Rollup": "sub"}) == "rollup not permitted"


@case
async def a_rollup_replaces_the_subject(probe: Probe) -> None:
    await probe.make(allow_rollup_hdrs=True)
    await probe.put("a", "a", "b")
    await probe.put("a", headers={"Nats-Rollup": "sub"})
    assert (await probe.state())["messages"] == 2


@case
async def a_batch_is_stored_together_or_not_at_all(probe: Probe) -> None:
    await probe.make(allow_atomic=True)
    items = [Publication(f"{probe.root}.{n}", b"", f"id-{n}") for n in range(3)]
    assert await probe.broker.publish_together(items)
    assert not await probe.broker.publish_together(items)
    assert (await probe.state())["messages"] == 3


@case
async def a_batch_needs_permission(probe: Probe) -> None:
    await probe.make()
    with pytest.raises(PublishFailed, match="atomic publish is disabled"):
        await probe.broker.publish_together([Publication(f"{probe.root}.a", b"", "x")])


@case
async def a_message_is_read_by_sequence_with_its_headers(probe: Probe) -> None:
    await probe.make()
    await probe.put("a", headers={"Kind": "x"})
    found = await stored.fetch(probe.broker, probe.stream, 1)
    assert found is not None
    assert (found.data, found.headers, found.subject) == (b"a", {"Kind": "x"}, f"{probe.root}.a")
    assert await stored.fetch(probe.broker, probe.stream, 9) is None


@case
async def the_last_message_of_a_subject_is_found(probe: Probe) -> None:
    await probe.make()
    await probe.put("a", "b", "a")
    found = await stored.last(probe.broker, probe.stream, f"{probe.root}.a")
    assert found is not None
    assert found.sequence == 3


@case
async def a_scan_reads_a_pattern_in_order(probe: Probe) -> None:
    await probe.make()
    await probe.put("a", "b", "a", "c")
    found = [
        each.sequence async for each in stored.scan(probe.broker, probe.stream, f"{probe.root}.a")
    ]
    assert found == [1, 3]


@case
async def deleting_twice_says_that_it_was_gone(probe: Probe) -> None:
    await probe.make()
    await probe.put("a")
    assert await stored.delete(probe.broker, probe.stream, 1)
    assert not await stored.delete(probe.broker, probe.stream, 1)


@case
async def a_purge_can_be_filtered(probe: Probe) -> None:
    await probe.make()
    await probe.put("a", "b", "a")
    answer = await probe.broker.api(f"STREAM.PURGE.{probe.stream}", {"filter": f"{probe.root}.a"})
    assert (answer["purged"], (await probe.state())["messages"]) == (2, 1)


@case
async def an_empty_stream_knows_its_last_sequence(probe: Probe) -> None:
    await probe.make()
    await probe.put("a", "b")
    await probe.broker.api(f"STREAM.PURGE.{probe.stream}")
    state = await probe.state()
    assert (state["messages"], state["last_seq"], state["first_seq"]) == (0, 2, 3)


@case
async def missing_things_have_their_numbers(probe: Probe) -> None:
    assert await probe.code("STREAM.INFO.NOPE") == 10059
    await probe.make()
    assert await probe.code(f"CONSUMER.INFO.{probe.stream}.nope") == 10014
    assert await probe.code(f"STREAM.MSG.GET.{probe.stream}", {"seq": 5}) == 10037


@case
async def creating_a_stream_again_needs_the_same_configuration(probe: Probe) -> None:
    await probe.make()
    await probe.make()
    with pytest.raises(ApiError, match="10058"):
        await probe.make(max_msgs=5)


@case
async def overlapping_subjects_are_refused(probe: Probe) -> None:
    await probe.make()
    other = {"name": f"{probe.stream}B", "subjects": [f"{probe.root}.a"]}
    assert await probe.code(f"STREAM.CREATE.{probe.stream}B", other) == 10065


@case
async def storage_and_work_queues_cannot_be_changed(probe: Probe) -> None:
    made = await probe.make()
    for change in ({"storage": "file"}, {"retention": "workqueue"}):
        config = {**made["config"], **change}
        assert await probe.code(f"STREAM.UPDATE.{probe.stream}", config) == 10052


@case
async def a_lower_limit_drops_messages(probe: Probe) -> None:
    made = await probe.make()
    await probe.put("a", "b", "c")
    await probe.broker.api(f"STREAM.UPDATE.{probe.stream}", {**made["config"], "max_msgs": 1})
    assert (await probe.state())["messages"] == 1


@case
async def replicas_need_a_cluster(probe: Probe) -> None:
    config = {"name": probe.stream, "subjects": [probe.root], "num_replicas": 3}
    assert await probe.code(f"STREAM.CREATE.{probe.stream}", config) == 10074


@case
async def a_deleted_stream_is_gone(probe: Probe) -> None:
    await probe.make()
    await probe.broker.api(f"STREAM.DELETE.{probe.stream}")
    assert await probe.code(f"STREAM.INFO.{probe.stream}") == 10059


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
    await asyncio.sleep(0.05)
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
    await asyncio.sleep(0.05)
    await probe.put("a", "b", "c", "d")
    assert sorted(map(sorted, await asyncio.gather(*both))) == [["a", "c"], ["b", "d"]]


@case
async def a_request_to_a_missing_consumer_finds_nobody(probe: Probe) -> None:
    await probe.make()
    assert [each.headers["Status"] for each in await probe.pull()] == ["503"]


@case
async def an_acknowledged_message_never_comes_again(probe: Probe) -> None:
    await probe.make()
    await probe.consume(ack_wait=200 * MS)
    await probe.put("a")
    await probe.settle(await probe.one())
    info = await probe.info()
    assert (info["num_ack_pending"], info["ack_floor"]["stream_seq"]) == (0, 1)
    assert await probe.words(expires_ms=500) == []


@case
async def an_unsettled_message_comes_again_after_the_ack_wait(probe: Probe) -> None:
    await probe.make()
    await probe.consume(ack_wait=200 * MS)
    await probe.put("a")
    await probe.one()
    assert await probe.words(expires_ms=50) == []
    again = await probe.pull(1, expires_ms=1000)
    assert attempts(again) == [2]
    assert (await probe.info())["num_redelivered"] == 1


@case
async def a_nak_brings_a_message_back_at_once(probe: Probe) -> None:
    await probe.make()
    await probe.consume()
    await probe.put("a", "b")
    await probe.settle(await probe.one(), b"-NAK")
    assert attempts(await probe.pull(2)) in ([2, 1], [1, 2])


@case
async def a_nak_with_delay_brings_it_back_later(probe: Probe) -> None:
    await probe.make()
    await probe.consume()
    await probe.put("a")
    await probe.settle(await probe.one(), b'-NAK {"delay": 300000000}')
    assert (await probe.info())["num_ack_pending"] == 1
    assert await probe.words(expires_ms=100) == []
    assert attempts(await probe.pull(1, expires_ms=1000)) == [2]


@case
async def a_delay_longer_than_the_ack_wait_holds(probe: Probe) -> None:
    await probe.make()
    await probe.consume(ack_wait=100 * MS)
    await probe.put("a")
    await probe.settle(await probe.one(), b'-NAK {"delay": 500000000}')
    assert await probe.words(expires_ms=300) == []
    assert await probe.words(1, expires_ms=1000) == ["a"]


@case
async def work_in_progress_restarts_the_ack_wait(probe: Probe) -> None:
    await probe.make()
    await probe.consume(ack_wait=300 * MS)
    await probe.put("a")
    message = await probe.one()
    for _ in range(2):
        await asyncio.sleep(0.2)
        await probe.settle(message, b"+WPI")
    assert await probe.words(expires_ms=100) == []
    assert await probe.words(1, expires_ms=1000) == ["a"]


@case
async def a_terminated_message_never_comes_again(probe: Probe) -> None:
    await probe.make()
    await probe.consume(ack_wait=100 * MS)
    await probe.put("a")
    await probe.settle(await probe.one(), b"+TERM because")
    assert await probe.words(expires_ms=300) == []


@case
async def a_late_acknowledgement_of_an_earlier_delivery_counts(probe: Probe) -> None:
    await probe.make()
    await probe.consume(ack_wait=100 * MS)
    await probe.put("a")
    first = await probe.one()
    await probe.one(expires_ms=1000)
    await probe.settle(first)
    assert (await probe.info())["num_ack_pending"] == 0


@case
async def acknowledging_twice_is_harmless(probe: Probe) -> None:
    await probe.make()
    await probe.consume()
    await probe.put("a", "b")
    message = await probe.one()
    await probe.settle(message)
    await probe.settle(message)
    assert await probe.words(1) == ["b"]


@case
async def max_ack_pending_stops_new_messages(probe: Probe) -> None:
    await probe.make()
    await probe.consume(max_ack_pending=2)
    await probe.put("a", "b", "c")
    found = [each for each in await probe.pull() if each.reply]
    assert [each.data for each in found] == [b"a", b"b"]
    await probe.settle(found[0])
    assert await probe.words(1) == ["c"]


@case
async def max_ack_pending_does_not_stop_redeliveries(probe: Probe) -> None:
    await probe.make()
    await probe.consume(max_ack_pending=1)
    await probe.put("a", "b")
    await probe.settle(await probe.one(), b"-NAK")
    assert await probe.words(1) == ["a"]


@case
async def after_max_deliver_a_message_stays_away_and_is_advised(probe: Probe) -> None:
    await probe.make()
    await probe.consume(max_deliver=2, ack_wait=100 * MS)
    heard: list[Message] = []
    event = f"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{probe.stream}.c"
    await probe.broker.subscribe(event, heard.append)
    await probe.put("a")
    await probe.one()
    await probe.one(expires_ms=1000)
    assert await probe.words(expires_ms=500) == []
    await probe.broker.flush()
    assert len(heard) == 1
    assert b'"stream_seq":1' in heard[0].data.replace(b" ", b"")


@case
async def a_work_queue_forgets_what_is_settled(probe: Probe) -> None:
    await probe.make(retention="workqueue")
    await probe.consume()
    await probe.put("a", "b")
    await probe.settle(await probe.one())
    state = await probe.state()
    assert (state["messages"], state["first_seq"]) == (1, 2)


@case
async def consumers_of_a_work_queue_must_not_overlap(probe: Probe) -> None:
    await probe.make(retention="workqueue")
    await probe.consume(filter_subjects=[f"{probe.root}.a"])
    with pytest.raises(ApiError, match="10100"):
        await probe.consume(durable="d", filter_subjects=[f"{probe.root}.*"])
    with pytest.raises(ApiError, match="10099"):
        await probe.consume(durable="d")
    with pytest.raises(ApiError, match="10101"):
        await probe.consume(durable="d", filter_subjects=[f"{probe.root}.b"], deliver_policy="new")


@case
async def interest_keeps_a_message_until_all_have_settled_it(probe: Probe) -> None:
    await probe.make(retention="interest")
    await probe.put("nobody")
    assert (await probe.state())["messages"] == 0
    await probe.consume()
    await probe.consume(durable="d")
    await probe.put("a")
    await probe.settle(await probe.one())
    assert (await probe.state())["messages"] == 1
    await probe.settle(await probe.one(durable="d"))
    assert (await probe.state())["messages"] == 0


@case
async def a_deleted_message_is_not_redelivered(probe: Probe) -> None:
    await probe.make()
    await probe.consume(ack_wait=150 * MS)
    await probe.put("a")
    await probe.one()
    await stored.delete(probe.broker, probe.stream, 1)
    assert await probe.words(expires_ms=400) == []


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
    await asyncio.sleep(PATIENCE_S)
    await probe.broker.api(f"CONSUMER.DELETE.{probe.stream}.c")
    assert statuses(await waiting) == ["409 Consumer Deleted"]


@case
async def an_inactive_consumer_is_deleted(probe: Probe) -> None:
    await probe.make()
    await probe.consume(inactive_threshold=200 * MS)
    async with asyncio.timeout(10):
        while await probe.code(f"CONSUMER.INFO.{probe.stream}.c") != 10014:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


@case
async def a_consumer_that_is_not_durable_works_and_goes_when_nobody_asks(probe: Probe) -> None:
    await probe.make()
    await probe.put("a")
    made = await probe.consume(durable_name=None, inactive_threshold=200 * MS)
    assert "durable_name" not in made["config"]
    await probe.settle(await probe.one())
    async with asyncio.timeout(10):
        while await probe.code(f"CONSUMER.INFO.{probe.stream}.c") != 10014:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


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
