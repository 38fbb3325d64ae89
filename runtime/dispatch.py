"""Calls a function on a message or batch and returns outcomes, which the binding acts on. No I/O.

What a function may do with a delivery, and the outcome:

    returned                              Done
    raised Retry, or any other exception  Later, or Dead on the last attempt
    ran into its time limit               Later, or Dead on the last attempt
    raised Reject                         Dead
    payload does not fit the annotation   Dead
    message is not valid NATS             Dead, and the function is not called
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from runtime.call.call_task import failure_of
from runtime.call.function_version import FunctionVersion, running_owner
from runtime.call.outcome import (
    DONE,
    Dead,
    Done,
    EncodedResult,
    Later,
    Outcome,
    policy_of,
    retry_delay_s,
)
from runtime.call.threads import FunctionThreads
from runtime.call.time_limit import TimeLimitExceeded
from runtime.context import RetrySchedule, Scope, WatchedContext
from runtime.errors import PayloadError, Reject, Retry
from runtime.loader import Function
from runtime.loader.payload import is_json
from runtime.message import Batch, Event, Message
from runtime.observe.logs import running_function
from runtime.observe.redaction import mask
from runtime.resource.outage import is_outage
from runtime.safe_text import describe, line_of, name_of, seconds_of, text_of
from runtime.user_frames import format_traceback

BISECT_CALLS = 64
"""A batch that keeps failing is split at most this often, so that a bug does not multiply the
calls. On a message's last attempt there is no limit, as no good message may become a dead
letter."""


class Dispatcher:
    """Calls one function and decides the outcome of each message.

    Each call reads the current version at its top, and ends with that version. A call is one
    delivery, or one batch with all its halves.
    """

    def __init__(
        self,
        function: Function,
        scope: Scope,
        *,
        threads: FunctionThreads,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._version = FunctionVersion(function, scope)
        self._ended_timeouts = 0
        self._threads = threads
        self._chance = chance
        self._loop = asyncio.get_running_loop()

    @property
    def function(self) -> Function:
        """The function as the next call will run it."""
        return self._version.function

    @property
    def scope(self) -> Scope:
        """The scope of the next call."""
        return self._version.scope

    @property
    def version(self) -> FunctionVersion:
        """The version that the next call will run."""
        return self._version

    @property
    def timeouts(self) -> int:
        """Number of calls that the time limit ended, without running calls of old versions."""
        return self._ended_timeouts + self._version.limit.exceeded

    def swap(self, version: FunctionVersion) -> FunctionVersion:
        """Run `version` from the next call on; return the version before, which may have calls."""
        old, self._version = self._version, version
        self._collect_timeouts(old)
        old.retire()
        return old

    async def run_event(self, message: Message) -> Outcome:
        """Run a single-event function on one message, a scheduled one on its tick."""
        if message.unreadable is not None:
            return _judge_unreadable(message)
        if not self._version.function.is_async:
            await self._threads.wait_for_thread()
        version, context = self._version, None
        version.calls += 1
        try:
            context = self._context(version, message)
            if version.function.shape == "schedule":
                await self._call(version, context)
            else:
                decode = version.function.decode
                data = message.data if decode is None else _decode(decode, message.data)
                await self._call(version, Event(message, data), context)
            if context.effects is not None and context.effects.left():
                await context.effects.check()
        except Exception as failure:  # noqa: BLE001 - whatever a function raises is judged
            if context is not None and context.effects is not None:
                await context.effects.close()
            schedule = context.retry_schedule if context is not None else None
            return self._judge(version, message, failure, schedule=schedule)
        finally:
            version.calls -= 1
            if version.is_retired:
                self._end_if_idle(version)
        return DONE

    async def run_batch(self, messages: Sequence[Message]) -> list[Outcome]:
        """Run a batch function; return an outcome for each message, in their order.

        A batch that fails as a whole is split in halves until the message that fails is alone; the
        good halves are done. A failure that no single message causes (a `Retry`, an outage, the
        time limit) does not split the batch.
        """
        outcomes: dict[Message, Outcome] = {}
        version = self._version
        version.calls += 1
        try:
            await self._run_in_parts(version, messages, outcomes)
        finally:
            version.calls -= 1
            if version.is_retired:
                self._end_if_idle(version)
        return [outcomes.get(message, DONE) for message in messages]

    async def run_request(self, message: Message) -> EncodedResult:
        """Run an endpoint's function; return the reply.

        Raises:
            PayloadError: the request does not fit the annotation.
            TimeLimitExceeded: the function took too long.
            Retry: no thread is free to run a plain function.
            Exception: the exception that the function raised.
        """
        version = self._version
        version.calls += 1
        try:
            return await self._answer(version, message)
        finally:
            version.calls -= 1
            if version.is_retired:
                self._end_if_idle(version)

    def judge(self, message: Message, failure: Exception, *, excuse: bool = True) -> Outcome:
        """The outcome of a message whose function raised `failure`.

        Args:
            message: the message.
            failure: the exception.
            excuse: whether an outage may be the cause; False when the servers have answered a
                check.
        """
        return self._judge(self._version, message, failure, excuse=excuse)

    def _judge(
        self,
        version: FunctionVersion,
        message: Message,
        failure: Exception,
        *,
        excuse: bool = True,
        schedule: RetrySchedule | None = None,
    ) -> Outcome:
        # Whatever the outcome, a call has been made: another call may repeat its effects.
        message.called_before = True
        kind = name_of(failure)
        if isinstance(failure, Reject):
            reason = mask(text_of(failure.reason))
            return Dead(line_of(failure.code), reason, kind, failure=failure)
        if isinstance(failure, PayloadError):
            return Dead("PAYLOAD_INVALID", text_of(failure.reason), kind, failure=failure)
        outage = failure if excuse and is_outage(failure) else None
        own = 0 if schedule is None else len(schedule.delays_s) + 1
        is_last = message.attempt >= (own or version.max_attempts) and _counts(failure)
        if is_last and outage is None:
            code = "TIMEOUT" if isinstance(failure, TimeLimitExceeded) else "ATTEMPTS_EXHAUSTED"
            trace = mask(format_traceback(failure))
            return Dead(code, mask(describe(failure)), kind, trace, failure, attempts=own)
        return self._later(version, message, failure, outage, schedule)

    def _later(
        self,
        version: FunctionVersion,
        message: Message,
        failure: Exception,
        outage: Exception | None,
        schedule: RetrySchedule | None,
    ) -> Later:
        note, delay_s = "", None
        policy = version.function.spec.retry if schedule is None else policy_of(schedule)
        if isinstance(failure, Retry) and failure.delay_s is not None:
            delay_s = seconds_of(failure.delay_s)
            if delay_s is None:
                note = "its delay_s is not a number of seconds, the retry policy's delay is used"
        if delay_s is None:
            delay_s = retry_delay_s(policy, message.attempt, self._chance())
        if isinstance(failure, Retry) and failure.at_least_s is not None:
            delay_s = max(delay_s, seconds_of(failure.at_least_s) or 0.0)
        return Later(
            delay_s,
            mask(describe(failure)),
            name_of(failure),
            outage,
            note,
            failure,
            counts=_counts(failure),
            attempts=0 if schedule is None else policy.max_attempts,
            is_beyond=schedule is not None and message.attempt >= version.max_attempts,
        )

    def _end_if_idle(self, version: FunctionVersion) -> None:
        if not version.calls:
            self._collect_timeouts(version)
            version.end()

    def _collect_timeouts(self, version: FunctionVersion) -> None:
        self._ended_timeouts += version.limit.exceeded
        version.limit.exceeded = 0

    async def _answer(self, version: FunctionVersion, message: Message) -> EncodedResult:
        function = version.function
        if not function.is_async and not self._threads.has_room:
            raise Retry("calls that do not end have taken all threads of the function")
        decode = function.decode
        data = message.data if decode is None else _decode(decode, message.data)
        context = self._context(version, message)
        try:
            answer = await self._call(version, Event(message, data), context)
            if context.effects is not None and context.effects.left():
                await context.effects.check()
        except Exception:
            if context.effects is not None:
                await context.effects.close()
            raise
        try:
            data = function.encode(answer)
        except BaseException as raised:  # a model's own serializer may raise anything
            raise failure_of(raised, asyncio.current_task()) from raised
        return EncodedResult(data, is_json(answer) and not function.response_schema)

    async def _run_in_parts(
        self,
        version: FunctionVersion,
        messages: Sequence[Message],
        outcomes: dict[Message, Outcome],
    ) -> None:
        calls = 0
        parts = [self._decode_all(version, messages, outcomes)]
        while parts:
            part = parts.pop()
            if not part:
                continue
            calls += 1
            failure = await self._run_part(version, part, outcomes)
            if failure is None:
                continue
            if _is_worth_splitting(version, part, failure, calls):
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
                continue
            for event in part:
                outcomes[event.message] = self._judge(version, event.message, failure)

    def _decode_all(
        self,
        version: FunctionVersion,
        messages: Sequence[Message],
        outcomes: dict[Message, Outcome],
    ) -> list[Event[Any]]:
        """The events of the messages that fit the annotation; the others get their outcome."""
        if any(message.unreadable is not None for message in messages):
            bad = [message for message in messages if message.unreadable is not None]
            outcomes |= {message: _judge_unreadable(message) for message in bad}
            messages = [message for message in messages if message.unreadable is None]
        decode = version.function.decode
        if decode is None:
            return [Event(message, message.data) for message in messages]
        events: list[Event[Any]] = []
        for message in messages:
            try:
                events.append(Event(message, _decode(decode, message.data)))
            except Exception as misfit:  # noqa: BLE001 - a model's own validator raises what it likes
                outcomes[message] = self._judge(version, message, misfit)
        return events

    async def _run_part(
        self,
        version: FunctionVersion,
        part: Sequence[Event[Any]],
        outcomes: dict[Message, Outcome],
    ) -> Exception | None:
        batch = Batch(part)
        attempt = max([event.message.attempt for event in part])
        if not version.function.is_async:
            await self._threads.wait_for_thread()
        context = self._context(version, None, attempt)
        try:
            await self._call(version, batch, context)
            if context.effects is not None and context.effects.left():
                await context.effects.check()
        except Exception as failure:  # noqa: BLE001 - whatever a function raises is judged
            if context.effects is not None:
                await context.effects.close()
            for event in part:
                event.message.called_before = True
            return failure
        if batch.steered:
            for event in part:
                if steering := batch.steered.get(id(event)):
                    outcomes[event.message] = self._judge(version, event.message, steering)
        return None

    def _context(
        self, version: FunctionVersion, message: Message | None, attempt: int = 1
    ) -> WatchedContext:
        deadline_s = self._loop.time() + version.limit.limit_s
        if message is not None:
            attempt = message.attempt
        return WatchedContext(version.scope, message, deadline_s=deadline_s, attempt=attempt)

    def _call(self, version: FunctionVersion, *arguments: Any) -> Awaitable[Any]:  # noqa: ANN401 - the function's own
        """Call the function with its arguments, the last of which is the context."""
        function = version.function
        if running_owner.get() is not version.owner:  # To read it costs a third of setting it.
            running_owner.set(version.owner)
            running_function.set(function.name)
        call: Awaitable[Any]
        if function.is_async:
            call = function.handler(*arguments)
        else:
            call = self._loop.run_in_executor(self._threads, function.handler, *arguments)
        return version.limit.enforce(call, arguments[-1].deadline_s)


def _decode(decode: Callable[[bytes], Any], data: bytes) -> Any:  # noqa: ANN401 - typed by the annotation
    """Decode a payload to the type of the annotation.

    Raises:
        PayloadError: the payload does not fit.
        Exception: the exception of a validator.
    """
    try:
        return decode(data)
    except Exception:
        raise
    except BaseException as raised:
        raise failure_of(raised, asyncio.current_task()) from raised


def _is_worth_splitting(
    version: FunctionVersion, part: Sequence[Event[Any]], failure: Exception, calls: int
) -> bool:
    if len(part) == 1 or not _may_be_one_message(failure):
        return False
    last = version.max_attempts
    return calls < BISECT_CALLS or any(event.message.attempt >= last for event in part)


def _judge_unreadable(message: Message) -> Dead:
    """The outcome of an invalid NATS message, which is not passed to a function."""
    reason = message.unreadable.reason if message.unreadable is not None else ""
    return Dead("MESSAGE_UNREADABLE", reason)


def _counts(failure: Exception) -> bool:
    return not (isinstance(failure, Retry) and failure.counts is False)


def _may_be_one_message(failure: Exception) -> bool:
    return not (isinstance(failure, Retry | TimeLimitExceeded) or is_outage(failure))


__all__ = [
    "BISECT_CALLS",
    "DONE",
    "Dead",
    "Dispatcher",
    "Done",
    "EncodedResult",
    "Later",
    "Outcome",
    "retry_delay_s",
]
