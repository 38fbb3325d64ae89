"""All that a function sees of the host: the context it is called with, and the ports behind it."""

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Protocol

import structlog
from typing_extensions import TypeVar

from runtime.effects import Effects
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
        stream: where it is stored.
        sequence: its sequence there.
        duplicate: True when the stream had a message with this id already and stored nothing new.
    """

    stream: str
    sequence: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """What an endpoint answered."""

    data: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Publication:
    """A message to be stored: for `Context.publish_many`."""

    subject: str
    data: bytes
    msg_id: str
    headers: Mapping[str, str] = field(default_factory=dict)


class BrokerPort(Protocol):
    """What a context needs of the broker layer."""

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
        """Store several, confirmations awaited together; raises PublishFailed if one is missing."""

    async def publish_core(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send one message that no stream need store."""

    async def request(
        self,
        subject: str,
        data: bytes,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Ask an endpoint; raises RequestFailed for its error, NoAnswer when none answers."""

    async def request_many(self, subject: str, data: bytes, *, wait_s: float) -> list[Reply]:
        """Ask everyone who listens; every answer that came within `wait_s`, none being no error."""

    async def in_progress(self, message: Message) -> None:
        """Tell JetStream that this message is still being worked on."""


@dataclass(slots=True)
class Scope:
    """What all calls of one function share. Built before `start`, dropped after `stop`."""

    function: str
    settings: Any
    broker: BrokerPort
    resources: Mapping[str, Any]
    log: structlog.stdlib.BoundLogger
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    state: Any = None

    def has_waited(self, task: "asyncio.Task[Any]") -> bool:
        """Whether a task's call waits for a connection, or did since this was asked last.

        That is no part of the call's time.
        """
        has_waited: Callable[[asyncio.Task[Any]], bool] | None = getattr(
            self.resources.get("postgres"), "has_waited", None
        )
        return has_waited is not None and has_waited(task)


class Context(Generic[StateT]):
    """Handed to every call of a function.

    Whatever a call begins with `publish`, `publish_many`, `publish_core`, `request`, `request_many`
    and `in_progress` must have ended when the function returns: a call that leaves one of them
    without `await`, or in a task that still runs, has failed. A service's may run on.

    Attributes:
        deadline_s: the event loop's clock at which the function's time limit ends it.
        attempt: 1 on a message's first delivery; a batch shows the highest among its messages.
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
        """The function's `Settings`, filled from the manifest; None where the module has none."""
        return self._scope.settings

    @property
    def state(self) -> StateT:
        """What the module's `start` returned."""
        state: StateT = self._scope.state
        return state

    @property
    def stopping(self) -> asyncio.Event:
        """Set when the host drains: a service returns soon after it."""
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
        # The loop's own clock, read so that a plain function can do it in its thread too.
        return max(0.0, self.deadline_s - time.monotonic())

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
        """Store a message in whatever stream owns `subject`, and wait until it is stored.

        Without `msg_id` the id is made of the event's stream, sequence, function and a count, so
        that the same call on a redelivery makes no second message. A batch or a service must name
        it, as nothing there would be the same again.

        Raises:
            PublishFailed: JetStream did not confirm; let it through and the message is retried.
            Unsendable: no server would take it, as `TooLarge` for its size; the event's failure.
            ValueError: no `msg_id`, and no single stored event to derive one from.
        """
        return self._begin("publish", self._publish(subject, data, msg_id, headers))

    def publish_many(
        self, publications: Sequence[Publication]
    ) -> Coroutine[Any, Any, list[PubAck]]:
        """Store several messages and wait for all their confirmations together.

        Raises:
            PublishFailed: at least one was not confirmed; the others may be stored, their ids keep
                a repeated call from doubling them.
            Unsendable: no server would take one; those before it may be stored.
        """
        return self._begin("publish_many", self._scope.broker.publish_many(publications))

    def publish_core(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None
    ) -> Coroutine[Any, Any, None]:
        """Send a message that no stream need store: lost if nobody listens."""
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
        """Ask a micro-service endpoint.

        Raises:
            RequestFailed: the endpoint answered with an error.
            NoAnswer: nobody listens on the subject, or no answer within `timeout_s`.
            Unavailable: NATS is away.
            Unsendable: no server would take the request.
        """
        work = self._scope.broker.request(subject, data, timeout_s=timeout_s, headers=headers)
        return self._begin("request", work)

    def request_many(
        self, subject: str, data: bytes = b"", *, wait_s: float = 1.0
    ) -> Coroutine[Any, Any, list[Reply]]:
        """Ask everyone who listens on `subject`: the answers that came within `wait_s`, maybe none.

        For discovery: `$SRV.INFO` asks every micro service (source: NATS ADR-32).
        """
        work = self._scope.broker.request_many(subject, data, wait_s=wait_s)
        return self._begin("request_many", work)

    def in_progress(self) -> Coroutine[Any, Any, None]:
        """Tell JetStream now that the event is worked on; the host's ticker does it anyway."""
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
    """A context whose effects the host looks at when the function has returned."""

    __slots__ = ()

    @property
    def effects(self) -> Effects | None:
        """Those that the call has begun; None for a call without any."""
        return self._effects

    def _begin(self, name: str, work: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        effects = self._effects
        if effects is None:
            effects = self._effects = Effects()
        # The frame of the function, which called the public method that calls this one.
        frame = sys._getframe(2)  # noqa: SLF001 - there is no other way to the caller's line
        effects.add((work, name, frame.f_code, frame.f_lineno))
        return work


__all__ = ["BrokerPort", "Context", "Event", "Message", "PubAck", "Publication", "Reply", "Scope"]
