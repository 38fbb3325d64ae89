"""Acknowledgements, redelivery and retention: the server in memory against a real one."""

import pytest

from runtime.broker import stored
from runtime.broker.connection import ApiError
from runtime.message import Message
from tests.contract.both_servers import SERVERS, Case, Cases, run
from tests.support.probe import MS, Probe, attempts
from tests.support.servers import NatsServer

case = Cases()


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("function", case, ids=lambda each: each.__name__)
async def test_both_servers(function: Case, server: str, nats_server: NatsServer) -> None:
    await run(function, server, nats_server)


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
        assert await probe.words(expires_ms=200) == []
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
