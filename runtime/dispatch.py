"""One message or one batch in, outcomes out. Decides; the binding acts. No I/O of its own.

What a function may do with a delivery, and what becomes of it:

    returned                              Done
    raised Retry, or any other exception  Later, or Dead on the last attempt
    ran into its time limit               Later, or Dead on the last attempt
    raised Reject                         Dead
    payload does not fit the annotation   Dead
"""

import asyncio
import random
import traceback
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from runtime.context import Context, Scope
from runtime.errors import PayloadError, Reject, Retry
from runtime.loader import Function
from runtime.manifest.model import RetrySpec
from runtime.message import Batch, Event, Message
from runtime.resource.outage import is_outage
from runtime.time_limit import TimeLimit, TimeLimitExceeded

TRACEBACK_CHARACTERS = 8000
BISECT_CALLS = 64
"""A batch that keeps failing is split at most this often, lest a bug multiply the calls; but on a
message's last attempt as often as it takes, as no good one may end as a dead letter."""


@dataclass(frozen=True, slots=True)
class Done:
    """The effect is durable."""


@dataclass(frozen=True, slots=True)
class Later:
    """Another attempt is due.

    Attributes:
        delay_s: seconds to wait at least.
        outage: what was raised where it speaks of a server that is away. Where that proves true,
            the attempt does not count; where it does not, `Dispatcher.judge` it again.
    """

    delay_s: float
    reason: str
    error_type: str = ""
    outage: Exception | None = None


@dataclass(frozen=True, slots=True)
class Dead:
    """No attempt is left, or none would help."""

    code: str
    reason: str
    error_type: str = ""
    traceback: str = ""


Outcome = Done | Later | Dead

RAISED = (Exception, asyncio.CancelledError, SystemExit)
"""What a function may raise. A cancellation of its own making would silently end a worker."""

DONE = Done()


def retry_delay_s(policy: RetrySpec, attempt: int, chance: float) -> float:
    """Seconds to wait after the failed `attempt`.

    Args:
        policy: the function's.
        attempt: 1 for the first.
        chance: from 0 to 1, spreads the delay by the policy's jitter.
    """
    if policy.schedule:
        base_s = policy.schedule[min(attempt, len(policy.schedule)) - 1]
    else:
        base_s = min(policy.cap, policy.delay * policy.factor ** min(attempt - 1, 64))
    return base_s * (1 + policy.jitter * (2 * chance - 1))


class EndedItself(Exception):  # noqa: N818 - names what happened
    """The function raised what would end the host or its worker, had it been let through."""


class Dispatcher:
    """Calls one function and judges what came of it."""

    def __init__(
        self,
        function: Function,
        scope: Scope,
        *,
        threads: Executor,
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
        """How many calls the time limit ended."""
        return self._limit.exceeded

    async def run_event(self, message: Message) -> Outcome:
        """Run a single-event function on one message, a scheduled one on its tick."""
        function = self.function
        try:
            if function.shape == "schedule":
                await self._call(self._context(message))
            else:
                data = message.data if function.decode is None else function.decode(message.data)
                await self._call(Event(message, data), self._context(message))
        except RAISED as raised:
            return self.judge(message, _as_failure(raised))
        return DONE

    async def run_batch(self, messages: Sequence[Message]) -> list[Outcome]:
        """Run a batch function; an outcome per message, in their order.

        A batch that fails as a whole is split until the poison message stands alone, and the good
        halves are done. A failure that is no message's own (a `Retry`, an outage, the time limit)
        splits nothing.
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
        """Run an endpoint's function; the reply's payload.

        Raises:
            PayloadError: the request does not fit the annotation.
            TimeLimitExceeded: the function took too long.
            Exception: whatever the function raised.
        """
        function = self.function
        data = message.data if function.decode is None else function.decode(message.data)
        try:
            answer = await self._call(Event(message, data), self._context(message))
        except (asyncio.CancelledError, SystemExit) as raised:
            raise _as_failure(raised) from raised
        return function.encode(answer)

    def judge(self, message: Message, failure: Exception, *, excuse: bool = True) -> Outcome:
        """What becomes of a message whose function raised `failure`.

        Args:
            message: the one to judge.
            failure: what was raised.
            excuse: whether an outage may excuse it; False once the servers have proved to be up.
        """
        kind = type(failure).__name__
        if isinstance(failure, Reject):
            return Dead(failure.code, failure.reason, kind)
        if isinstance(failure, PayloadError):
            return Dead("PAYLOAD_INVALID", failure.reason, kind)
        reason = _describe(failure) or kind
        outage = failure if excuse and is_outage(failure) else None
        if message.attempt >= self._max_attempts and outage is None:
            trace = "".join(traceback.format_exception(failure))[-TRACEBACK_CHARACTERS:]
            code = "TIMEOUT" if isinstance(failure, TimeLimitExceeded) else "ATTEMPTS_EXHAUSTED"
            return Dead(code, reason, kind, trace)
        delay_s = failure.delay_s if isinstance(failure, Retry) else None
        if delay_s is None:
            delay_s = retry_delay_s(self.function.spec.retry, message.attempt, self._chance())
        return Later(delay_s, reason, kind, outage)

    def _decode_all(
        self, messages: Sequence[Message], outcomes: dict[Message, Outcome]
    ) -> list[Event[Any]]:
        """The events of those messages that fit the annotation; the others are judged."""
        decode = self.function.decode
        if decode is None:
            return [Event(message, message.data) for message in messages]
        events: list[Event[Any]] = []
        for message in messages:
            try:
                events.append(Event(message, decode(message.data)))
            except Exception as misfit:  # noqa: BLE001 - a model's own validator raises what it likes
                outcomes[message] = self.judge(message, misfit)
        return events

    async def _run_part(
        self, part: Sequence[Event[Any]], outcomes: dict[Message, Outcome]
    ) -> Exception | None:
        batch = Batch(part)
        attempt = max([event.message.attempt for event in part])
        try:
            await self._call(batch, self._context(None, attempt))
        except RAISED as raised:
            return _as_failure(raised)
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

    def _context(self, message: Message | None, attempt: int = 1) -> Context:
        deadline_s = self._loop.time() + self._limit_s
        if message is not None:
            attempt = message.attempt
        return Context(self.scope, message, deadline_s=deadline_s, attempt=attempt)

    def _call(self, *arguments: Any) -> Awaitable[Any]:  # noqa: ANN401 - the function's own
        """Call the function with its arguments, the last of which is the context."""
        function = self.function
        call: Awaitable[Any]
        if function.is_async:
            call = function.handler(*arguments)
        else:
            call = self._loop.run_in_executor(self._threads, function.handler, *arguments)
        return self._limit.enforce(call, arguments[-1].deadline_s)


def _as_failure(raised: BaseException) -> Exception:
    """What a function raised, as a failure of its own.

    Raises:
        CancelledError: it is the host that ends the call.
    """
    if isinstance(raised, Exception):
        return raised
    task = asyncio.current_task()
    if isinstance(raised, asyncio.CancelledError) and task is not None and task.cancelling():
        raise raised
    failure = EndedItself(f"the function raised {type(raised).__name__}")
    failure.__cause__ = raised
    return failure


def _describe(failure: Exception) -> str:
    try:
        return str(failure)
    except Exception:  # noqa: BLE001 - a function's own exception may be broken too
        return ""


def _may_be_one_message(failure: Exception) -> bool:
    return not (isinstance(failure, Retry | TimeLimitExceeded) or is_outage(failure))
