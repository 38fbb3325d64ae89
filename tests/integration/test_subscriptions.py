"""An exception of a subscription's callback is logged, and costs no other message."""

import asyncio
from collections.abc import Iterator

import pytest
import structlog

from runtime import Context, Event
from runtime.binding import settlement
from runtime.binding.buffer import Places, PrefetchBuffer
from runtime.broker import subscription as subscription_module
from runtime.broker.connection import Broker
from runtime.message import Message
from tests.support.host import QUICK, fresh, running_host, wait_for_letters
from tests.support.servers import NatsServer

EVENT = "A subscription's callback raised"


@pytest.fixture
def lines() -> Iterator[list[structlog.typing.EventDict]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


class Callbacks:
    """Callbacks that raise for bad messages and record the others."""

    def __init__(self) -> None:
        self.kept: asyncio.Queue[bytes] = asyncio.Queue()

    def take(self, message: Message) -> None:
        if message.data == b"bad":
            raise ValueError("what was wrong with it")
        self.kept.put_nowait(message.data)

    async def take_later(self, message: Message) -> None:
        if message.data == b"cancel":
            raise asyncio.CancelledError
        self.take(message)


@pytest.mark.parametrize("name", ["take", "take_later"])
async def test_what_a_callback_raises_is_told_with_its_traceback_and_the_next_message_comes(
    broker: Broker, lines: list[structlog.typing.EventDict], name: str
) -> None:
    callbacks, subject = Callbacks(), fresh("callbacks")
    subscription = await broker.subscribe(subject, getattr(callbacks, name))

    for data in (b"bad", b"good"):
        await broker.publish_core(subject, data)
    assert await asyncio.wait_for(callbacks.kept.get(), 60) == b"good"

    [told] = [line for line in lines if line["event"] == EVENT]
    assert (told["log_level"], told["callback"]) == ("error", f"Callbacks.{name}")
    assert isinstance(told["exc_info"], ValueError)
    assert told["exc_info"].__traceback__ is not None
    await subscription.unsubscribe()


async def test_a_flood_of_the_same_failure_is_told_by_its_number(
    broker: Broker,
    lines: list[structlog.typing.EventDict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    callbacks, subject = Callbacks(), fresh("callbacks")
    subscription = await broker.subscribe(subject, callbacks.take)

    for data in (*[b"bad"] * 100, b"good"):
        await broker.publish_core(subject, data)
    await asyncio.wait_for(callbacks.kept.get(), 60)
    monkeypatch.setattr(subscription_module, "TELL_EVERY_S", 0.0)
    for data in (b"bad", b"good"):
        await broker.publish_core(subject, data)
    await asyncio.wait_for(callbacks.kept.get(), 60)

    assert [line["untold"] for line in lines if line["event"] == EVENT] == [0, 99]
    await subscription.unsubscribe()


async def test_a_callback_that_cancels_itself_does_not_end_its_subscription(
    broker: Broker, lines: list[structlog.typing.EventDict]
) -> None:
    callbacks, subject = Callbacks(), fresh("callbacks")
    subscription = await broker.subscribe(subject, callbacks.take_later)

    for data in (b"cancel", b"good"):
        await broker.publish_core(subject, data)

    assert await asyncio.wait_for(callbacks.kept.get(), 60) == b"good"
    assert [type(line["exc_info"]) for line in lines if line["event"] == EVENT] == [
        asyncio.CancelledError
    ]
    await subscription.unsubscribe()


@pytest.mark.parametrize("name", ["take", "take_later"])
async def test_a_drained_subscription_has_handled_all_that_was_sent(
    broker: Broker, name: str
) -> None:
    callbacks, subject = Callbacks(), fresh("callbacks")
    subscription = await broker.subscribe(subject, getattr(callbacks, name))

    for number in range(1000):
        await broker.publish_core(subject, b"%d" % number)
    await subscription.drain(10)

    assert [callbacks.kept.get_nowait() for _ in range(1000)] == [b"%d" % n for n in range(1000)]


@pytest.mark.parametrize("kind", ["plain", "ordered"])
async def test_a_message_that_cannot_be_taken_in_is_tried_again_and_then_a_dead_letter(
    nats_server: NatsServer, broker: Broker, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    stream, name = fresh("INTAKE"), fresh("intake")
    served: asyncio.Queue[bytes] = asyncio.Queue()
    add = PrefetchBuffer.add

    def fail(buffer: PrefetchBuffer, message: Message, places: Places) -> None:
        if message.data == b"bad":
            raise RuntimeError("a defect of the host")
        add(buffer, message, places)

    async def serve(ctx: Context, event: Event[bytes]) -> None:
        served.put_nowait(event.data)

    monkeypatch.setattr(PrefetchBuffer, "add", fail)
    monkeypatch.setattr(settlement, "STORE_AGAIN_S", 0.1)
    spec = {"handler": "on_event", "consumer": {"stream": stream}, "retry": QUICK}
    if kind == "ordered":
        spec["ordered_by"] = {"token": 1}
    with structlog.testing.capture_logs():
        async with running_host(
            nats_server.url,
            {name: spec},
            {name: serve},
            streams={stream: {"subjects": [f"{stream.lower()}.>"]}},
        ):
            for data in (b"bad", b"good"):
                await broker.publish(f"{stream.lower()}.a", data)
            assert await asyncio.wait_for(served.get(), 20) == b"good"
            [letter] = await wait_for_letters(broker, name)

    assert (letter.error_type, letter.attempts) == ("RuntimeError", 3)
    assert letter.reason == "a defect of the host"
    assert "in fail" in letter.traceback
