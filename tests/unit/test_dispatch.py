"""Outcomes of calls, decided without a server."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg
import pytest
from pydantic import BaseModel, model_validator

from runtime.call.threads import FunctionThreads
from runtime.context import Context, Scope
from runtime.dispatch import DONE, Dead, Dispatcher, Later
from runtime.errors import PayloadError, PublishFailed, Reject, Retry, TooLarge, Unavailable
from runtime.loader import Function, load
from runtime.manifest.model import FunctionSpec
from runtime.message import Batch, Event, Message
from runtime.observe.logs import get_logger
from tests.support.workload import behaviours

NAME = "unit"


class Stubborn(BaseModel):
    number: int

    @model_validator(mode="after")
    def _break(self) -> "Stubborn":
        if self.number == 13:
            raise KeyError("a validator's own mistake")
        return self


async def on_stubborn(batch: Batch[Stubborn], ctx: Context) -> None:
    behaviours[ctx.function](ctx, batch)


async def on_stubborn_event(event: Event[Stubborn], ctx: Context) -> None:
    behaviours[ctx.function](ctx, event)


def _function(handler: str, **spec: Any) -> Function:
    module = __name__ if handler.startswith("on_stubborn") else "tests.support.workload"
    stated = {"consumer": {"stream": "S"}, "retry": {"attempts": 3, "delay": "1s"}, **spec}
    stated["handler"] = f"{module}:{handler}"
    return load(NAME, FunctionSpec.model_validate(stated))


def _dispatcher(act: Callable[..., Any], handler: str = "on_event", **spec: Any) -> Dispatcher:
    behaviours[NAME] = act
    scope = Scope(NAME, None, None, {}, get_logger("test"))  # type: ignore[arg-type]
    threads = FunctionThreads(NAME, 1)
    return Dispatcher(_function(handler, **spec), scope, threads=threads, chance=lambda: 0.5)


def _message(data: bytes = b"x", attempt: int = 1, sequence: int = 1) -> Message:
    return Message("s.a", data, stream="S", sequence=sequence, attempt=attempt)


def _raising(failure: BaseException) -> Callable[..., Any]:
    async def act(ctx: Context, given: Any) -> None:
        raise failure

    return act


async def test_a_function_that_returns_is_done() -> None:
    async def act(ctx: Context, event: Any) -> None:
        assert (event.data, ctx.attempt) == (b"x", 2)

    assert await _dispatcher(act).run_event(_message(attempt=2)) is DONE


@pytest.mark.parametrize(
    ("failure", "attempt", "outcome"),
    [
        (Retry("later", delay_s=7), 1, Later(7, "later", "Retry")),
        (Retry("later"), 2, Later(2, "later", "Retry")),
        (Retry("later", at_least_s=1), 2, Later(2, "later", "Retry")),
        (Retry("later", at_least_s=7), 2, Later(7, "later", "Retry")),
        (Retry("later", at_least_s=float("nan")), 2, Later(2, "later", "Retry")),
        (ValueError("bad"), 1, Later(1, "bad", "ValueError")),
        (ValueError(), 1, Later(1, "ValueError", "ValueError")),
        (Reject("NO", "never"), 1, Dead("NO", "never", "Reject")),
        (Reject("NO"), 3, Dead("NO", "NO", "Reject")),
        (PayloadError("a: bad"), 1, Dead("PAYLOAD_INVALID", "a: bad", "PayloadError")),
    ],
)
async def test_the_exception_decides_the_outcome(
    failure: Exception, attempt: int, outcome: object
) -> None:
    dispatcher = _dispatcher(_raising(failure))

    assert await dispatcher.run_event(_message(attempt=attempt)) == outcome


async def test_a_retry_that_does_not_count_is_never_the_last_attempt() -> None:
    dispatcher = _dispatcher(_raising(Retry("too early", delay_s=7, counts=False)))

    outcome = await dispatcher.run_event(_message(attempt=3))

    assert outcome == Later(7, "too early", "Retry", counts=False)


@pytest.mark.parametrize(
    ("attempt", "delays_s", "outcome"),
    [
        (1, (5, 300), Later(5, "bad", "ValueError", attempts=3)),
        (2, (5, 300), Later(300, "bad", "ValueError", attempts=3)),
        # Beyond the manifest's three attempts the server delivers nothing again by itself.
        (3, (5, 6, 7, 8), Later(7, "bad", "ValueError", attempts=5, is_beyond=True)),
    ],
)
async def test_a_call_that_sets_its_own_schedule_is_judged_by_it(
    attempt: int, delays_s: tuple[float, ...], outcome: object
) -> None:
    async def act(ctx: Context, given: Any) -> None:
        ctx.use_retry_schedule(delays_s)
        raise ValueError("bad")

    assert await _dispatcher(act).run_event(_message(attempt=attempt)) == outcome


@pytest.mark.parametrize(
    ("attempt", "delays_s"), [(1, ()), (2, (5,)), (5, (1, 2, 3, 4))], ids=["one", "two", "five"]
)
async def test_the_last_attempt_of_a_calls_own_schedule_ends_in_a_dead_letter(
    attempt: int, delays_s: tuple[float, ...]
) -> None:
    async def act(ctx: Context, given: Any) -> None:
        ctx.use_retry_schedule(delays_s)
        raise Retry("later", delay_s=7)

    outcome = await _dispatcher(act).run_event(_message(attempt=attempt))

    assert isinstance(outcome, Dead)
    assert (outcome.code, outcome.attempts) == ("ATTEMPTS_EXHAUSTED", len(delays_s) + 1)


async def test_the_time_limit_of_a_call_is_judged_by_its_own_schedule() -> None:
    async def act(ctx: Context, given: Any) -> None:
        ctx.use_retry_schedule([300])
        await asyncio.sleep(10)

    outcome = await _dispatcher(act, timeout="50ms").run_event(_message())

    assert isinstance(outcome, Later)
    assert (outcome.delay_s, outcome.attempts) == (300, 2)


@pytest.mark.parametrize(
    ("delays_s", "jitter"),
    [([0], 0.2), ([-1], 0.2), ([float("nan")], 0.2), ([604_801], 0.2), ([1] * 100, 0.2), ([1], 2)],
)
async def test_a_schedule_out_of_bounds_is_refused(delays_s: list[float], jitter: float) -> None:
    async def act(ctx: Context, given: Any) -> None:
        with pytest.raises(ValueError, match=r"delay|jitter"):
            ctx.use_retry_schedule(delays_s, jitter=jitter)
        raise ValueError("bad")

    # What was refused changes nothing.
    assert await _dispatcher(act).run_event(_message()) == Later(1, "bad", "ValueError")


async def test_a_batch_has_no_schedule_of_its_own() -> None:
    async def act(ctx: Context, batch: Any) -> None:
        ctx.use_retry_schedule([5])

    [outcome] = await _dispatcher(act, "on_batch").run_batch([_message()])

    assert isinstance(outcome, Later)
    assert "single stored message" in outcome.reason


@pytest.mark.parametrize("failure", [ValueError("bad"), Retry("later", delay_s=7)])
async def test_the_last_attempt_ends_in_a_dead_letter(failure: Exception) -> None:
    outcome = await _dispatcher(_raising(failure)).run_event(_message(attempt=3))

    assert isinstance(outcome, Dead)
    assert outcome.code == "ATTEMPTS_EXHAUSTED"
    assert "in act" in outcome.traceback


@pytest.mark.parametrize(
    "failure",
    [
        Unavailable("NATS", "away"),
        PublishFailed("a.b", "no confirmation"),
        asyncpg.CannotConnectNowError("starting up"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is …"),
    ],
)
async def test_an_outage_is_excused_even_on_the_last_attempt_until_the_servers_prove_up(
    failure: Exception,
) -> None:
    dispatcher = _dispatcher(_raising(failure))
    message = _message(attempt=3)

    outcome = await dispatcher.run_event(message)
    assert isinstance(outcome, Later)
    assert outcome.outage is failure

    again = dispatcher.judge(message, failure, excuse=False)
    assert isinstance(again, Dead)


async def test_a_message_that_no_server_accepts_is_the_function_s_own_failure() -> None:
    outcome = await _dispatcher(_raising(TooLarge("a.b", 2, 1))).run_event(_message())

    assert isinstance(outcome, Later)
    assert (outcome.outage, outcome.error_type) == (None, "TooLarge")


async def test_a_connection_of_the_function_s_own_that_breaks_is_no_outage() -> None:
    outcome = await _dispatcher(_raising(ConnectionRefusedError("smtp"))).run_event(_message())

    assert isinstance(outcome, Later)
    assert outcome.outage is None


async def test_an_exception_that_cannot_be_shown_is_still_judged() -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise ValueError("not even this")

    dispatcher = _dispatcher(_raising(BrokenError()))

    assert await dispatcher.run_event(_message()) == Later(1, "BrokenError", "BrokenError")
    assert isinstance(await dispatcher.run_event(_message(attempt=3)), Dead)


@pytest.mark.parametrize("ending", [asyncio.CancelledError(), SystemExit(3)])
async def test_an_exception_that_would_end_a_worker_fails_the_attempt(
    ending: BaseException,
) -> None:
    dispatcher = _dispatcher(_raising(ending))

    outcome = await dispatcher.run_event(_message())

    assert isinstance(outcome, Later)
    assert type(ending).__name__ in outcome.reason


async def test_a_host_that_ends_a_call_ends_it() -> None:
    began = asyncio.Event()

    async def act(ctx: Context, event: Any) -> None:
        began.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(_dispatcher(act).run_event(_message()))
    await began.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_time_limit_ends_a_call_and_counts() -> None:
    async def act(ctx: Context, event: Any) -> None:
        await asyncio.Event().wait()

    dispatcher = _dispatcher(act, timeout="50ms")

    first = await dispatcher.run_event(_message())
    last = await dispatcher.run_event(_message(attempt=3))

    assert isinstance(first, Later)
    assert first.error_type == "TimeLimitExceeded"
    assert isinstance(last, Dead)
    assert last.code == "TIMEOUT"
    assert dispatcher.timeouts == 2


@pytest.mark.parametrize("handler", ["on_event", "on_event_in_thread"])
async def test_a_function_sees_how_much_of_its_time_is_left(handler: str) -> None:
    seen: list[float] = []

    def act_in_thread(ctx: Context, event: Any) -> None:
        seen.append(ctx.remaining_s)

    async def act(ctx: Context, event: Any) -> None:
        act_in_thread(ctx, event)

    dispatcher = _dispatcher(act if handler == "on_event" else act_in_thread, handler, timeout="9s")
    outcome = await dispatcher.run_event(_message())

    assert outcome is DONE
    assert 8 < seen[0] <= 9


async def test_a_timeout_of_the_function_s_own_is_an_ordinary_failure() -> None:
    dispatcher = _dispatcher(_raising(TimeoutError("my own")))

    assert await dispatcher.run_event(_message()) == Later(1, "my own", "TimeoutError")
    assert dispatcher.timeouts == 0


async def _run_batch(
    act: Callable[[Sequence[bytes]], None], payloads: Sequence[bytes], attempt: int = 1
) -> tuple[list[object], list[list[bytes]]]:
    calls: list[list[bytes]] = []

    async def record(ctx: Context, batch: Any) -> None:
        raws = [event.raw for event in batch]
        calls.append(raws)
        act(raws)

    messages = [
        _message(data, attempt, sequence) for sequence, data in enumerate(payloads, start=1)
    ]
    outcomes = await _dispatcher(record, "on_batch").run_batch(messages)
    return list(outcomes), calls


def _choke_on(*poison: bytes) -> Callable[[Sequence[bytes]], None]:
    def act(raws: Sequence[bytes]) -> None:
        if set(poison) & set(raws):
            raise ValueError("poison")

    return act


async def test_a_failed_batch_is_split_until_its_poison_message_is_alone() -> None:
    outcomes, calls = await _run_batch(_choke_on(b"3"), [b"%d" % n for n in range(8)])

    assert [outcome is DONE for outcome in outcomes] == [n != 3 for n in range(8)]
    assert len(calls) == 7
    # The last call of every good message returned.
    assert [b"0", b"1"] in calls
    assert [b"4", b"5", b"6", b"7"] in calls


async def test_the_order_of_a_batch_is_kept_when_it_is_split() -> None:
    _, calls = await _run_batch(_choke_on(b"1"), [b"0", b"1", b"2", b"3"])

    assert calls == [[b"0", b"1", b"2", b"3"], [b"0", b"1"], [b"0"], [b"1"], [b"2", b"3"]]


async def test_a_batch_that_always_fails_is_not_split_for_ever() -> None:
    payloads = [b"%d" % n for n in range(1000)]
    outcomes, calls = await _run_batch(_choke_on(*payloads), payloads)

    assert len(calls) < 80
    assert all(isinstance(outcome, Later) for outcome in outcomes)


async def test_on_the_last_attempt_a_batch_is_split_until_every_good_message_is_done() -> None:
    payloads = [b"%d" % n for n in range(500)]
    poison = payloads[::10]
    outcomes, _ = await _run_batch(_choke_on(*poison), payloads, attempt=3)

    dead = [data for data, outcome in zip(payloads, outcomes, strict=True) if outcome is not DONE]
    assert dead == poison


@pytest.mark.parametrize("failure", [Retry("later"), Unavailable("NATS", "away")])
async def test_a_failure_that_is_no_message_s_own_splits_nothing(failure: Exception) -> None:
    def act(raws: Sequence[bytes]) -> None:
        raise failure

    outcomes, calls = await _run_batch(act, [b"1", b"2", b"3"])

    assert len(calls) == 1
    assert all(isinstance(outcome, Later) for outcome in outcomes)


async def test_messages_of_a_batch_are_steered_one_by_one() -> None:
    async def act(ctx: Context, batch: Any) -> None:
        batch.reject(batch[0], "NO", "never")
        batch.retry(batch[2], "later", delay_s=9)

    dispatcher = _dispatcher(act, "on_batch")
    messages = [_message(sequence=number) for number in (1, 2, 3)]

    assert await dispatcher.run_batch(messages) == [
        Dead("NO", "never", "Reject"),
        DONE,
        Later(9, "later", "Retry"),
    ]


async def test_a_batch_without_a_valid_message_makes_no_call() -> None:
    async def act(ctx: Context, batch: Any) -> None:
        raise AssertionError("called")

    outcomes = await _dispatcher(act, "on_orders").run_batch([_message(b"{"), _message(b"[]")])

    assert [isinstance(outcome, Dead) for outcome in outcomes] == [True, True]


async def test_a_validator_that_breaks_harms_its_own_message_alone() -> None:
    seen: list[int] = []

    def act(ctx: Context, batch: Any) -> None:
        seen.extend(event.data.number for event in batch)

    dispatcher = _dispatcher(act, "on_stubborn")
    messages = [_message(b'{"number": %d}' % number, 1, number) for number in (1, 13, 2)]
    outcomes = await dispatcher.run_batch(messages)

    assert seen == [1, 2]
    assert isinstance(outcomes[1], Later)
    assert outcomes[1].error_type == "KeyError"


async def test_a_validator_that_breaks_is_a_failure_of_a_single_event_too() -> None:
    outcome = await _dispatcher(lambda *_: None, "on_stubborn_event").run_event(
        _message(b'{"number": 13}')
    )

    assert isinstance(outcome, Later)
