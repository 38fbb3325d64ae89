"""Which devices send far more than a device may."""

from datetime import UTC, datetime, timedelta

from functions.device_auth.floods import FloodMeter, Traffic
from functions.device_auth.shut_out import Blocked

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = timedelta(seconds=30)
ONE, OTHER = ("server", 1), ("server", 2)


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def meter() -> FloodMeter:
    return FloodMeter(messages_per_s=100, bytes_per_s=1000, window=WINDOW)


def test_what_a_connection_sent_since_the_last_look_counts() -> None:
    floods = meter()
    assert floods.judge({ONE: Traffic(NOW, 100, 100), OTHER: Traffic(NOW, 0, 0)}, after(30)) == []
    sent = {ONE: Traffic(NOW, 3100, 100), OTHER: Traffic(NOW, 3001, 0)}
    assert floods.judge(sent, after(60)) == [OTHER]
    # The same numbers again: nothing was sent.
    assert floods.judge(sent, after(90)) == []


def test_bytes_count_as_messages_do() -> None:
    assert meter().judge({ONE: Traffic(NOW, 1, 30_001)}, after(30)) == [ONE]


def test_a_host_that_has_just_started_judges_by_a_connections_whole_life() -> None:
    traffic = {ONE: Traffic(after(-1000), 90_000, 0), OTHER: Traffic(after(-1000), 110_000, 0)}

    assert meter().judge(traffic, NOW) == [OTHER]


def test_a_device_may_send_at_once_what_it_has_kept() -> None:
    floods = meter()
    assert floods.judge({ONE: Traffic(NOW, 3000, 0)}, after(1)) == []
    # Looks that follow at once say nothing about an average.
    assert floods.judge({ONE: Traffic(NOW, 9000, 0)}, after(2)) == []
    assert floods.judge({ONE: Traffic(NOW, 9000, 0)}, after(31)) == [ONE]


def test_connections_that_have_ended_are_forgotten() -> None:
    floods = meter()
    floods.judge({ONE: Traffic(NOW, 100, 0)}, after(30))
    floods.judge({}, after(60))

    assert floods._known == {}


def test_a_blocked_device_may_come_back_later() -> None:
    blocked = Blocked(timedelta(seconds=60))
    blocked.add(("t", "d"), NOW)

    assert blocked.has(("t", "d"), after(59))
    assert not blocked.has(("t", "d"), after(60))
    assert not blocked.has(("t", "e"), after(1))


def test_who_is_blocked_again_waits_for_twice_as_long_and_at_most_a_day() -> None:
    blocked, device, now = Blocked(timedelta(seconds=60)), ("t", "d"), NOW
    waited = []
    for _ in range(14):
        blocked.add(device, now)
        began = now
        while blocked.has(device, now):
            now += timedelta(seconds=30)
        waited.append(now - began)

    assert waited[:3] == [timedelta(seconds=seconds) for seconds in (60, 120, 240)]
    assert waited[-1] == timedelta(days=1)
    blocked.add(("t", "e"), now + timedelta(days=2))
    assert blocked._until.keys() == {("t", "e")}
