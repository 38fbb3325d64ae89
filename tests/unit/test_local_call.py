"""One call of a function without a server, with its effects recorded."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from runtime import ConfigError, NoAnswer, Reject, RequestFailed, Retry, Unsendable
from runtime.context import Context, Publication
from runtime.loader import Function, load
from runtime.local.local_call import LocalFunction, LocalResult
from runtime.local.recorded_effects import RecordedEffects
from runtime.manifest.model import FunctionSpec
from runtime.message import Message
from tests.support.workload import behaviours

NAME = "local"


def _function(act: Callable[..., Any], handler: str = "on_event", **spec: Any) -> Function:
    behaviours[NAME] = act
    bound = {"consumer": {"stream": "S"}} if not {"endpoint", "schedule"} & spec.keys() else {}
    stated = {**bound, "handler": f"tests.support.workload:{handler}", **spec}
    return load(NAME, FunctionSpec.model_validate(stated))


def _message(data: bytes = b"x", attempt: int = 1, sequence: int = 1) -> Message:
    return Message("s.a", data, stream="S", sequence=sequence, attempt=attempt)


async def _run(
    function: Function, *messages: Message, effects: RecordedEffects | None = None
) -> LocalResult:
    async with LocalFunction(function, effects=effects) as local:
        return await local.call(*messages)


async def _call(act: Callable[..., Any], attempt: int = 1, **spec: Any) -> LocalResult:
    return await _run(_function(act, **spec), _message(attempt=attempt))


async def _quiet(ctx: Context, given: Any) -> None:
    pass


async def test_a_call_that_returns_is_acknowledged_and_its_time_is_told() -> None:
    result = await _call(_quiet)
    assert str(result.settled[0]) == "ack"
    assert (result.failure, result.where, result.reply) == (None, "", None)
    assert 0 < result.elapsed_s < 1


async def test_a_failure_has_its_delay_without_jitter_and_the_authors_line() -> None:
    async def act(ctx: Context, event: Any) -> None:
        raise ValueError("out of stock")

    result = await _call(act, attempt=2)
    [settled] = result.settled
    assert (settled.action, settled.delay_s) == ("nak", 2.0)
    assert str(settled).startswith("nak, again in 2 s: ValueError: out of stock at ")
    assert "test_local_call.py:" in result.where
    assert isinstance(result.failure, ValueError)


async def test_a_long_wait_is_parked_and_an_ordered_function_waits_in_place() -> None:
    async def act(ctx: Context, event: Any) -> None:
        raise Retry("closed", delay_s=60)

    assert str((await _call(act)).settled[0]).startswith("park, again in 60 s: closed at ")
    ordered = await _call(act, ordered_by={"token": 1})
    assert ordered.settled[0].action == "wait"


@pytest.mark.parametrize(
    ("failure", "attempt", "code"),
    [
        (Reject("NO_SUCH_ROUTE", "gone"), 1, "NO_SUCH_ROUTE"),
        (KeyError("x"), 5, "ATTEMPTS_EXHAUSTED"),
    ],
)
async def test_a_refusal_and_a_last_attempt_are_dead_letters(
    failure: Exception, attempt: int, code: str
) -> None:
    async def act(ctx: Context, event: Any) -> None:
        raise failure

    [settled] = (await _call(act, attempt=attempt)).settled
    assert (settled.action, settled.code) == ("dead letter", code)


async def test_what_a_function_sends_is_recorded_in_order_with_the_hosts_message_ids() -> None:
    async def act(ctx: Context, event: Any) -> None:
        first = await ctx.publish("out.a", b"1", headers={"Kind": "x"})
        again = await ctx.publish_many(
            [Publication("out.b", b"2", "own"), Publication("out.b", b"2", "own")]
        )
        await ctx.publish_core("out.c", b"3")
        assert not first.duplicate
        assert [each.duplicate for each in again] == [False, True]

    result = await _call(act)
    assert [(sent.kind, sent.subject, sent.data) for sent in result.sent] == [
        ("publish", "out.a", b"1"),
        ("publish", "out.b", b"2"),
        ("publish", "out.b", b"2"),
        ("publish_core", "out.c", b"3"),
    ]
    assert result.sent[0].msg_id == "S-1-0-local-1"
    assert result.sent[0].headers == {"Kind": "x"}


async def test_requests_get_the_given_answers_and_others_find_no_responders() -> None:
    seen: list[Any] = []

    async def act(ctx: Context, event: Any) -> None:
        seen.append((await ctx.request("stock.a", b"7")).data)
        seen.append((await ctx.request("price.a", b"7")).data)
        for subject in ("broken.a", "unknown"):
            try:
                await ctx.request(subject, b"")
            except (RequestFailed, NoAnswer) as failure:
                seen.append(type(failure))

    broken = RequestFailed("broken", 500, "INTERNAL")
    answers = {"stock.*": {"left": 3}, "price.*": lambda data: data * 2, "broken.>": broken}
    await _run(_function(act), _message(), effects=RecordedEffects(answers))
    assert seen == [b'{"left":3}', b"77", RequestFailed, NoAnswer]


async def test_a_message_that_a_server_would_refuse_is_refused() -> None:
    async def act(ctx: Context, event: Any) -> None:
        await ctx.publish("not a subject", b"")

    assert isinstance((await _call(act)).failure, Unsendable)


async def test_an_effect_without_await_fails_as_on_a_host() -> None:
    async def act(ctx: Context, event: Any) -> None:
        ctx.publish("out.a", b"1")  # type: ignore[unused-coroutine] # the mistake under test

    [settled] = (await _call(act)).settled
    assert settled.error_type == "EffectNotAwaited"
    assert "test_local_call.py:" in settled.where


async def test_logs_of_the_context_and_of_libraries_are_recorded_and_masked() -> None:
    async def act(ctx: Context, event: Any) -> None:
        ctx.log.debug("Looked", password="not shown")
        logging.getLogger("shop").warning("low on %s", "nails")
        try:
            int("x")
        except ValueError:
            ctx.log.exception("Not written")

    debug, warning, error = (await _call(act)).logs
    assert (debug.level, debug.text, debug.fields["password"]) == ("debug", "Looked", "***")
    assert (debug.fields["stream"], debug.fields["sequence"]) == ("S", 1)
    assert (warning.text, warning.fields["logger"]) == ("low on nails", "shop")
    assert "ValueError: invalid literal" in error.fields["exception"]


async def test_a_batch_settles_each_message_and_is_split_down_to_the_bad_one() -> None:
    async def act(ctx: Context, batch: Any) -> None:
        if any(event.data == b"bad" for event in batch):
            raise ValueError("bad")

    function = _function(act, "on_batch")
    messages = [_message(data, sequence=n) for n, data in enumerate((b"a", b"bad", b"c"), 1)]
    result = await _run(function, *messages)
    assert [each.action for each in result.settled] == ["ack", "nak", "ack"]


async def test_an_endpoint_replies_and_a_refusal_has_status_and_code() -> None:
    async def act(ctx: Context, event: Any) -> Any:
        if event.data == b"no":
            raise Reject("FORBIDDEN", "not yours", status=403)
        return b"yes"

    function = _function(act, "on_raw_request", endpoint={"subject": "ask"})
    async with LocalFunction(function) as local:
        answered, refused = (
            await local.call(Message("ask", b"")),
            await local.call(Message("ask", b"no")),
        )
    assert (answered.reply, answered.error, answered.settled) == (b"yes", None, ())
    assert refused.error == (403, "FORBIDDEN")
    assert refused.reply == b'{"code": "FORBIDDEN", "detail": "not yours", "event_id": "local"}'


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_what_would_end_a_process_ends_only_the_call(raised: BaseException) -> None:
    async def act(ctx: Context, event: Any) -> None:
        raise raised

    [settled] = (await _call(act)).settled
    assert (settled.action, settled.error_type) == ("nak", "EndedItself")


async def test_a_call_that_hangs_ends_at_its_time_limit() -> None:
    async def act(ctx: Context, event: Any) -> None:
        await asyncio.Event().wait()

    [settled] = (await _call(act, timeout="20ms")).settled
    assert settled.error_type == "TimeLimitExceeded"


async def test_a_resource_that_was_not_given_is_the_callers_mistake() -> None:
    async def act(ctx: Context, event: Any) -> None:
        await ctx.postgres.fetch("SELECT 1")

    with pytest.raises(
        ConfigError, match="the function uses postgres, and this call was given none"
    ):
        await _call(act, uses=["postgres"])
    result = await _call(act)
    assert "which its manifest does not list" in result.settled[0].reason


async def test_a_single_event_function_refuses_several_messages() -> None:
    with pytest.raises(ValueError, match="local takes one message, not 2"):
        await _run(_function(_quiet), _message(), _message())
