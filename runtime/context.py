"""The context that every call of a function gets, and the interfaces behind it."""

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Protocol

import structlog
from typing_extensions import TypeVar

from runtime.call.effects import Effects
from runtime.errors import ConfigError, Problem
from runtime.message import DUE_AT, Event, Message

if TYPE_CHECKING:
    import asyncpg
    import httpx

StateT = TypeVar("StateT", default=Any)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PubAck:
    """JetStream's confirmation that a message is stored.

    Attributes:
        stream: the stream that stores the message.
        sequence: the message's sequence in the stream.
        duplicate: True when the stream had a message with this id already and stored nothing new.
    """

    stream: str
    sequence: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """An endpoint's answer."""

    data: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Publication:
    """A message to store, for `Context.publish_many`."""

    subject: str
    data: bytes
    msg_id: str
    headers: Mapping[str, str] = field(default_factory=dict)


class BrokerPort(Protocol):
    """The broker operations that a context needs."""

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str | None,
        headers: Mapping[str, str] | None = None,
    ) -> PubAck:
        """Store one message; raises PublishFailed unless JetStream confirmed it."""

    async def publish_many(self, publications: Sequence[Publication]) -> list[PubAck]:
        """Store several messages; raises PublishFailed unless JetStream confirmed all."""

    async def publish_core(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Publish one message without confirmation."""

    async def request(
        self,
        subject: str,
        data: bytes,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Call an endpoint; raises RequestFailed for its error, NoAnswer when none answers."""

    async def request_many(self, subject: str, data: bytes, *, wait_s: float) -> list[Reply]:
        """Call all subscribers; return the answers that arrive within `wait_s`, maybe none."""

    async def in_progress(self, message: Message) -> None:
        """Tell JetStream that this message is still being worked on."""


@dataclass(slots=True)
class Scope:
    """State that all calls of one function share. Built before `start`, dropped after `stop`."""

    function: str
    settings: Any
    broker: BrokerPort
    resources: Mapping[str, Any]
    log: structlog.stdlib.BoundLogger
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    state: Any = None

    def has_waited(self, task: "asyncio.Task[Any]") -> bool:
        """Whether a task's call waits for a connection, or waited since the last check.

        The waiting does not count towards the call's time limit.
        """
        has_waited: Callable[[asyncio.Task[Any]], bool] | None = getattr(
            self.resources.get("postgres"), "has_waited", None
        )
        return has_waited is not None and has_waited(task)


class Context(Generic[StateT]):
    """The argument through which every call of a function uses the host.

    Every `publish`, `publish_many`, `publish_core`, `request`, `request_many` and `in_progress` of
    a call must have ended when the function returns: a call that leaves one without `await`, or in
    a task that still runs, has failed. In a service they may run on.

    Attributes:
        deadline_s: time of the event loop's clock at which the time limit ends the call.
        attempt: 1 on a message's first delivery; for a batch the highest of its messages.
    """

    __slots__ = ("_effects", "_message", "_published", "_scope", "attempt", "deadline_s")

    def __init__(
        self,
        scope: Scope,
        message: Message | None = None,
        *,
        deadline_s: float = 0.0,
        attempt: int = 1,
    ) -> None:
        self._effects: Effects | None = None
        self._scope = scope
        self._message = message
        self._published = 0
        self.deadline_s = deadline_s
        self.attempt = attempt

    @property
    def function(self) -> str:
        """The function's name in the manifest."""
        return self._scope.function

    @property
    def settings(self) -> Any:  # noqa: ANN401 - typed by the function's own Settings model
        """The function's `Settings`, filled from the manifest; None when the module has none."""
        return self._scope.settings

    @property
    def state(self) -> StateT:
        """The value that the module's `start` returned."""
        state: StateT = self._scope.state
        return state

    @property
    def stopping(self) -> asyncio.Event:
        """An event that is set when the host drains; a service must return soon after."""
        return self._scope.stopping

    @property
    def log(self) -> structlog.stdlib.BoundLogger:
        """A logger that carries the function's name, and a single event's stream and sequence."""
        message = self._message
        if message is None or not message.stream:
            return self._scope.log
        return self._scope.log.bind(stream=message.stream, sequence=message.sequence)

    @property
    def remaining_s(self) -> float:
        """Seconds until the function's time limit."""
        try:
            now_s = asyncio.get_running_loop().time()
        except RuntimeError:  # In the thread of a plain function; the loop's clock is this one.
            now_s = time.monotonic()
        return max(0.0, self.deadline_s - now_s)

    @property
    def due_at(self) -> datetime | None:
        """When a scheduled function's tick was due, aware UTC; None for any other function.

        The same on every attempt. With `missed: once` it may be long past.
        """
        due_at = self._message.headers.get(DUE_AT) if self._message is not None else None
        return datetime.fromisoformat(due_at) if due_at is not None else None

    @property
    def postgres(self) -> "asyncpg.Pool[asyncpg.Record]":
        """The function's share of the pool; the manifest must say `uses: [postgres]`."""
        pool: asyncpg.Pool[asyncpg.Record] = self._resource("postgres")
        return pool

    @property
    def http(self) -> "httpx.AsyncClient":
        """A shared HTTP client; the manifest must say `uses: [http]`."""
        client: httpx.AsyncClient = self._resource("http")
        return client

    def publish(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Coroutine[Any, Any, PubAck]:
        """Store a message in the stream that has `subject`, and wait for the confirmation.

        Without `msg_id` the id is made of the event's stream, sequence, function and a count, so
        that the same call on a redelivery stores no second message. A batch or a service must give
        `msg_id`, because it has no single event to derive the id from.

        Raises:
            PublishFailed: JetStream did not confirm. Do not catch it, and the event is retried.
            Unsendable: the server would not accept the message (`TooLarge`: for its size); counts
                as a failure of the event.
            ValueError: no `msg_id`, and no single stored event to derive one from.
        """
        return self._begin("publish", self._publish(subject, data, msg_id, headers))

    def publish_many(
        self, publications: Sequence[Publication]
    ) -> Coroutine[Any, Any, list[PubAck]]:
        """Store several messages and wait for all confirmations together.

        Raises:
            PublishFailed: at least one message was not confirmed; the others may be stored, and
                their ids keep a repeated call from storing them twice.
            Unsendable: the server would not accept one message; those before it may be stored.
        """
        return self._begin("publish_many", self._scope.broker.publish_many(publications))

    def publish_core(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None
    ) -> Coroutine[Any, Any, None]:
        """Publish a message without confirmation: lost when no subscriber or stream takes it."""
        work = self._scope.broker.publish_core(subject, data, headers=headers)
        return self._begin("publish_core", work)

    def request(
        self,
        subject: str,
        data: bytes,
        *,
        timeout_s: float = 5.0,
        headers: Mapping[str, str] | None = None,
    ) -> Coroutine[Any, Any, Reply]:
        """Call a micro-service endpoint and wait for its answer.

        Raises:
            RequestFailed: the endpoint answered with an error.
            NoAnswer: no endpoint has the subject, or no answer arrived within `timeout_s`.
            Unavailable: NATS is not connected.
            Unsendable: the server would not accept the request.
        """
        work = self._scope.broker.request(subject, data, timeout_s=timeout_s, headers=headers)
        return self._begin("request", work)

    def request_many(
        self, subject: str, data: bytes = b"", *, wait_s: float = 1.0
    ) -> Coroutine[Any, Any, list[Reply]]:
        """Call all subscribers of `subject`; return the answers within `wait_s`, maybe none.

        For discovery: `$SRV.INFO` asks every micro service (source: NATS ADR-32).
        """
        work = self._scope.broker.request_many(subject, data, wait_s=wait_s)
        return self._begin("request_many", work)

    def in_progress(self) -> Coroutine[Any, Any, None]:
        """Restart the event's ack wait now; the host also does so periodically."""
        return self._begin("in_progress", self._in_progress())

    def _begin(self, _name: str, work: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """The effect that a public method returns."""
        return work

    async def _publish(
        self, subject: str, data: bytes, msg_id: str | None, headers: Mapping[str, str] | None
    ) -> PubAck:
        if msg_id is None:
            msg_id = self._derived_id()
        return await self._scope.broker.publish(subject, data, msg_id=msg_id, headers=headers)

    async def _in_progress(self) -> None:
        if self._message is not None and self._message.reply:
            await self._scope.broker.in_progress(self._message)

    def _derived_id(self) -> str:
        message = self._message
        if message is None or not message.stream:
            raise ValueError(
                "publish needs a msg_id here: there is no single stored event to derive one from"
            )
        self._published += 1
        return f"{message.origin}-{self._scope.function}-{self._published}"

    def _resource(self, name: str) -> Any:  # noqa: ANN401 - each property narrows it
        try:
            return self._scope.resources[name]
        except KeyError:
            raise ConfigError(
                [
                    Problem(
                        where=f"function {self._scope.function}",
                        field="uses",
                        wrong=f"the function asks for {name!r}, which its manifest does not list",
                        remedy=f"add {name} to its `uses:`",
                    )
                ]
            ) from None


class WatchedContext(Context[StateT]):
    """A context whose effects the host checks when the function has returned."""

    __slots__ = ()

    @property
    def effects(self) -> Effects | None:
        """The effects that the call has begun; None when there are none."""
        return self._effects

    def _begin(self, name: str, work: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        effects = self._effects
        if effects is None:
            effects = self._effects = Effects()
        # The frame of the function: it called the public method, which called this one.
        frame = sys._getframe(2)  # noqa: SLF001 - there is no other way to the caller's line
        effects.add((work, name, frame.f_code, frame.f_lineno))
        return work


__all__ = ["BrokerPort", "Context", "Event", "Message", "PubAck", "Publication", "Reply", "Scope"]
