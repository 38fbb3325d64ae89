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
from dataclasses import dataclass, field
from typing import Any

from runtime.call_task import failure_of
from runtime.context import Scope, WatchedContext
from runtime.errors import PayloadError, Reject, Retry
from runtime.loader import Function
from runtime.manifest.model import RetrySpec
from runtime.message import Batch, Event, Message
from runtime.observe.redaction import mask
from runtime.resource.outage import is_outage
from runtime.safe_text import describe, line_of, name_of, seconds_of, text_of
from runtime.threads import FunctionThreads
from runtime.time_limit import TimeLimit, TimeLimitExceeded
from runtime.user_frames import format_traceback, where_of

BISECT_CALLS = 64
"""A batch that keeps failing is split at most this often, so that a bug does not multiply the
calls. On a message's last attempt there is no limit, as no good message may become a dead
letter."""


@dataclass(frozen=True, slots=True)
class Done:
    """The effect is durable."""


@dataclass(frozen=True, slots=True)
class Later:
    """Another attempt is due.

    Attributes:
        delay_s: least time to wait, in seconds.
        outage: the exception, when it says that a server is unavailable. When a check confirms the
            outage, the attempt does not count; otherwise `Dispatcher.judge` the exception again.
        note: a warning for the log, such as a delay that could not be used.
        failure: the exception; None when it was raised in another process.
        where: the function's line that failed, when in another process; see `place`.
    """

    delay_s: float
    reason: str
    error_type: str = ""
    outage: Exception | None = None
    note: str = ""
    failure: Exception | None = field(default=None, compare=False, repr=False)
    where: str = field(default="", compare=False)

    def place(self) -> str:
        """`file:line` of the function's own code that failed; empty when it is not known."""
        return self.where or (where_of(self.failure) if self.failure else "")


@dataclass(frozen=True, slots=True)
class Dead:
    """No attempt is left, or another attempt would not help."""

    code: str
    reason: str
    error_type: str = ""
    traceback: str = ""
    failure: Exception | None = field(default=None, compare=False, repr=False)
    where: str = field(default="", compare=False)

    def place(self) -> str:
        """`file:line` of the function's own code that failed; empty when it is not known."""
        return self.where or (where_of(self.failure) if self.failure else "")


Outcome = Done | Later | Dead

DONE = Done()


def retry_delay_s(policy: RetrySpec, attempt: int, chance: float) -> float:
    """Seconds to wait after the failed `attempt`.

    Args:
        policy: the function's.
        attempt: 1 for the first.
        chance: random number from 0 to 1, which spreads the delay by the policy's jitter.
    """
    if policy.schedule:
        base_s = policy.schedule[min(attempt, len(policy.schedule)) - 1]
    else:
        base_s = min(policy.cap, policy.delay * policy.factor ** min(attempt - 1, 64))
    return base_s * (1 + policy.jitter * (2 * chance - 1))


class Dispatcher:
    """Calls one function and decides the outcome of each message."""

    def __init__(
        self,
        function: Function,
        scope: Scope,
        *,
        threads: FunctionThreads,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.function = function
        self.scope = scope
        self._threads = threads
        self._chance = chance
        self._limit = TimeLimit(function.spec.timeout, scope.has_waited)
        self._limit_s = function.spec.timeout
        self._max_attempts = function.spec.retry.max_attempts
        self._loop = asyncio.get_running_loop()

    @property
    def timeouts(self) -> int:
        """Number of calls that the time limit ended."""
        return self._limit.exceeded

    async def run_event(self, message: Message) -> Outcome:
        """Run a single-event function on one message, a scheduled one on its tick."""
        if message.unreadable is not None:
            return _judge_unreadable(message)
        function, context = self.function, None
        try:
            if not function.is_async:
                await self._threads.wait_for_thread()
            context = self._context(message)
            if function.shape == "schedule":
                await self._call(context)
            else:
                data = message.data if function.decode is None else self._decode(message.data)
                await self._call(Event(message, data), context)
            if context.effects is not None and context.effects.left():
                await context.effects.check()
        except Exception as failure:  # noqa: BLE001 - whatever a function raises is judged
            if context is not None and context.effects is not None:
                await context.effects.close()
            return self.judge(message, failure)
        return DONE

    async def run_batch(self, messages: Sequence[Message]) -> list[Outcome]:
        """Run a batch function; return an outcome for each message, in their order.

        A batch that fails as a whole is split in halves until the message that fails is alone; the
        good halves are done. A failure that no single message causes (a `Retry`, an outage, the
        time limit) does not split the batch.
        """
        outcomes: dict[Message, Outcome] = {}
        calls = 0
        parts = [self._decode_all(messages, outcomes)]
        while parts:
            part = parts.pop()
            if not part:
                continue
            calls += 1
            failure = await self._run_part(part, outcomes)
            if failure is None:
                continue
            if self._is_worth_splitting(part, failure, calls):
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
                continue
            for event in part:
                outcomes[event.message] = self.judge(event.message, failure)
        return [outcomes.get(message, DONE) for message in messages]

    async def run_request(self, message: Message) -> bytes:
        """Run an endpoint's function; return the reply's payload.

        Raises:
            PayloadError: the request does not fit the annotation.
            TimeLimitExceeded: the function took too long.
            Retry: no thread is free to run a plain function.
            Exception: the exception that the function raised.
        """
        function = self.function
        if not function.is_async and not self._threads.has_room:
            raise Retry("calls that do not end have taken all threads of the function")
        data = message.data if function.decode is None else self._decode(message.data)
        context = self._context(message)
        try:
            answer = await self._call(Event(message, data), context)
            if context.effects is not None and context.effects.left():
                await context.effects.check()
        except Exception:
            if context.effects is not None:
                await context.effects.close()
            raise
        try:
            return function.encode(answer)
        except BaseException as raised:  # a model's own serializer may raise anything
            raise failure_of(raised, asyncio.current_task()) from raised

    def judge(self, message: Message, failure: Exception, *, excuse: bool = True) -> Outcome:
        """The outcome of a message whose function raised `failure`.

        Args:
            message: the message.
            failure: the exception.
            excuse: whether an outage may be the cause; False when the servers have answered a
                check.
        """
        # Whatever the outcome, a call has been made: another call may repeat its effects.
        message.called_before = True
        kind = name_of(failure)
        if isinstance(failure, Reject):
            reason = mask(text_of(failure.reason))
            return Dead(line_of(failure.code), reason, kind, failure=failure)
        if isinstance(failure, PayloadError):
            return Dead("PAYLOAD_INVALID", text_of(failure.reason), kind, failure=failure)
        outage = failure if excuse and is_outage(failure) else None
        if message.attempt >= self._max_attempts and outage is None:
            code = "TIMEOUT" if isinstance(failure, TimeLimitExceeded) else "ATTEMPTS_EXHAUSTED"
            trace = mask(format_traceback(failure))
            return Dead(code, mask(describe(failure)), kind, trace, failure)
        return self._later(message, failure, kind, outage)

    def _later(
        self, message: Message, failure: Exception, kind: str, outage: Exception | None
    ) -> Later:
        note, delay_s = "", None
        if isinstance(failure, Retry) and failure.delay_s is not None:
            delay_s = seconds_of(failure.delay_s)
            if delay_s is None:
                note = "its delay_s is not a number of seconds, the retry policy's delay is used"
        if delay_s is None:
            policy = self.function.spec.retry
            delay_s = retry_delay_s(policy, message.attempt, self._chance())
        return Later(delay_s, mask(describe(failure)), kind, outage, note, failure)

    def _decode(self, data: bytes) -> Any:  # noqa: ANN401 - typed by the annotation
        """Decode the payload to the type of the annotation.

        Raises:
            PayloadError: the payload does not fit.
            Exception: the exception of a validator.
        """
        decode = self.function.decode
        if decode is None:
            return data
        try:
            return decode(data)
        except Exception:
            raise
        except BaseException as raised:
            raise failure_of(raised, asyncio.current_task()) from raised

    def _decode_all(
        self, messages: Sequence[Message], outcomes: dict[Message, Outcome]
    ) -> list[Event[Any]]:
        """The events of the messages that fit the annotation; the others get their outcome."""
        if any(message.unreadable is not None for message in messages):
            bad = [message for message in messages if message.unreadable is not None]
            outcomes |= {message: _judge_unreadable(message) for message in bad}
            messages = [message for message in messages if message.unreadable is None]
        if self.function.decode is None:
            return [Event(message, message.data) for message in messages]
        events: list[Event[Any]] = []
        for message in messages:
            try:
                events.append(Event(message, self._decode(message.data)))
            except Exception as misfit:  # noqa: BLE001 - a model's own validator raises what it likes
                outcomes[message] = self.judge(message, misfit)
        return events

    async def _run_part(
        self, part: Sequence[Event[Any]], outcomes: dict[Message, Outcome]
    ) -> Exception | None:
        batch = Batch(part)
        attempt = max([event.message.attempt for event in part])
        if not self.function.is_async:
            await self._threads.wait_for_thread()
        context = self._context(None, attempt)
        try:
            await self._call(batch, context)
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
                    outcomes[event.message] = self.judge(event.message, steering)
        return None

    def _is_worth_splitting(
        self, part: Sequence[Event[Any]], failure: Exception, calls: int
    ) -> bool:
        if len(part) == 1 or not _may_be_one_message(failure):
            return False
        last = self._max_attempts
        return calls < BISECT_CALLS or any(event.message.attempt >= last for event in part)

    def _context(self, message: Message | None, attempt: int = 1) -> WatchedContext:
        deadline_s = self._loop.time() + self._limit_s
        if message is not None:
            attempt = message.attempt
        return WatchedContext(self.scope, message, deadline_s=deadline_s, attempt=attempt)

    def _call(self, *arguments: Any) -> Awaitable[Any]:  # noqa: ANN401 - the function's own
        """Call the function with its arguments, the last of which is the context."""
        function = self.function
        call: Awaitable[Any]
        if function.is_async:
            call = function.handler(*arguments)
        else:
            call = self._loop.run_in_executor(self._threads, function.handler, *arguments)
        return self._limit.enforce(call, arguments[-1].deadline_s)


def _judge_unreadable(message: Message) -> Dead:
    """The outcome of an invalid NATS message, which is not passed to a function."""
    reason = message.unreadable.reason if message.unreadable is not None else ""
    return Dead("MESSAGE_UNREADABLE", reason)


def _may_be_one_message(failure: Exception) -> bool:
    return not (isinstance(failure, Retry | TimeLimitExceeded) or is_outage(failure))
