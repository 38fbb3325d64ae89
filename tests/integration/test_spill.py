"""A key that exceeds its share: what its host knows of the spill queue is never less than is so."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from runtime.binding import spill as module
from runtime.binding.buffer import Places, PrefetchBuffer
from runtime.binding.settlement import Settlement
from runtime.binding.spill import Spill
from runtime.broker.connection import Broker
from runtime.broker.mailbox import Mailbox
from runtime.broker.spill_queues import SpilledKey, SpillQueues, name_of
from runtime.manifest.model import KeySpec
from runtime.message import Message
from runtime.queueing.fair_queue import FairQueue
from runtime.queueing.keys import key_of
from tests.support.host import eventually, fresh, make_manifest


class SlowAnswers(SpillQueues):
    """Stores nothing before the first look at the keys was taken, whose answer comes last."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.is_watched = False
        self.looked, self.stored, self.answered = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def put(self, slot: int, messages: Any, *, in_order: bool) -> None:
        await self.looked.wait()
        await super().put(slot, messages, in_order=in_order)
        self.stored.set()

    async def keys(self) -> list[SpilledKey]:
        found = await super().keys()
        if not self.looked.is_set() and self.is_watched:
            self.looked.set()
            await self.stored.wait()
            await asyncio.sleep(0)
            self.answered.set()
        return found


async def test_a_key_is_not_forgotten_by_an_answer_from_before_it_was_stored(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.05)
    await Mailbox(broker).ensure()
    name = fresh("spilling")
    stated = {"handler": "on_event", "consumer": {"stream": "S"}, "ordered_by": {"token": 2}}
    spec = make_manifest({name: stated}).functions[name]
    key = key_of(KeySpec(token=2))
    queue = FairQueue(key, order_key=key)
    queues = SlowAnswers(broker, name, spec)
    buffer = PrefetchBuffer(at_least=4, at_most=4, max_bytes=1_000_000, queue=queue)
    settlement = cast("Settlement", SimpleNamespace(ack_moved=lambda _: None))
    spill = Spill(queues, buffer, queue, settlement, least=1, wake_pullers=lambda: None)
    await spill.start()
    places = Places()

    for number in range(1, 9):
        reply = f"$JS.ACK.S.{name}.1.{number}.{number}.1700000000000000000.0"
        message = Message("s.key", b"", reply=reply, stream="S", sequence=number)
        if spill.admit(message, places):
            buffer.add(message, places)
    queues.is_watched = True
    await asyncio.wait_for(queues.answered.wait(), 60)

    async def is_released() -> bool:
        return places.taken == queue.waiting

    await eventually(is_released, "the end of the moving")
    assert [each.name for each in await SpillQueues.keys(queues)] == [name_of("key")]
    assert name_of("key") in spill._keys
    await spill.stop()
