"""Streams, publishing and reading: the server in memory against a real one."""

import pytest

from runtime.broker import stored
from runtime.broker.connection import ApiError
from runtime.context import PubAck, Publication
from runtime.errors import NoAnswer, PublishFailed
from runtime.message import Message
from tests.contract.both_servers import SERVERS, Case, Cases, run
from tests.support.host import eventually
from tests.support.probe import MS, NO_CONSUMER, Probe
from tests.support.servers import NatsServer

case = Cases()


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("function", case, ids=lambda each: each.__name__)
async def test_both_servers(function: Case, server: str, nats_server: NatsServer) -> None:
    await run(function, server, nats_server)


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

    async def stored_late() -> PubAck | None:
        late = await probe.broker.publish(f"{probe.root}.a", b"3", msg_id="x")
        return None if late.duplicate else late

    assert (await eventually(stored_late, "the end of the window")).sequence == 2


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

    async def is_empty() -> bool:
        return bool((await probe.state())["messages"] == 0)

    await eventually(is_empty, "the end of the message")


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
    assert await probe.code(f"CONSUMER.INFO.{probe.stream}.nope") == NO_CONSUMER
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
