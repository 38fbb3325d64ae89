"""Calls a loaded function without a server, by the dispatcher that the host uses.

The function's effects are recorded instead of sent, and the result says how the host would settle
each message. `runtime invoke` and the unit tests of functions are built on it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from runtime.binding.settlement import PARK_FROM_S
from runtime.call.call_task import create_call_task
from runtime.call.error_reply import error_reply_of
from runtime.call.function_version import Owner
from runtime.call.threads import FunctionThreads
from runtime.context import Scope, WatchedContext
from runtime.deployments.hooks import Hooks
from runtime.dispatch import Dead, Dispatcher, Done, Later, Outcome
from runtime.errors import ConfigError, Problem
from runtime.loader import Function
from runtime.local.recorded_effects import RecordedEffects, Sent
from runtime.local.recorded_logs import LogLine, RecordedLogs
from runtime.message import Message
from runtime.user_frames import where_of

Action = Literal["ack", "nak", "park", "wait", "dead letter"]
_EVENT_ID = "local"


@dataclass(frozen=True, slots=True)
class Settling:
    """What the host would do with a message.

    Attributes:
        action: `ack`; `nak` with a delay; `park` in the mailbox; `wait` in the buffer, for an
            ordered function; or `dead letter`.
        delay_s: seconds until the next attempt; 0 for `ack` and `dead letter`.
        code: reason code of a dead letter; empty otherwise.
        reason: one sentence for a person; empty for `ack`.
        error_type: class of the exception; empty when there was none.
        where: `file:line` of the function's own code that failed; empty when it is not known.
    """

    action: Action
    delay_s: float = 0.0
    code: str = ""
    reason: str = ""
    error_type: str = ""
    where: str = ""

    def __str__(self) -> str:
        if self.action == "ack":
            return "ack"
        place = f" at {self.where}" if self.where else ""
        if self.action == "dead letter":
            return f"dead letter {self.code}: {self.reason}{place}"
        cause = self.reason if self.error_type in ("", "Retry") else _named(self)
        return f"{self.action}, again in {self.delay_s:g} s: {cause}{place}"


@dataclass(frozen=True, slots=True)
class LocalResult:
    """What one local call did.

    Attributes:
        messages: the messages of the call.
        settled: how each message would be settled; empty for an endpoint and a service.
        reply: the payload of an endpoint's answer, of a refusal too; None for other functions.
        error: status and code of an endpoint's refusal; None when it answered.
        failure: the exception; None when the function returned. For a batch that of the first
            message that failed.
        where: `file:line` of the function's own code that failed; empty when it is not known.
        sent: the messages that the function sent.
        logs: what the function logged.
        elapsed_s: how long the call took.
    """

    messages: tuple[Message, ...]
    settled: tuple[Settling, ...]
    reply: bytes | None
    error: tuple[int, str] | None
    failure: Exception | None
    where: str
    sent: tuple[Sent, ...]
    logs: tuple[LogLine, ...]
    elapsed_s: float


class LocalFunction:
    """A function with its state, for local calls; as a context manager it runs `start` and `stop`.

    Args:
        function: the loaded function.
        effects: takes what the function sends; a new `RecordedEffects` unless given.
        resources: what `ctx.postgres` and `ctx.http` are, by `postgres` and `http`. A function that
            uses one that is not given gets a ConfigError, which `call` raises.
        state: what `ctx.state` is; the hooks `start` and `stop` are then not called.
    """

    def __init__(
        self,
        function: Function,
        *,
        effects: RecordedEffects | None = None,
        resources: Mapping[str, Any] | None = None,
        state: Any = None,  # noqa: ANN401 - the function's own
    ) -> None:
        self.function = function
        self.effects = effects or RecordedEffects()
        self._logs = RecordedLogs()
        self._resources = _Resources(function, resources or {})
        self._scope = Scope(
            function.name,
            function.settings,
            self.effects,
            self._resources,
            self._logs.logger(function.name),
            state=state,
            max_attempts=function.spec.retry.max_attempts,
        )
        self._has_state = state is not None
        self._hooks = Hooks(function, WatchedContext(self._scope), Owner())
        self._threads = FunctionThreads(function.name, function.spec.concurrency)
        self._dispatcher = Dispatcher(function, self._scope, threads=self._threads, chance=_middle)

    async def __aenter__(self) -> Self:
        """Run the module's `start`.

        Raises:
            ConfigError: the hook failed, or a resource that it uses is not given.
            Unavailable: a server that the hook needs does not answer.
        """
        if not self._has_state:
            self._scope.state = await self._hooks.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._has_state:
            await self._hooks.stop()
        self._threads.shutdown()

    async def call(self, *messages: Message) -> LocalResult:
        """Call the function once: a batch function with all messages, any other with one.

        A schedule's message is its tick, a service needs none. The call is not repeated after a
        failure, but a batch is split as the host would split it.

        Raises:
            ValueError: the function takes one message.
            ConfigError: the function uses a resource that is not given.
        """
        function = self.function
        if function.shape == "service":
            messages = ()
        elif function.shape != "batch" and len(messages) != 1:
            raise ValueError(f"{function.name} takes one message, not {len(messages)}")
        first_sent = len(self.effects.sent)
        began_s = time.perf_counter()
        with self._logs.recording() as lines:
            # In a task of its own: a function may cancel its task.
            done = await create_call_task(self._run(messages), name=f"call {function.name}")
        elapsed_s = time.perf_counter() - began_s
        if self._resources.missing is not None:
            raise self._resources.missing
        return LocalResult(
            messages=messages,
            settled=tuple(settling_of(each, function) for each in done.outcomes),
            reply=done.reply,
            error=done.error,
            failure=done.failure,
            where=where_of(done.failure) if done.failure is not None else "",
            sent=tuple(self.effects.sent[first_sent:]),
            logs=tuple(lines),
            elapsed_s=elapsed_s,
        )

    async def _run(self, messages: Sequence[Message]) -> "_Done":
        shape = self.function.shape
        if shape == "service":
            return await self._serve()
        if shape == "batch":
            outcomes = await self._dispatcher.run_batch(messages)
        elif self.function.spec.endpoint is not None:
            return await self._ask(messages[0])
        else:
            outcomes = [await self._dispatcher.run_event(messages[0])]
        failures = (each.failure for each in outcomes if not isinstance(each, Done))
        return _Done(outcomes, failure=next((each for each in failures if each), None))

    async def _ask(self, message: Message) -> "_Done":
        try:
            return _Done(reply=(await self._dispatcher.run_request(message)).data)
        except Exception as failure:  # noqa: BLE001 - whatever a function raises becomes an answer
            reply = error_reply_of(failure)
            error = (reply.status, reply.code)
            return _Done(reply=reply.body(_EVENT_ID), error=error, failure=failure)

    async def _serve(self) -> "_Done":
        try:
            await self.function.handler(WatchedContext(self._scope))
        except Exception as failure:  # noqa: BLE001 - the host logs it and starts the service again
            return _Done(failure=failure)
        return _Done()


@dataclass(slots=True)
class _Done:
    outcomes: Sequence[Outcome] = ()
    reply: bytes | None = None
    error: tuple[int, str] | None = None
    failure: Exception | None = None


class _Resources(dict[str, Any]):
    """The resources of a function; remembers the error of one that was not given."""

    def __init__(self, function: Function, given: Mapping[str, Any]) -> None:
        super().__init__(given)
        self._function = function
        self.missing: ConfigError | None = None

    def __missing__(self, name: str) -> Any:  # noqa: ANN401 - raises
        if name not in self._function.spec.uses:
            raise KeyError(name)
        wrong = f"the function uses {name}, and this call was given none"
        problem = Problem(f"function {self._function.name}", "uses", wrong, _REMEDIES[name])
        self.missing = ConfigError([problem])
        raise self.missing


_REMEDIES = {
    "postgres": "give its address as database_url; the pytest fixture embedded_postgres has one",
    "nats_system": "give `resources={'nats_system': account}`, a connection to the system account",
    "http": "give `resources={'http': client}`, an httpx.AsyncClient",
}


def settling_of(outcome: Outcome, function: Function) -> Settling:
    """How the host settles a message with this outcome, when its servers work."""
    if isinstance(outcome, Dead):
        return Settling(
            "dead letter",
            code=outcome.code,
            reason=outcome.reason,
            error_type=outcome.error_type,
            where=outcome.place(),
        )
    if isinstance(outcome, Later):
        is_parked = outcome.delay_s >= PARK_FROM_S or not outcome.counts or outcome.is_beyond
        action: Action = "park" if is_parked else "nak"
        if function.spec.ordered_by is not None:
            action = "wait"
        return Settling(
            action,
            delay_s=round(outcome.delay_s, 3),
            reason=outcome.reason,
            error_type=outcome.error_type,
            where=outcome.place(),
        )
    return Settling("ack")


def _named(settling: Settling) -> str:
    if settling.reason == settling.error_type:
        return settling.error_type
    return f"{settling.error_type}: {settling.reason}"


def _middle() -> float:
    """A retry's delay without jitter, so that a test can name it."""
    return 0.5


__all__ = ["Action", "LocalFunction", "LocalResult", "Settling", "settling_of"]
