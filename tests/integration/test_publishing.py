import asyncio

import pytest

from runtime.broker import connection
from runtime.broker.connection import Broker
from runtime.context import Publication
from runtime.errors import PublishFailed
from tests.support.host import fresh


def _stream(name: str) -> dict[str, object]:
    return {"name": name, "subjects": [f"{name}.>"], "storage": "file", "retention": "limits"}


async def test_a_publish_that_no_stream_takes_yet_is_tried_again(broker: Broker) -> None:
    name = fresh("LATE")
    publishing = asyncio.create_task(broker.publish(f"{name}.a", b"1", msg_id="one"))
    await asyncio.sleep(0)  # The message is sent before the request that creates the stream.
    await broker.api(f"STREAM.CREATE.{name}", _stream(name))

    ack = await publishing

    assert (ack.stream, ack.sequence, ack.duplicate) == (name, 1, False)


async def test_of_many_only_those_are_tried_again_that_no_stream_took(broker: Broker) -> None:
    there, late = fresh("THERE"), fresh("LATE")
    await broker.api(f"STREAM.CREATE.{there}", _stream(there))
    subjects = [f"{there}.a", f"{late}.a", f"{there}.b", f"{late}.b"]
    many = [Publication(subject, b"x", msg_id=subject) for subject in subjects]
    publishing = asyncio.create_task(broker.publish_many(many))
    await asyncio.sleep(0)
    await broker.api(f"STREAM.CREATE.{late}", _stream(late))

    acks = await publishing

    assert [(ack.stream, ack.sequence, ack.duplicate) for ack in acks] == [
        (there, 1, False), (late, 1, False), (there, 2, False), (late, 2, False),
    ]  # fmt: skip


async def test_a_publish_that_no_stream_takes_is_given_up_soon_and_leaves_nothing_behind(
    broker: Broker,
) -> None:
    began_s = asyncio.get_running_loop().time()

    with pytest.raises(PublishFailed, match="no stream took it") as failure:
        await broker.publish("nobody.listens", b"")

    took_s = asyncio.get_running_loop().time() - began_s
    assert failure.value.subject == "nobody.listens"
    assert sum(connection.OFFER_AGAIN_S) <= took_s < connection.ACK_TIMEOUT_S
    assert not broker._confirmations._expected


async def test_a_message_id_counts_although_other_headers_end_with_its_name(broker: Broker) -> None:
    name = fresh("IDS")
    await broker.api(f"STREAM.CREATE.{name}", _stream(name))
    headers = {"X-Nats-Msg-Id": "theirs", "Trace": "t1"}

    first = await broker.publish(f"{name}.a", b"1", msg_id="one", headers=headers)
    again = await broker.publish(f"{name}.a", b"1", msg_id="one", headers=headers)
    other = await broker.publish(f"{name}.a", b"2", msg_id="two", headers=headers)

    assert (first.duplicate, again.duplicate, other.duplicate) == (False, True, False)


async def test_a_request_that_is_cancelled_ends_though_its_answer_comes_at_that_moment(
    broker: Broker,
) -> None:
    async def ask() -> None:
        while True:
            await broker.api("INFO")

    tasks = [asyncio.create_task(ask()) for _ in range(50)]
    answered = asyncio.Event()
    await broker.subscribe("answered", lambda _: answered.set())
    for task in tasks:
        # The answers arrive together; after this request some of them are about to be read.
        await broker.publish_core("answered", b"")
        await answered.wait()
        answered.clear()
        task.cancel()
    ended, running = await asyncio.wait(tasks, timeout=5)

    assert not running
    assert all(task.cancelled() for task in ended)
