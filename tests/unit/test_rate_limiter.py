"""Token buckets: what one gives out, and what several give out that share their uses."""

import asyncio
from collections import Counter

import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.domain.rate_limiter import RateLimiter
from functions.domain.rate_sharing import RateSharing, Shared, Uses

NOW_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000
PAUSES = st.lists(st.integers(0, 3 * SECOND_NS), max_size=300)


class Meeting:
    """The store as its contract has it, in memory: `settle` of rate_sharing.sql."""

    def __init__(self) -> None:
        self.arrivals: dict[str, int] = {}
        self.sharers: set[str] = set()
        self.told: Counter[str] = Counter()

    async def share(self, uses: Uses) -> Shared:
        self.sharers.add(uses.sharer)
        for use in uses.uses:
            known = self.arrivals.get(use.key, 0)
            self.arrivals[use.key] = max(known + use.added_ns, use.arrival_ns)
            self.told[use.key] += 1
        found = {use.key: self.arrivals[use.key] for use in uses.uses}
        return Shared(sharers=len(self.sharers), arrivals=found)


class Hosts:
    """Several processes that limit the same devices, and share once a second."""

    def __init__(self, count: int, rate_per_s: float, burst: int) -> None:
        self.meeting, self.now_ns = Meeting(), NOW_NS
        self.limiters: list[RateLimiter[str]] = [
            RateLimiter(rate_per_s, burst) for _ in range(count)
        ]
        self.sharings = [
            RateSharing("x", {"device": each}, self.meeting, LOG, now_ns=lambda: self.now_ns)
            for each in self.limiters
        ]
        for _ in range(2):  # All have to know that there are others.
            self.share()

    def share(self) -> None:
        for sharing in self.sharings:
            asyncio.run(sharing.share())

    def send(self, per_s: float, seconds: int, key: str = "d") -> tuple[int, int]:
        """Send evenly, each message to the next host; how many were accepted and sent."""
        accepted = sent = 0
        for second in range(seconds):
            while sent < per_s * (second + 1):
                self.now_ns = NOW_NS + int(sent / per_s * SECOND_NS)
                accepted += self.limiters[sent % len(self.limiters)].take(key, self.now_ns)
                sent += 1
            self.share()
        return accepted, sent


LOG = structlog.stdlib.get_logger()


@given(PAUSES, st.floats(0.1, 1000), st.integers(1, 50))
def test_in_any_stretch_a_key_gets_at_most_its_burst_and_its_rate(
    pauses: list[int], rate_per_s: float, burst: int
) -> None:
    limiter: RateLimiter[str] = RateLimiter(rate_per_s, burst)
    taken: list[int] = []
    now_ns = NOW_NS
    for pause_ns in pauses:
        now_ns += pause_ns
        if limiter.take("k", now_ns):
            taken.append(now_ns)
    interval_ns = int(SECOND_NS / rate_per_s)
    for first in range(0, len(taken), 7):
        for last in range(first, len(taken), 5):
            most = burst + (taken[last] - taken[first]) // interval_ns
            assert last - first + 1 <= most


@given(st.floats(0.2, 1000), st.integers(1, 50), st.integers(1, 200))
def test_a_key_that_keeps_its_rate_is_never_refused(
    rate_per_s: float, burst: int, count: int
) -> None:
    limiter: RateLimiter[str] = RateLimiter(rate_per_s, burst)
    interval_ns = int(SECOND_NS / rate_per_s)
    assert all(limiter.take("k", NOW_NS + number * interval_ns) for number in range(count))


@given(PAUSES, PAUSES)
def test_keys_do_not_use_up_each_others_tokens(mine: list[int], others: list[int]) -> None:
    alone: RateLimiter[str] = RateLimiter(5, 3)
    among: RateLimiter[str] = RateLimiter(5, 3)
    for number, pause_ns in enumerate(others):
        among.take(f"other {number % 5}", NOW_NS + pause_ns)
    now_ns = NOW_NS
    for pause_ns in mine:
        now_ns += pause_ns
        assert alone.take("mine", now_ns) == among.take("mine", now_ns)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.floats(5, 60), st.integers(1, 20))
def test_hosts_that_share_give_out_the_rate_of_one_in_the_long_run(
    count: int, per_s: float, burst: int
) -> None:
    hosts = Hosts(count, 5, burst)
    seconds = 60
    accepted, _ = hosts.send(per_s, seconds)
    # Each gives out its own burst before it hears of the others, and a second's tokens after.
    assert accepted <= 5 * seconds + count * burst + 5 * count + 1
    if per_s > 5 * count:
        alone: RateLimiter[str] = RateLimiter(5, burst)
        of_one = sum(alone.take("d", NOW_NS + n * SECOND_NS // 50) for n in range(50 * seconds))
        # One that sends little more than the rate pays for what hosts gave it within a second.
        assert accepted >= 0.8 * of_one - 5 * count


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.floats(0.1, 4.9), st.integers(5, 20))
def test_a_device_within_its_rate_is_never_refused_however_many_hosts_share(
    count: int, per_s: float, burst: int
) -> None:
    accepted, sent = Hosts(count, 5, burst).send(per_s, 40)
    assert accepted == sent


def test_a_device_far_below_its_rate_is_not_told_of() -> None:
    hosts = Hosts(3, 5, 20)
    hosts.send(1, 30)
    assert hosts.meeting.told["device/d"] == 0
    hosts.send(12, 30, "busy")
    assert hosts.meeting.told["device/busy"] > 30


def test_a_backlog_is_judged_by_each_host_alone() -> None:
    """Hosts read messages of different times then; nobody is charged for another hour."""
    hosts = Hosts(2, 5, 20)
    first, second = hosts.limiters
    hosts.now_ns = NOW_NS + 3600 * SECOND_NS
    for number in range(100):
        assert first.take("d", NOW_NS + number * SECOND_NS // 5)
        assert second.take("d", NOW_NS + (number + 60) * SECOND_NS // 5)
        hosts.share()
    assert hosts.meeting.told["device/d"] == 0


def test_a_process_that_is_alone_counts_nothing() -> None:
    hosts = Hosts(1, 5, 20)
    hosts.send(50, 10)
    assert hosts.limiters[0]._counts is None
    assert hosts.meeting.told == Counter()


def test_the_store_gets_the_busiest_keys_only() -> None:
    hosts = Hosts(2, 5, 20)
    for limiter in hosts.limiters:
        for number in range(3_000):
            for _ in range(3 + (number < 500)):
                limiter.take(f"d{number}", hosts.now_ns)
    hosts.share()
    assert len(hosts.meeting.told) <= 2 * 2_000
    assert all(hosts.meeting.told[f"device/d{number}"] == 2 for number in range(500))


def test_a_clock_put_back_silences_no_device_of_hosts_that_share() -> None:
    hosts = Hosts(2, 5, 20)
    hosts.send(50, 10)
    earlier_ns = NOW_NS - 3600 * SECOND_NS
    for limiter in hosts.limiters:
        assert [limiter.take("d", earlier_ns) for _ in range(21)] == [True] * 20 + [False]
