from hypothesis import given
from hypothesis import strategies as st

from runtime.dispatch import retry_delay_s
from runtime.manifest.model import RetrySpec
from runtime.manifest.values import Seconds


def _policy(**fields: object) -> RetrySpec:
    return RetrySpec.model_validate(fields)


def _delays(policy: RetrySpec, attempts: int, chance: float = 0.5) -> list[float]:
    return [retry_delay_s(policy, attempt, chance) for attempt in range(1, attempts + 1)]


def test_delays_grow_by_their_factor_up_to_the_cap() -> None:
    policy = _policy(delay="1s", factor=3, cap="20s")

    assert _delays(policy, 5) == [1, 3, 9, 20, 20]


def test_a_schedule_is_followed_and_its_last_entry_repeated() -> None:
    policy = _policy(schedule=["5s", "1m", "1h"], jitter=0)

    assert _delays(policy, 5) == [5, 60, 3600, 3600, 3600]
    assert policy.max_attempts == 4


def test_jitter_spreads_a_delay_evenly_to_both_sides() -> None:
    policy = _policy(delay="10s", jitter=0.2)

    assert [retry_delay_s(policy, 1, chance) for chance in (0.0, 0.5, 1.0)] == [8, 10, 12]


def test_a_policy_without_jitter_leaves_nothing_to_chance() -> None:
    policy = _policy(delay="2s", jitter=0)

    assert _delays(policy, 3, 0.0) == _delays(policy, 3, 1.0) == [2, 4, 8]


@given(
    attempt=st.integers(1, 1_000_000),
    chance=st.floats(0, 1),
    policy=st.builds(
        RetrySpec,
        delay=st.floats(0.001, 86_400).map(Seconds),
        factor=st.floats(1, 10),
        cap=st.floats(0.001, 7 * 86_400).map(Seconds),
        jitter=st.floats(0, 1),
    ),
)
def test_no_delay_is_negative_or_beyond_the_cap_and_its_jitter(
    attempt: int, chance: float, policy: RetrySpec
) -> None:
    wait_s = retry_delay_s(policy, attempt, chance)

    assert 0 <= wait_s <= policy.cap * (1 + policy.jitter) * 1.000001
