"""Notifications about ended sessions, and what a registered device makes of them."""

from hypothesis import given
from hypothesis import strategies as st

from functions.domain.device_activity import AFTER_SESSION_NS, Seen, ended_text, read_ended
from functions.domain.registry import RegisteredDevice

NS = 1_790_000_000_000_000_000
IDS = st.from_regex(r"[A-Za-z0-9._:-]{1,64}", fullmatch=True)


@given(IDS, st.dictionaries(IDS, st.integers(0, 10**16 - 1), max_size=400))
def test_what_is_told_is_read_and_fits_into_notifications(
    tenant: str, ended: dict[str, int]
) -> None:
    texts = ended_text(tenant, ended)
    assert all(len(text.encode()) < 7_999 for text in texts)
    read: dict[str, int] = {}
    for text in texts:
        of_tenant, part = read_ended(text)
        assert of_tenant == tenant
        read |= part
    assert read == {device: at * 1000 for device, at in ended.items()}


@given(st.text(max_size=200))
def test_any_text_can_be_read(text: str) -> None:
    _, ended = read_ended(text)
    assert all(0 <= at < 10**19 for at in ended.values())


def test_a_device_whose_session_has_ended_is_noted_again() -> None:
    device = RegisteredDevice("s1")
    device.was_noted(Seen(NS, is_sessionless=False))
    assert device.end_session(NS + 1) is None
    assert device.noted_ns == 0
    # It may have come in the session: the next one is noted, too.
    device.was_noted(Seen(NS + 1 + AFTER_SESSION_NS, is_sessionless=False))
    assert device.noted_ns == 0
    device.was_noted(Seen(NS + 2 + AFTER_SESSION_NS, is_sessionless=False))
    assert device.noted_ns == NS + 2 + AFTER_SESSION_NS


def test_what_came_by_another_door_after_the_end_is_noted_at_once() -> None:
    device = RegisteredDevice("s1", sessionless_ns=NS + 5)
    assert device.end_session(NS + 5) is None
    assert device.end_session(NS + 4) == Seen(NS + 5, is_sessionless=True)
    # A notification that comes late takes nothing back.
    assert device.ended_ns == NS + 5
    device.was_noted(Seen(NS + 5, is_sessionless=True))
    assert device.noted_ns == NS + 5
