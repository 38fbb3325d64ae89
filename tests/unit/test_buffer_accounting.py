"""The buffer's counts equal its content, for any order in which messages with keys come and go."""

import asyncio
from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime.binding.buffer import Places, PrefetchBuffer
from runtime.manifest.model import KeySpec
from runtime.message import Message
from runtime.queueing.fair_queue import FairQueue
from runtime.queueing.keys import key_of

KEYS = st.sampled_from("klm")
PLACES = st.sampled_from([0, 1])


class OrderedBuffer(RuleBasedStateMachine):
    """Messages of three keys, in the buffer of an ordered function."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.sequence = 0
        self.out: list[Message] = []
        self.released: set[Message] = set()
        self.added: list[Message] = []
        self.places = [Places(), Places()]
        self.queue = FairQueue(key_of(KeySpec(token=2)), order_key=key_of(KeySpec(token=3)))
        self.buffer = self._make()

    def _make(self) -> PrefetchBuffer:
        async def make() -> PrefetchBuffer:
            return PrefetchBuffer(at_least=10, at_most=10, max_bytes=1000, queue=self.queue)

        return self.loop.run_until_complete(make())

    def _add(self, message: Message, places: int) -> None:
        self.added.append(message)
        self.buffer.add(message, self.places[places])

    @rule(key=KEYS, places=PLACES, size=st.integers(0, 9))
    def a_message_comes(self, key: str, places: int, size: int) -> None:
        self.sequence += 1
        self._add(
            Message(f"s.t.{key}", bytes(size), sequence=self.sequence, size_bytes=size + 1), places
        )

    @rule(key=KEYS, places=PLACES)
    def one_comes_that_failed_elsewhere(self, key: str, places: int) -> None:
        self.sequence += 1
        message = Message(f"s.t.{key}", b"x", sequence=self.sequence, size_bytes=5, delay_s=1000)
        self._add(message, places)

    @precondition(lambda self: self.added)
    @rule(data=st.data(), places=PLACES)
    def one_is_delivered_again(self, data: Any, places: int) -> None:
        first = data.draw(st.sampled_from(self.added))
        self._add(
            Message(first.subject, first.data, sequence=first.sequence, attempt=2, size_bytes=7),
            places,
        )

    @precondition(lambda self: self.buffer.ready)
    @rule()
    def one_is_taken(self) -> None:
        message = self.buffer.take()
        assert message in self.buffer.held
        assert message not in self.buffer._delays
        self.out.append(message)

    @precondition(lambda self: self.buffer.ready)
    @rule(count=st.integers(1, 4), size=st.integers(0, 20))
    def a_batch_is_taken(self, count: int, size: int) -> None:
        self.out += self.buffer.take_all(count, size)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def one_is_done(self, data: Any) -> None:
        message = data.draw(st.sampled_from(self.out))
        self.out.remove(message)
        self.released.add(message)
        self.buffer.release(message)

    @precondition(lambda self: self.out)
    @rule()
    def all_are_done(self) -> None:
        self.buffer.release_all(self.out)
        self.released.update(self.out)
        self.out = []

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def one_fails(self, data: Any) -> None:
        message = data.draw(st.sampled_from(self.out))
        self.out.remove(message)
        self.buffer.delay(message, 1000)

    @precondition(lambda self: self.buffer._delays)
    @rule(data=st.data())
    def one_is_due(self, data: Any) -> None:
        message = data.draw(st.sampled_from(list(self.buffer._delays)))
        self.buffer._delays[message].cancel()
        self.buffer._resume(message)

    @invariant()
    def it_counts_what_it_holds(self) -> None:
        buffer, queue = self.buffer, self.queue
        assert set(buffer.held) == set(self.added) - self.released
        assert buffer.held_bytes == sum(each.size_bytes for each in buffer.held)
        waiting = [each for each in buffer.held if each not in self.out]
        assert buffer.ready_bytes == sum(len(each.data) for each in waiting)
        assert queue.waiting == len(waiting)
        assert len(queue) <= len(waiting)
        blocked_keys = {each.subject for each in buffer._delays}
        blocked = [each for each in waiting if each.subject in blocked_keys]
        assert buffer._blocked_bytes == sum(each.size_bytes for each in blocked)
        for places in self.places:
            mine = [each for each, at in buffer.held.items() if at is places]
            assert places.taken == len(mine) - len([each for each in blocked if each in mine])

    @invariant()
    def of_a_key_one_runs(self) -> None:
        assert max(Counter(each.subject for each in self.out).values(), default=0) <= 1

    def teardown(self) -> None:
        """Check that all remaining messages can be called at the end."""
        try:
            self._call_all()
        finally:
            self.loop.close()

    def _call_all(self) -> None:
        for message in list(self.buffer._delays):
            self.buffer._delays[message].cancel()
            self.buffer._resume(message)
        self.buffer.release_all(self.out)
        while self.buffer.ready:
            self.buffer.release(self.buffer.take())
        assert not self.buffer.held
        assert (self.queue.waiting, self.queue.groups, self.queue.is_idle) == (0, 0, True)
        assert [each.taken for each in self.places] == [0, 0]


TestOrderedBuffer = OrderedBuffer.TestCase
TestOrderedBuffer.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
