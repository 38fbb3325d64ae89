import pytest

from runtime.broker import recent_acks as module
from runtime.broker.recent_acks import RecentAcks
from runtime.message import Message


def delivery(sequence: int, attempt: int, *, stored: int = 7, stream: str = "S") -> Message:
    # Source: NATS ADR-15.
    return Message(
        "s", b"", reply=f"$JS.ACK.{stream}.work.{attempt}.{sequence}.{attempt}.{stored}.0"
    )


def test_another_delivery_of_what_was_acknowledged_is_known() -> None:
    recent_acks = RecentAcks()
    recent_acks.add(delivery(1, 1))
    recent_acks.add_all([delivery(2, 1), delivery(3, 2)])

    assert [recent_acks.has(delivery(number, 3)) for number in (1, 2, 3, 4)] == [True] * 3 + [False]
    assert recent_acks.has(delivery(1, 4))


@pytest.mark.parametrize("other", [{"stored": 8}, {"stream": "T"}])
def test_a_message_of_another_stream_or_of_one_made_anew_is_not(other: dict[str, int]) -> None:
    recent_acks = RecentAcks()
    recent_acks.add(delivery(1, 1))

    assert not recent_acks.has(delivery(1, 2, **other))  # type: ignore[arg-type]


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 3)
    recent_acks = RecentAcks()
    for number in range(1, 5):
        recent_acks.add(delivery(number, 1))
        assert recent_acks.has(delivery(number, 2))

    assert [recent_acks.has(delivery(number, 2)) for number in range(1, 5)] == [False] + [True] * 3


def test_of_a_consumer_that_was_made_anew_nothing_is_known() -> None:
    recent_acks = RecentAcks()
    recent_acks.add_all([delivery(1, 1), delivery(2, 1)])
    assert recent_acks.has(delivery(1, 2))
    recent_acks.add_all([delivery(3, 1), delivery(4, 1, stream="T")])
    recent_acks.forget_all("S", "work")

    assert not any(recent_acks.has(delivery(number, 2)) for number in (1, 2, 3))
    assert recent_acks.has(delivery(4, 2, stream="T"))


def test_a_replay_that_failed_is_called_again() -> None:
    recent_acks = RecentAcks()
    recent_acks.add(delivery(1, 1))
    recent_acks.forget(delivery(1, 1))

    assert not recent_acks.has(delivery(1, 2))
