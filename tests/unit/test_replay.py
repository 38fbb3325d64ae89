"""Messages of the past through the real dispatcher, without a server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from runtime.call.threads import FunctionThreads
from runtime.context import Context, Scope
from runtime.dispatch import Dispatcher
from runtime.errors import Reject, Retry, Unavailable
from runtime.loader import load
from runtime.local import replay
from runtime.local.replay import Replay, Tally
from runtime.manifest.model import FunctionSpec
from runtime.message import Message
from runtime.observe.logs import get_logger
from runtime.queueing.token_bucket import TokenBucket
from tests.support.workload import behaviours

NAME = "past"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "DELAY_CAP_S", 0.001)
    monkeypatch.setattr(replay, "OUTAGE_PAUSE_S", 0.001)


async def _past(count: int) -> AsyncIterator[Message]:
    for sequence in range(1, count + 1):
        yield Message(f"s.{sequence}", b"%d" % sequence, stream="S", sequence=sequence, attempt=7)


async def _yes() -> bool:
    return True


def _replay(
    act: Callable[..., Awaitable[None]],
    *,
    handler: str = "on_event",
    bucket: TokenBucket | None = None,
    servers_answer: Callable[[], Awaitable[bool]] = _yes,
    on_change: Callable[[Tally], None] = lambda _: None,
    **spec: Any,
) -> Replay:
    behaviours[NAME] = act
    stated = {"consumer": {"stream": "S"}, "retry": {"attempts": 3, "delay": "1m"}, **spec}
    stated["handler"] = f"tests.support.workload:{handler}"
    function = load(NAME, FunctionSpec.model_validate(stated))
    scope = Scope(NAME, None, None, {}, get_logger("test"))  # type: ignore[arg-type]
    dispatcher = Dispatcher(function, scope, threads=FunctionThreads(NAME, 1))
    return Replay(dispatcher, bucket=bucket, servers_answer=servers_answer, on_change=on_change)


async def test_every_message_is_called_as_a_repeat_with_its_identity() -> None:
    seen = []

    async def act(ctx: Context, event: Any) -> None:
        seen.append((event.sequence, ctx.attempt, event.may_be_repeated))

    tally = await _replay(act).run(_past(50))

    assert sorted(seen) == [(sequence, 1, True) for sequence in range(1, 51)]
    assert (tally.done, tally.failed, tally.retried) == (50, 0, 0)


async def test_a_failure_is_tried_again_as_often_as_the_policy_says_and_then_listed() -> None:
    attempts = []

    async def act(ctx: Context, event: Any) -> None:
        if event.sequence == 2:
            attempts.append(ctx.attempt)
            raise ValueError("bad")
        if event.sequence == 3:
            raise Reject("NO", "never")

    tally = await _replay(act).run(_past(4))

    assert attempts == [1, 2, 3]
    assert (tally.done, tally.failed, tally.retried) == (2, 2, 2)
    listed = sorted(
        (each.sequence, each.subject, each.code, each.reason, each.attempts)
        for each in tally.failures
    )
    assert listed == [
        (2, "s.2", "ATTEMPTS_EXHAUSTED", "bad", 3),
        (3, "s.3", "NO", "never", 1),
    ]
    assert all(f"{__name__.rpartition('.')[2]}.py:" in each.where for each in tally.failures)


async def test_the_messages_of_an_ordered_function_run_one_after_another() -> None:
    order: list[tuple[int, str]] = []

    async def act(ctx: Context, event: Any) -> None:
        order.append((event.sequence, "begin"))
        await asyncio.sleep(0)
        order.append((event.sequence, "end"))
        if event.sequence == 2 and ctx.attempt == 1:
            raise ValueError("once")

    await _replay(act, ordered_by={"token": 1}).run(_past(3))

    called = [1, 2, 2, 3]
    assert order == [(sequence, what) for sequence in called for what in ("begin", "end")]


async def test_other_functions_run_as_many_calls_at_a_time_as_their_concurrency() -> None:
    running = most = 0

    async def act(ctx: Context, event: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1

    await _replay(act, concurrency=4).run(_past(40))

    assert most == 4


async def test_a_batch_function_gets_batches_and_only_the_failed_messages_again() -> None:
    batches = []

    async def act(ctx: Context, batch: Any) -> None:
        batches.append([event.sequence for event in batch])
        for event in batch:
            if event.sequence == 4 and event.attempt == 1:
                batch.retry(event, "again")
            if event.sequence == 5:
                batch.reject(event, "NO")

    done = await _replay(act, handler="on_batch", batch={"size": 3}, concurrency=1).run(_past(7))

    assert batches == [[1, 2, 3], [4, 5, 6], [4], [7]]
    assert (done.done, done.failed, done.retried) == (6, 1, 1)


async def test_an_outage_uses_up_no_attempt() -> None:
    answers = [False, False, True]
    attempts = []

    async def servers_answer() -> bool:
        return answers.pop(0)

    async def act(ctx: Context, event: Any) -> None:
        attempts.append(ctx.attempt)
        if len(attempts) < 4:
            raise Unavailable("PostgreSQL", "away")

    tally = await _replay(act, servers_answer=servers_answer).run(_past(1))

    assert attempts == [1, 1, 1, 2]
    assert (tally.done, tally.failed) == (1, 0)


async def test_a_message_that_is_postponed_again_and_again_is_given_up() -> None:
    calls = 0

    async def act(ctx: Context, event: Any) -> None:
        nonlocal calls
        calls += 1
        raise Retry("too early", counts=False)

    tally = await _replay(act).run(_past(1))

    assert calls == 3
    assert [each.code for each in tally.failures] == ["POSTPONED"]


async def test_a_rate_bounds_the_messages() -> None:
    now_s = 0.0
    calls = 0

    async def act(ctx: Context, event: Any) -> None:
        nonlocal calls
        calls += 1

    work = _replay(act, bucket=TokenBucket(1000.0, 2, lambda: now_s))
    running = asyncio.create_task(work.run(_past(10)))
    await asyncio.sleep(0.02)

    assert calls == 2
    work.stop()
    assert (await running).done == 2


async def test_a_stop_ends_the_calls_under_way_and_names_where_to_go_on() -> None:
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def act(ctx: Context, event: Any) -> None:
        if event.sequence == 3:
            begun.set()
            await goes_on.wait()

    work = _replay(act, concurrency=1)
    running = asyncio.create_task(work.run(_past(100)))
    await begun.wait()
    work.stop()
    goes_on.set()
    tally = await running

    assert (tally.done, work.next_sequence) == (3, 4)


async def test_a_stop_ends_the_wait_for_another_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "DELAY_CAP_S", 60.0)
    failed = asyncio.Event()

    async def act(ctx: Context, event: Any) -> None:
        failed.set()
        raise ValueError("bad")

    work = _replay(act)
    running = asyncio.create_task(work.run(_past(1)))
    await failed.wait()
    work.stop()
    tally = await running

    assert (tally.settled, work.next_sequence) == (0, 1)


async def test_what_ends_the_reading_ends_the_replay() -> None:
    async def broken() -> AsyncIterator[Message]:
        async for message in _past(1):
            yield message
        raise Unavailable("NATS", "away")

    async def act(ctx: Context, event: Any) -> None: ...

    with pytest.raises(Unavailable):
        await _replay(act).run(broken())
