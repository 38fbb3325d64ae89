"""The rate limiter, with a clock that only the test advances."""

import asyncio
from collections.abc import Callable

import pytest

from runtime.binding.admission import Admission
from runtime.binding.buffer import Places, PrefetchBuffer
from runtime.binding.rate_limiter import PACE_S, RateLimiter
from runtime.manifest.model import RateSpec
from runtime.message import Message
from runtime.queueing.token_bucket import TokenBucket, token_bucket_of


class ManualLoop:
    """An event loop's clock and timers, advanced by the test."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._due: list[tuple[float, asyncio.TimerHandle]] = []

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        handle = asyncio.TimerHandle(self.now_s + delay, callback, (), loop)
        self._due.append((self.now_s + delay, handle))
        return handle

    def pass_time(self, seconds: float) -> None:
        """Advance the clock, and run every timer at its time."""
        until_s = self.now_s + seconds
        while due := [entry for entry in self._due if entry[0] <= until_s]:
            first = min(due, key=lambda entry: entry[0])
            self._due.remove(first)
            self.now_s = first[0]
            if not first[1].cancelled():
                first[1]._run()
        self.now_s = until_s

    @property
    def is_idle(self) -> bool:
        return all(handle.cancelled() for _, handle in self._due)


class LimitedBuffer:
    """A rate limiter in front of a buffer, and the number of wake-ups of the pull loops."""

    def __init__(self, limit: str, burst: int | None = None, *, share: int = 1) -> None:
        self.loop = ManualLoop()
        self.buffer = PrefetchBuffer(at_least=100, at_most=100, max_bytes=1_000_000)
        self.places = Places()
        self.wakes = 0
        rate = RateSpec.model_validate({"limit": limit, "burst": burst})
        token_bucket = token_bucket_of(rate, share, self.loop.time)
        self.rate_limiter = RateLimiter(
            self.buffer, token_bucket, wake_pullers=self._wake, loop=self.loop
        )
        self.admission = Admission([self.rate_limiter], self.buffer)

    def _wake(self) -> None:
        self.wakes += 1

    def give(self, count: int) -> None:
        for number in range(count):
            self.admission.admit(Message("s", b"x", sequence=number), self.places)

    @property
    def let_in(self) -> int:
        return len(self.buffer.ready)

    @property
    def here(self) -> int:
        return self.buffer.count()


async def test_a_burst_passes_at_once_and_then_one_message_per_interval() -> None:
    gate = LimitedBuffer("10/s", 5)

    gate.give(8)
    at_once = gate.let_in
    gate.loop.pass_time(0.11)
    after_one = gate.let_in
    gate.loop.pass_time(0.11)
    after_two = gate.let_in
    gate.loop.pass_time(10)

    assert (at_once, after_one, after_two, gate.let_in, gate.here) == (5, 6, 7, 8, 8)
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
    gate.loop.pass_time(10)

    # A message due at this moment may be released at the next call.
    assert 0 <= expected - gate.let_in <= max(1, RateSpec(limit=limit).limit * PACE_S)


async def test_no_more_tokens_are_kept_than_the_burst() -> None:
    gate = LimitedBuffer("10/s", 5)

    gate.loop.pass_time(3600)
    gate.give(20)

    assert gate.let_in == 5


async def test_as_many_may_be_fetched_as_there_are_tokens_left() -> None:
    gate = LimitedBuffer("10/s", 5)

    before = (gate.rate_limiter.capacity(), gate.rate_limiter.mailbox_capacity(0))
    gate.give(3)
    between = (gate.rate_limiter.capacity() - gate.here, gate.rate_limiter.mailbox_capacity(0))
    gate.give(2)
    used_up = (gate.rate_limiter.capacity() - gate.here, gate.rate_limiter.mailbox_capacity(0))
    gate.give(4)
    too_many = (gate.rate_limiter.capacity() - gate.here, gate.rate_limiter.mailbox_capacity(0))
    gate.loop.pass_time(0.6)

    assert (before, between, used_up, too_many) == ((5, 5), (2, 2), (0, 0), (0, 0))
    # Four of the six tokens since then went to messages that had arrived too early.
    assert (gate.here, gate.let_in, gate.rate_limiter.capacity() - gate.here) == (9, 9, 2)


async def test_the_function_s_own_slots_stay_the_most_that_is_fetched() -> None:
    gate = LimitedBuffer("10000/s", 5000)

    assert (gate.rate_limiter.capacity(), gate.rate_limiter.mailbox_capacity(0)) == (100, 25)


async def test_pull_loops_are_woken_for_each_token_until_the_bucket_is_full() -> None:
    gate = LimitedBuffer("10/s", 5)

    idle_before = gate.loop.is_idle
    gate.give(5)
    gate.loop.pass_time(3600)

    assert idle_before
    assert gate.wakes == 5
    assert gate.loop.is_idle


async def test_processes_of_one_host_share_the_rate() -> None:
    gate = LimitedBuffer("10/s", 8, share=4)

    gate.give(20)
    at_once = gate.let_in
    gate.loop.pass_time(2)

    assert (at_once, gate.let_in) == (2, 7)


@pytest.mark.parametrize(("limit", "burst"), [("1/h", 1), ("9/s", 1), ("50/s", 5), ("5000/s", 500)])
async def test_the_default_burst_is_the_rate_of_a_tenth_of_a_second(limit: str, burst: int) -> None:
    gate = LimitedBuffer(limit)

    gate.give(1000)

    assert gate.let_in == burst


async def test_messages_that_wait_at_the_end_are_released_and_no_timer_is_left() -> None:
    gate = LimitedBuffer("10/s", 2)

    gate.give(5)
    early = gate.rate_limiter.stop()
    gate.loop.pass_time(3600)

    assert [message.sequence for message in early] == [2, 3, 4]
    assert (gate.let_in, gate.wakes) == (2, 0)


async def test_a_late_look_at_the_clock_makes_no_extra_token() -> None:
    loop = ManualLoop()
    token_bucket = TokenBucket(10, 1, loop.time)
    taken = 0

    for _ in range(1000):
        loop.pass_time(0.013)
        taken += token_bucket.take()

    assert 0.5 * 130 <= taken <= 130
