"""The queue of a function with a rate, with a clock that only the test advances."""

import asyncio

import pytest

from runtime.binding.buffer import Places, PrefetchBuffer
from runtime.manifest.model import RateSpec
from runtime.message import Message
from runtime.queueing.rate_limited_queue import RateLimitedQueue
from runtime.queueing.token_bucket import TokenBucket, token_bucket_of


class ManualClock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def time(self) -> float:
        return self.now_s


class LimitedBuffer:
    """A buffer with a rate-limited queue, and a clock that the test advances."""

    def __init__(self, limit: str, burst: int | None = None, *, share: int = 1) -> None:
        self.clock = ManualClock()
        rate = RateSpec.model_validate({"limit": limit, "burst": burst})
        self.queue = RateLimitedQueue(token_bucket_of(rate, share, self.clock.time))
        self.buffer = PrefetchBuffer(
            at_least=100, at_most=100, max_bytes=1_000_000, queue=self.queue
        )
        self.places = Places()

    def give(self, count: int) -> None:
        for number in range(count):
            self.buffer.add(Message("s", b"x", sequence=number), self.places)

    @property
    def admitted(self) -> int:
        return len(self.buffer.ready)

    @property
    def here(self) -> int:
        return self.buffer.count()

    @property
    def room(self) -> tuple[int, int]:
        """How many more messages of the stream and of the mailbox may come."""
        return self.buffer.stream_capacity() - self.here, self.buffer.mailbox_capacity(0)


async def test_a_burst_passes_at_once_and_then_one_message_per_interval() -> None:
    gate = LimitedBuffer("10/s", 5)

    gate.give(8)
    admitted = [gate.admitted]
    for pause_s in (0.11, 0.11, 10):
        gate.clock.now_s += pause_s
        admitted.append(gate.admitted)

    assert (admitted, gate.here) == ([5, 6, 7, 8], 8)
    taken = gate.buffer.take_all(100, 1_000_000)
    assert [message.sequence for message in taken] == list(range(8))


@pytest.mark.parametrize(
    ("limit", "burst", "expected"),
    [("50/s", 10, 510), ("100/m", 1, 17), ("5000/s", 500, 50_500), ("3600/h", 100, 110)],
)
async def test_in_ten_seconds_as_many_messages_pass_as_burst_and_limit_allow(
    limit: str, burst: int, expected: int
) -> None:
    gate = LimitedBuffer(limit, burst)

    gate.give(60_000)
    for _ in range(1000):
        gate.clock.now_s += 0.01
        admitted = gate.admitted

    assert 0 <= expected - admitted <= 1


async def test_no_more_tokens_are_kept_than_the_burst() -> None:
    gate = LimitedBuffer("10/s", 5)

    gate.clock.now_s += 3600
    gate.give(20)

    assert gate.admitted == 5


async def test_as_many_may_be_fetched_as_there_are_tokens_left() -> None:
    gate = LimitedBuffer("10/s", 5)

    rooms = [gate.room]
    for count in (3, 2, 4):
        gate.give(count)
        rooms.append(gate.room)
    for _ in range(6):
        gate.clock.now_s += 0.1001
        assert gate.admitted

    assert rooms == [(5, 5), (2, 2), (0, 0), (0, 0)]
    # Four of the six tokens since then went to messages that had arrived too early.
    assert (gate.here, gate.admitted, gate.room) == (9, 9, (2, 2))


async def test_the_function_s_own_slots_stay_the_most_that_is_fetched() -> None:
    assert LimitedBuffer("10000/s", 5000).room == (100, 25)


async def test_pull_loops_are_woken_for_each_token_until_the_bucket_is_full() -> None:
    time = asyncio.get_running_loop().time
    wakes: list[int] = []
    is_full = asyncio.Event()
    queue = RateLimitedQueue(TokenBucket(100, 5, time))

    def wake() -> None:
        wakes.append(queue.free_tokens())
        if wakes[-1] == 5:
            is_full.set()

    buffer = PrefetchBuffer(
        at_least=100,
        at_most=100,
        max_bytes=1_000_000,
        queue=queue,
        wake_pullers=wake,
    )
    for number in range(5):
        buffer.add(Message("s", b"x", sequence=number), Places())
    buffer.take_all(5, 1_000_000)
    waiting = asyncio.create_task(buffer.wait())

    await asyncio.wait_for(is_full.wait(), 60)
    waiting.cancel()

    assert 1 <= len(wakes) <= 5
    assert wakes == sorted(wakes)
    assert queue.next_in_s() is None


async def test_a_message_without_a_token_is_called_when_its_token_comes() -> None:
    time = asyncio.get_running_loop().time
    queue = RateLimitedQueue(TokenBucket(100, 1, time))
    buffer = PrefetchBuffer(at_least=9, at_most=9, max_bytes=1_000_000, queue=queue)
    for number in range(3):
        buffer.add(Message("s", b"x", sequence=number), Places())
    began_s = time()

    taken: list[int] = []
    async with asyncio.timeout(60):
        while len(taken) < 3:
            await buffer.wait()
            taken.append(buffer.take().sequence)

    assert taken == [0, 1, 2]
    assert time() - began_s >= 0.019


async def test_processes_of_one_host_share_the_rate() -> None:
    gate = LimitedBuffer("10/s", 8, share=4)

    gate.give(20)
    at_once = gate.admitted
    for _ in range(200):
        gate.clock.now_s += 0.01
        admitted = gate.admitted

    assert (at_once, admitted) == (2, 7)


@pytest.mark.parametrize(("limit", "burst"), [("1/h", 1), ("9/s", 1), ("50/s", 5), ("5000/s", 500)])
async def test_the_default_burst_is_the_rate_of_a_tenth_of_a_second(limit: str, burst: int) -> None:
    gate = LimitedBuffer(limit)

    gate.give(1000)

    assert gate.admitted == burst


async def test_messages_without_a_token_are_returned_at_the_end() -> None:
    gate = LimitedBuffer("10/s", 2)

    gate.give(5)
    early = gate.buffer.finish()
    gate.clock.now_s += 3600

    assert [message.sequence for message in early] == [2, 3, 4]
    assert gate.admitted == 2


async def test_a_late_look_at_the_clock_makes_no_extra_token() -> None:
    clock = ManualClock()
    token_bucket = TokenBucket(10, 1, clock.time)
    taken = 0

    for _ in range(1000):
        clock.now_s += 0.013
        taken += token_bucket.take()

    assert 0.5 * 130 <= taken <= 130
