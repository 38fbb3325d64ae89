import pytest

from runtime.binding.flow import receipts as module
from runtime.binding.flow.receipts import Receipts
from runtime.message import Message


def delivery(sequence: int, attempt: int, *, stored: int = 7, stream: str = "S") -> Message:
    # Source: NATS ADR-15.
    return Message(
        "s", b"", reply=f"$JS.ACK.{stream}.work.{attempt}.{sequence}.{attempt}.{stored}.0"
    )


def test_another_delivery_of_what_was_acknowledged_is_known() -> None:
    receipts = Receipts()
    receipts.add(delivery(1, 1))
    receipts.add_all([delivery(2, 1), delivery(3, 2)])

    assert [receipts.has(delivery(number, 3)) for number in (1, 2, 3, 4)] == [True] * 3 + [False]
    assert receipts.has(delivery(1, 4))


@pytest.mark.parametrize("other", [{"stored": 8}, {"stream": "T"}])
def test_a_message_of_another_stream_or_of_one_made_anew_is_not(other: dict[str, int]) -> None:
    receipts = Receipts()
    receipts.add(delivery(1, 1))

    assert not receipts.has(delivery(1, 2, **other))  # type: ignore[arg-type]


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 3)
    receipts = Receipts()
    for number in range(1, 5):
        receipts.add(delivery(number, 1))
        assert receipts.has(delivery(number, 2))

    assert [receipts.has(delivery(number, 2)) for number in range(1, 5)] == [False] + [True] * 3


def test_of_a_consumer_that_was_made_anew_nothing_is_known() -> None:
    receipts = Receipts()
    receipts.add_all([delivery(1, 1), delivery(2, 1)])
    assert receipts.has(delivery(1, 2))
    receipts.add_all([delivery(3, 1), delivery(4, 1, stream="T")])
    receipts.forget_all("S", "work")

    assert not any(receipts.has(delivery(number, 2)) for number in (1, 2, 3))
    assert receipts.has(delivery(4, 2, stream="T"))


def test_a_replay_that_failed_is_called_again() -> None:
    receipts = Receipts()
    receipts.add(delivery(1, 1))
    receipts.forget(delivery(1, 1))

    assert not receipts.has(delivery(1, 2))
