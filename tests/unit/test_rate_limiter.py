"""Token buckets: what one gives out, and what several give out that share their uses."""

import random
from collections import Counter

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.domain.rate_limiter import RateLimiter, SteadyClock
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
            # Without an event loop, since nothing waits here: it would take most of the time.
            with pytest.raises(StopIteration):
                sharing.share().send(None)

    def send(self, per_s: float, seconds: int, key: str = "d") -> tuple[int, int]:
        """Send evenly, each message to the next host; how many were accepted and sent."""
        return self.send_on(per_s, seconds, key, NOW_NS)

    def send_on(
        self, per_s: float, seconds: int, key: str = "d", from_ns: int | None = None
    ) -> tuple[int, int]:
        """As `send`, after what was sent before."""
        began_ns = self.now_ns if from_ns is None else from_ns
        accepted = sent = 0
        for second in range(seconds):
            while sent < per_s * (second + 1):
                self.now_ns = began_ns + int(sent / per_s * SECOND_NS)
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


@given(st.lists(st.integers(0, 4 * SECOND_NS), min_size=1, max_size=50))
def test_what_comes_out_of_order_finds_the_bucket_as_the_newest_left_it(
    ages_ns: list[int],
) -> None:
    limiter, clock = RateLimiter[str](0.001, 3), SteadyClock()
    accepted = [limiter.take("k", clock.read(NOW_NS - age_ns)) for age_ns in ages_ns]
    assert accepted == [True] * min(3, len(ages_ns)) + [False] * (len(ages_ns) - 3)
    # What is older than a few seconds is of a clock that was put back.
    assert clock.read(NOW_NS - 3600 * SECOND_NS) == NOW_NS - 3600 * SECOND_NS
    assert limiter.take("k", NOW_NS - 3600 * SECOND_NS)


def test_work_is_charged_when_its_size_is_known_and_what_is_owed_is_paid_back_first() -> None:
    limiter: RateLimiter[str] = RateLimiter(1, 10)
    for tokens in (4, 4, 1):
        assert not limiter.is_empty("k", NOW_NS)
        limiter.charge("k", NOW_NS, tokens)
    assert not limiter.is_empty("k", NOW_NS)
    limiter.charge("k", NOW_NS, 1)
    assert limiter.is_empty("k", NOW_NS)
    assert not limiter.is_empty("other", NOW_NS)
    assert not limiter.is_empty("k", NOW_NS + SECOND_NS)


@given(st.floats(0.2, 1000), st.integers(1, 50), st.integers(1, 10**12))
def test_a_debt_of_any_size_counts_and_is_paid_back_within_the_time_of_a_bucket(
    rate_per_s: float, burst: int, tokens: int
) -> None:
    limiter: RateLimiter[str] = RateLimiter(rate_per_s, burst)
    limiter.charge("k", NOW_NS, tokens)
    assert limiter.is_empty("k", NOW_NS) == (tokens >= burst)
    assert not limiter.is_empty("k", NOW_NS + burst * int(SECOND_NS / rate_per_s))


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


def bound(count: int, rate_per_s: float, burst: int, seconds: float) -> float:
    """What hosts together give out at most; see `rate_sharing`."""
    return rate_per_s * seconds + count * (burst + rate_per_s + 2)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([2, 3, 10, 12]),
    st.sampled_from([0.2, 1.0, 5.0, 60.0, 500.0]),
    st.integers(1, 20),
    st.sampled_from([0.3, 1.0, 2.0, 5.0, 30.0]),
    st.randoms(use_true_random=False),
)
def test_many_hosts_keep_low_and_high_rates_within_the_bound(
    count: int, rate_per_s: float, burst: int, times: float, chance: random.Random
) -> None:
    """A device sends so many times its rate, each message to any host."""
    hosts = Hosts(count, rate_per_s, burst)
    per_s = min(rate_per_s * times, 1000.0)
    seconds = int(min(max(60, 100 / rate_per_s), 3_000 / per_s + 5))
    accepted = sent = 0
    for second in range(seconds):
        while sent < per_s * (second + 1):
            hosts.now_ns = NOW_NS + int(sent / per_s * SECOND_NS)
            accepted += hosts.limiters[chance.randrange(count)].take("d", hosts.now_ns)
            sent += 1
        hosts.share()
    assert accepted <= bound(count, rate_per_s, burst, seconds)


def test_ten_hosts_of_which_each_takes_less_than_it_may_keep_the_rate_together() -> None:
    """Ten tokens a second of which no host takes more than one: each alone is far below five."""
    hosts = Hosts(10, 5, 20)
    accepted, _ = hosts.send(10, 300)
    assert accepted <= bound(10, 5, 20, 300)
    later, _ = hosts.send_on(10, 300)
    # By then they have paid back what they gave out before they heard of each other.
    assert later == pytest.approx(5 * 300, rel=0.05)


def test_a_rate_below_one_a_second_holds_over_ten_hosts() -> None:
    hosts = Hosts(10, 0.2, 1)
    accepted, _ = hosts.send(10, 600)
    assert accepted <= bound(10, 0.2, 1, 600)
    later, _ = hosts.send_on(10, 600)
    assert later == pytest.approx(0.2 * 600, rel=0.2)


def test_who_chooses_the_hosts_gets_at_most_a_quarter_more() -> None:
    hosts = Hosts(10, 5, 20)
    spared = 5 / 4 / 10
    accepted = 0
    seconds = 800
    for second in range(seconds):
        hosts.now_ns = NOW_NS + second * SECOND_NS
        accepted += sum(hosts.limiters[0].take("d", hosts.now_ns) for _ in range(20))
        if second % int(1 / spared) == 0:
            accepted += sum(each.take("d", hosts.now_ns) for each in hosts.limiters[1:])
        hosts.share()
    assert accepted <= 1.25 * 5 * seconds + 10 * (20 + 5 + 2)


def test_more_busy_keys_than_one_report_holds_are_told_of_in_turn() -> None:
    hosts = Hosts(2, 5, 20)
    for _ in range(8):
        for limiter in hosts.limiters:
            for number in range(3_000):
                for _ in range(4):
                    limiter.take(f"d{number}", hosts.now_ns)
        hosts.now_ns += SECOND_NS
        hosts.share()
    assert len(hosts.meeting.told) == 3_000


def test_what_was_not_told_before_a_clock_was_put_back_makes_no_debt() -> None:
    hosts = Hosts(2, 5, 20)
    hosts.send(1, 10)
    for limiter in hosts.limiters:
        assert limiter.take("other", hosts.now_ns - 3600 * SECOND_NS)
    hosts.now_ns -= 3600 * SECOND_NS
    hosts.share()
    hosts.now_ns += SECOND_NS
    for limiter in hosts.limiters:
        assert all(limiter.take("d", hosts.now_ns) for _ in range(3))
    hosts.share()
    for limiter in hosts.limiters:
        assert all(limiter.take("d", hosts.now_ns) for _ in range(10))


def test_debts_of_hosts_are_no_reason_to_doubt_the_clock() -> None:
    """A stream's clock may be put back by little, while devices that owe are refused."""
    hosts = Hosts(5, 5, 20)
    hosts.send(100, 5)
    back_ns = hosts.now_ns - 10 * SECOND_NS
    for limiter in hosts.limiters:
        assert not limiter.take("d", hosts.now_ns)
        assert limiter.take("e", hosts.now_ns)
        assert all(limiter.take("e", back_ns) for _ in range(20))
        assert not limiter.take("e", back_ns)


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
