"""The rates of devices: what goes on is limited, and what comes late passes."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from functions.ingest.device_rates import DeviceRates

NOW_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000
KEY = ("t", "d")


def rates() -> DeviceRates:
    return DeviceRates(5, 20, 5, 2_000)


def test_a_flush_of_what_was_measured_in_an_outage_passes_and_leaves_the_rate_alone() -> None:
    found = rates()
    for age_s in range(1_000, 0, -1):
        assert found.take(KEY, NOW_NS, NOW_NS - age_s * SECOND_NS, None), age_s
    live = [found.take(KEY, NOW_NS + SECOND_NS, NOW_NS + SECOND_NS, None) for _ in range(21)]
    assert live == [True] * 20 + [False]


@given(st.floats(0.1, 5), st.integers(1, 1_500), st.booleans())
def test_a_device_that_measures_within_its_rate_loses_nothing_however_long_the_outage(
    rate_per_s: float, readings: int, newest_first: bool
) -> None:
    found = rates()
    ages_ns = [int(number / rate_per_s * SECOND_NS) for number in range(readings)]
    for age_ns in ages_ns if newest_first else reversed(ages_ns):
        assert found.take(KEY, NOW_NS, NOW_NS - age_ns, None)


@given(
    st.lists(
        st.tuples(st.integers(0, SECOND_NS // 2), st.integers(-SECOND_NS, 10**7 * SECOND_NS)),
        max_size=400,
    ),
    st.integers(1, 50),
)
def test_whatever_times_a_device_writes_it_gets_at_most_both_rates(
    sent: list[tuple[int, int]], burst: int
) -> None:
    found = DeviceRates(5, burst, 2, 3 * burst)
    now_ns, accepted = NOW_NS, 0
    for pause_ns, age_ns in sent:
        now_ns += pause_ns
        accepted += found.take(KEY, now_ns, now_ns - age_ns, None)
    elapsed_s = (now_ns - NOW_NS) / SECOND_NS
    assert accepted <= 4 * burst + (5 + 2) * elapsed_s + 1


def test_a_message_that_its_broker_kept_back_is_late_too() -> None:
    found = rates()
    an_hour_ago = datetime.fromtimestamp(NOW_NS // SECOND_NS - 3600, UTC).isoformat()
    assert all(found.take(KEY, NOW_NS, None, an_hour_ago) for _ in range(1_000))
    now = datetime.fromtimestamp(NOW_NS // SECOND_NS, UTC).isoformat()
    other = ("t", "e")
    passed = [found.take(other, NOW_NS, None, now) for _ in range(21)]
    assert passed == [True] * 20 + [False]


def test_a_late_message_uses_the_rate_when_the_bucket_of_late_ones_is_empty() -> None:
    found = DeviceRates(5, 20, 5, 10)
    passed = [found.take(KEY, NOW_NS, NOW_NS - 3600 * SECOND_NS, None) for _ in range(31)]
    assert passed == [True] * 30 + [False]
