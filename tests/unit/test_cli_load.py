import math

import pytest

from runtime.cli.instances import Recent
from runtime.cli.load import Load, load_of, percentile, show_rate, show_seconds, show_share, sum_of


def recent(seconds: float, messages: int, errors: int = 0, **calls: int) -> Recent:
    bounds = {bound.replace("_", "."): number for bound, number in calls.items()}
    return Recent.model_validate(
        {
            "seconds": seconds,
            "messages": messages,
            "errors": errors,
            "handler_seconds": {key.removeprefix("le"): number for key, number in bounds.items()},
        }
    )


def test_rates_of_hosts_with_windows_of_different_lengths_add_up() -> None:
    load = load_of([recent(10.0, 100, 10), recent(2.0, 40)])

    assert load.messages_per_s == 30.0
    assert load.error_share == pytest.approx(10 / 140)


def test_percentiles_are_of_all_calls_and_not_the_mean_of_the_hosts() -> None:
    fast, slow = recent(10.0, 990, le0_001=990), recent(10.0, 10, le1=10)

    load = load_of([fast, slow])

    assert load.p50_s == pytest.approx(0.00075, abs=0.0002)
    assert load.p99_s == pytest.approx(0.001)
    assert percentile(load.calls, 0.999) == pytest.approx(0.95)


def test_without_messages_there_is_neither_a_share_nor_a_time() -> None:
    load = load_of([recent(10.0, 0)])

    assert (load.messages_per_s, load.error_share, load.p50_s, load.p99_s) == (
        0.0,
        None,
        None,
        None,
    )
    assert sum_of([]) == Load()


def test_a_call_beyond_the_last_bound_makes_the_percentile_infinite() -> None:
    load = load_of([Recent(seconds=10, messages=1, errors=0, handler_seconds={math.inf: 1})])

    assert load.p99_s == math.inf
    assert show_seconds(load.p99_s) == ">60s"


@pytest.mark.parametrize(
    ("per_s", "shown"),
    [
        *((0.0, "0"), (0.01, "<0.1"), (0.3, "0.3"), (9.96, "10"), (57.4, "57"), (1234, "1,234")),
        *((9_999.6, "10.0k"), (98_300, "98.3k"), (999_949, "999.9k"), (1_200_000, "1.2M")),
    ],
)
def test_a_rate_has_six_characters_at_most(per_s: float, shown: str) -> None:
    assert show_rate(per_s) == shown
    assert len(shown) <= 6


@pytest.mark.parametrize(
    ("share", "shown"),
    [(None, "-"), (0.0, "0"), (0.0001, "<0.1%"), (0.034, "3.4%"), (0.0996, "10%"), (1.0, "100%")],
)
def test_a_share_is_shown_in_percent(share: float | None, shown: str) -> None:
    assert show_share(share) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        *((None, "-"), (0.0000052, "5.2µs"), (0.000012, "12µs"), (0.0014, "1.4ms")),
        *((0.2504, "250ms"), (0.9996, "1.0s"), (2.5, "2.5s"), (60.0, "60s")),
    ],
)
def test_a_time_has_five_characters_at_most(seconds: float | None, shown: str) -> None:
    assert show_seconds(seconds) == shown
    assert len(shown) <= 5
