"""Which messages may have ended the processes that died: those that two of them held."""

from collections.abc import Sequence

import pytest

from runtime.binding.crash_isolation import CrashIsolation
from runtime.dispatch import DONE, Outcome
from runtime.manifest.model import KeySpec
from runtime.message import Message
from runtime.queueing.fair_queue import FairQueue
from runtime.queueing.keys import key_of


class Runner:
    async def run_event(self, message: Message) -> Outcome:
        return DONE

    async def run_batch(self, messages: Sequence[Message]) -> list[Outcome]:
        return [DONE for _ in messages]


async def _store() -> None:
    pass


def _queue() -> FairQueue:
    return FairQueue(key_of(KeySpec(token=1)), order_key=key_of(KeySpec(token=2)))


def _message(sequence: int, *, deliveries: int, attempt: int) -> Message:
    reply = f"$JS.ACK.S.work.{deliveries}.{sequence}.1.1700000000000000000.0"
    return Message("s.key", b"", reply=reply, stream="S", sequence=sequence, attempt=attempt)


@pytest.mark.parametrize(
    ("deliveries", "attempt", "is_candidate"), [(2, 2, False), (2, 9, False), (3, 3, True)]
)
async def test_retries_in_place_are_no_deaths(
    deliveries: int, attempt: int, is_candidate: bool
) -> None:
    isolation, queue = CrashIsolation(Runner(), 3, _store), _queue()
    message = _message(1, deliveries=deliveries, attempt=attempt)

    isolation.begin(queue, [message])

    assert isolation.is_candidate(message) == is_candidate
    assert queue.most_out == (1 if is_candidate else None)


async def test_many_that_are_no_candidates_run_beside_each_other_when_the_one_is_done() -> None:
    isolation, queue = CrashIsolation(Runner(), 3, _store), _queue()
    candidate = _message(1, deliveries=3, attempt=3)
    isolation.begin(
        queue, [candidate, *(_message(n, deliveries=2, attempt=2) for n in range(2, 9))]
    )

    assert await isolation.run_event(candidate) is DONE

    assert queue.most_out is None
    assert isolation.state() is None
