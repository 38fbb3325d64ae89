"""A context of the same call with another state."""

import pytest
import structlog

from runtime import Message
from runtime.context import Scope, WatchedContext
from runtime.local.recorded_effects import RecordedEffects

pytestmark = pytest.mark.asyncio


def _context() -> tuple[WatchedContext[str], RecordedEffects]:
    effects = RecordedEffects()
    scope = Scope("work", None, effects, {}, structlog.get_logger(), state="outer")
    message = Message("a", b"", stream="S", sequence=7, stored_at_ns=1)
    return WatchedContext(scope, message, deadline_s=5.0, attempt=3), effects


async def test_it_belongs_to_the_call_and_leaves_the_state_of_the_call_alone() -> None:
    outer, _ = _context()
    inner = outer.with_state(42)
    assert (outer.state, inner.state, inner.with_state("x").state) == ("outer", 42, "x")
    assert (inner.function, inner.attempt, inner.deadline_s) == ("work", 3, 5.0)


async def test_the_ids_of_what_both_publish_are_counted_together() -> None:
    outer, effects = _context()
    inner = outer.with_state(1).with_state(2)
    await outer.publish("x", b"")
    await inner.publish("x", b"")
    await outer.publish("x", b"")
    assert len({sent.msg_id for sent in effects.sent}) == 3


async def test_an_effect_that_is_not_awaited_is_found_in_the_call() -> None:
    outer, _ = _context()
    left = outer.with_state(1).publish("x", b"")
    assert outer.effects is not None
    assert len(outer.effects.left()) == 1
    await left
    assert outer.effects.left() == []


async def test_a_retry_schedule_is_that_of_the_message() -> None:
    outer, _ = _context()
    outer.with_state(1).use_retry_schedule([5.0])
    assert outer.retry_schedule is not None


@pytest.mark.parametrize(
    ("most", "delays_s", "is_last"),
    [
        (3, None, True),
        (4, None, False),
        (0, None, False),
        (9, [], True),
        (9, [1.0, 1.0], True),
        (1, [1.0] * 3, False),
    ],
)
async def test_a_call_knows_whether_its_message_is_given_up_if_it_fails(
    most: int, delays_s: list[float] | None, is_last: bool
) -> None:
    outer, _ = _context()
    outer._scope.max_attempts = most
    inner = outer.with_state(1)
    if delays_s is not None:
        inner.use_retry_schedule(delays_s)
    assert (outer.is_last_attempt, inner.is_last_attempt) == (is_last, is_last)
