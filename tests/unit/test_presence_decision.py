"""Whether a device is online."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.presence.decision import Decision, Known, decide

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
NEVER = Known("offline", None, None, None, None, None, False, None, 600)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({}, None),
        # By messages alone.
        ({"last_seen_at": ago(1)}, Decision("online", "seen", ago(1), ago(1 - 600))),
        ({"last_seen_at": ago(600)}, Decision("offline", "silent", NOW, None)),
        ({"last_seen_at": ago(599)}, Decision("online", "seen", ago(599), ago(-1))),
        (
            {"last_seen_at": ago(599), "own_timeout_s": 60},
            Decision("offline", "silent", ago(539), None),
        ),
        # With a session.
        (
            {"last_seen_at": ago(9), "open_since": ago(9)},
            Decision("online", "connected", ago(9), None),
        ),
        (
            {"last_seen_at": ago(900), "open_since": ago(900)},
            Decision("online", "connected", ago(900), None),
        ),
        (
            {"last_seen_at": ago(60), "open_since": ago(900), "own_timeout_s": 60},
            Decision("offline", "silent", NOW, None),
        ),
        (
            {
                "last_seen_at": ago(5),
                "open_since": ago(900),
                "own_timeout_s": 60,
                "changed_at": ago(30),
            },
            Decision("online", "seen", ago(5), ago(5 - 60)),
        ),
        # After a session, and by another door.
        (
            {"last_seen_at": ago(9), "sessionless_at": ago(8.9), "session_ended_at": ago(9)},
            Decision("online", "seen", ago(9), ago(9 - 600)),
        ),
        (
            {"last_seen_at": ago(9), "sessionless_at": ago(9), "session_ended_at": ago(9)},
            Decision("offline", "disconnected", ago(9), None),
        ),
        # After a session.
        (
            {"last_seen_at": ago(9), "session_ended_at": ago(9)},
            Decision("offline", "disconnected", ago(9), None),
        ),
        (
            {"last_seen_at": ago(7), "session_ended_at": ago(9), "is_lost": True},
            Decision("offline", "server_lost", ago(9), None),
        ),
        (
            {"last_seen_at": ago(6), "session_ended_at": ago(9)},
            Decision("online", "seen", ago(6), ago(6 - 600)),
        ),
        # A change is never before the one before it.
        (
            {"last_seen_at": ago(9), "session_ended_at": ago(9), "changed_at": ago(4)},
            Decision("offline", "disconnected", ago(4), None),
        ),
    ],
)
def test_what_is_known_decides(known: dict[str, object], expected: Decision | None) -> None:
    assert decide(replace(NEVER, **known), NOW) == expected  # type: ignore[arg-type]


TIMES = st.integers(0, 2000).map(ago)


@given(
    st.builds(
        Known,
        status=st.sampled_from(["online", "offline"]),
        changed_at=st.none() | TIMES,
        last_seen_at=TIMES,
        sessionless_at=st.none() | TIMES,
        open_since=st.none() | TIMES,
        session_ended_at=st.none() | TIMES,
        is_lost=st.booleans(),
        own_timeout_s=st.none() | st.integers(15, 1000),
        timeout_s=st.integers(15, 1000),
    ),
    st.integers(0, 2000),
)
def test_a_decision_stands_until_its_next_check(known: Known, later_s: int) -> None:
    now = decide(known, NOW)
    later = decide(known, NOW + timedelta(seconds=later_s))

    assert now is not None
    assert later is not None
    if known.changed_at is not None:
        assert now.at >= known.changed_at
    if now.check_at is None or NOW + timedelta(seconds=later_s) < now.check_at:
        assert (later.status, later.reason, later.at) == (now.status, now.reason, now.at)
    else:
        assert later.status == "offline"
