"""The context that every call of a function gets, and the interfaces behind it."""

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Protocol

import structlog
from typing_extensions import TypeVar

from runtime.call.effects import Effect, Effects
from runtime.errors import ConfigError, Problem
from runtime.message import DUE_AT, Event, Message

if TYPE_CHECKING:
    import asyncpg
    import httpx

MOST_PULL_WAIT_S = 60
MOST_DELAYS = 99
LONGEST_DELAY_S = 7 * 86_400
"""The bounds of a message's own retry schedule, those of `retry.schedule` in a manifest."""

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


@dataclass(frozen=True, slots=True)
class RetrySchedule:
    """The waits between the attempts of one message, in place of the function's retry policy.

    Attributes:
        delays_s: seconds to wait after each failed attempt; there is one attempt more.
        jitter: the share by which a wait varies at random, up or down.
    """

    delays_s: tuple[float, ...]
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if len(self.delays_s) > MOST_DELAYS:
            raise ValueError(f"a retry schedule has at most {MOST_DELAYS} delays")
        # The comparisons are false for NaN.
        if not all(0.0 < delay_s <= LONGEST_DELAY_S for delay_s in self.delays_s):
            raise ValueError(f"a delay is above 0 and at most {LONGEST_DELAY_S:,} seconds")
        if not 0.0 <= self.jitter <= 1.0:
            raise ValueError("jitter is a share from 0 to 1")


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

    async def pull(
        self, stream: str, durable: str, *, messages: int, size_bytes: int, wait_s: float
    ) -> list[Message]:
        """Pull what a durable consumer has; see `Context.pull`."""

    async def in_progress(self, message: Message) -> None:
        """Tell JetStream that this message is still being worked on."""


class Listening(Protocol):
    """A subscription of `SystemPort.subscribe`."""

    async def unsubscribe(self) -> None:
        """Stop at once; messages that have arrived and were not handled are dropped."""


class SystemPort(Protocol):
    """The subjects of the NATS servers themselves, in the cluster's system account."""

    @property
    def reconnects(self) -> int:
        """How often the connection was lost and rebuilt; events in between were not heard."""

    async def request(self, subject: str, data: bytes = b"", *, timeout_s: float) -> Reply:
        """The first answer; raises NoAnswer when no server answers."""

    async def request_many(self, subject: str, data: bytes = b"", *, wait_s: float) -> list[Reply]:
        """The answers of all servers that arrive within `wait_s` seconds, maybe none."""

    async def subscribe(self, subject: str, on_event: Callable[[str, bytes], None]) -> Listening:
        """Call `on_event` with subject and data of each event that a server publishes.

        It is called on the event loop and must not block. An event is published once, to whoever
        listens at that moment.
        """


@dataclass(slots=True)
class Scope:
    """State that all calls of one function share. Built before `start`, dropped after `stop`.

    `max_attempts`: attempts of a message by the function's retry policy; 0 if there is none.
    """

    function: str
    settings: Any
    broker: BrokerPort
    resources: Mapping[str, Any]
    log: structlog.stdlib.BoundLogger
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    state: Any = None
    max_attempts: int = 0
    _other: "Scope | None" = field(default=None, init=False, repr=False, compare=False)

    def with_state(self, state: Any) -> "Scope":  # noqa: ANN401 - of whatever type
        """The same with another state. The last one is kept: some functions ask in every call."""
        if self._other is None or self._other.state is not state:
            self._other = replace(self, state=state)
        return self._other

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
        retry_schedule: the schedule that `use_retry_schedule` has set; None for the function's own.
    """

    __slots__ = (
        "_effects",
        "_message",
        "_outer",
        "_published",
        "_scope",
        "attempt",
        "deadline_s",
        "retry_schedule",
    )

    def __init__(
        self,
        scope: Scope,
        message: Message | None = None,
        *,
        deadline_s: float = 0.0,
        attempt: int = 1,
    ) -> None:
        self._effects: Effects | None = None
        self._outer: Context[Any] | None = None
        self._scope = scope
        self._message = message
        self._published = 0
        self.retry_schedule: RetrySchedule | None = None
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

    @property
    def nats_system(self) -> SystemPort:
        """The system account of NATS; the manifest must say `uses: [nats_system]`.

        Raises:
            ConfigError: the host has no address of it; `start` is the place to find that out.
        """
        system: SystemPort | None = self._resource("nats_system")
        if system is None:
            wrong = "the function asks for the system account of NATS, whose address is not set"
            remedy = "set NATS_SYSTEM_URL to the servers' address with a user of that account"
            raise ConfigError([Problem(f"function {self.function}", "uses", wrong, remedy)])
        return system

    def with_state(self, state: T) -> "Context[T]":
        """A context of the same call with another `state`, for code that has a state of its own.

        What is begun with it belongs to this call: the host checks its effects too, the ids of
        published messages are counted together, and a retry schedule is the message's.
        """
        kind: type[Context[Any]] = type(self)
        scope = self._scope.with_state(state)
        inner = kind(scope, self._message, deadline_s=self.deadline_s, attempt=self.attempt)
        inner._outer = self._outer or self  # noqa: SLF001 - of this class
        return inner

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
                their ids keep a repeated call from storing them twice. `outcomes` has the
                confirmation or failure of each message.
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

    def pull(
        self,
        stream: str,
        durable: str,
        *,
        messages: int = 100,
        size_bytes: int = 1_000_000,
        wait_s: float = 0.0,
    ) -> Coroutine[Any, Any, list[Message]]:
        """Pull the next messages of a durable consumer, for an endpoint that serves its readers.

        Returns at once what is there; when nothing is, waits up to `wait_s` for the first message.
        Settle a message by a request to its `reply`: `await ctx.request(message.reply, b"+ACK")`
        returns when the server has it. A message that is not settled comes again after the
        consumer's ack wait.

        Args:
            stream: the stream.
            durable: a consumer that no function binds.
            messages: the most messages.
            size_bytes: the most bytes of them together, but one message may have more.
            wait_s: at most 60.

        Raises:
            NoAnswer: the consumer does not exist, or JetStream did not answer in time.
            RequestFailed: JetStream refused the request.
            Unavailable: NATS is not connected.
            Unsendable: a name is not valid.
            ValueError: a number is out of bounds.
        """
        if messages < 1 or size_bytes < 1 or not 0.0 <= wait_s <= MOST_PULL_WAIT_S:
            raise ValueError(f"pull takes 1 message, 1 byte and 0 to {MOST_PULL_WAIT_S} s or more")
        work = self._scope.broker.pull(
            stream, durable, messages=messages, size_bytes=size_bytes, wait_s=wait_s
        )
        return self._begin("pull", work)

    def use_retry_schedule(self, delays_s: Sequence[float], *, jitter: float = 0.2) -> None:
        """Judge this call by another schedule than the manifest's `retry`.

        It decides which attempt is the last, and how long to wait before the next one, however the
        call fails: by an exception, a `Retry` without a delay, or the time limit. It holds for this
        call alone, so a function calls this at each attempt.

        Args:
            delays_s: seconds to wait after each failed attempt, at most 99, each at most a week;
                there is one attempt more than delays.
            jitter: the share by which a wait varies at random, up or down.

        Raises:
            ValueError: a delay or their number is out of bounds, or the call has no single stored
                message: a batch, an endpoint, a service.
        """
        if self._message is None or not self._message.stream:
            raise ValueError("a retry schedule belongs to a single stored message")
        (self._outer or self).retry_schedule = RetrySchedule(tuple(map(float, delays_s)), jitter)

    @property
    def is_last_attempt(self) -> bool:
        """Whether the message is given up if this call fails.

        By the schedule of `use_retry_schedule` once the call has set one. A failure that counts as
        no attempt, such as an outage, is followed by another attempt in any case.
        """
        schedule = (self._outer or self).retry_schedule
        most = self._scope.max_attempts if schedule is None else len(schedule.delays_s) + 1
        return 0 < most <= self.attempt

    def in_progress(self) -> Coroutine[Any, Any, None]:
        """Restart the event's ack wait now; the host also does so periodically."""
        return self._begin("in_progress", self._in_progress())

    def _begin(self, _name: str, work: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """The effect that a public method returns."""
        return work

    def _watch(self, effect: Effect) -> None:
        """Take note of an effect; only a context that is watched does."""

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
        return f"{message.origin}-{self._scope.function}-{self._count_published()}"

    def _count_published(self) -> int:
        if self._outer is not None:
            return self._outer._count_published()  # noqa: SLF001 - of this class
        self._published += 1
        return self._published

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
        # The frame of the function: it called the public method, which called this one.
        frame = sys._getframe(2)  # noqa: SLF001 - there is no other way to the caller's line
        self._watch((work, name, frame.f_code, frame.f_lineno))
        return work

    def _watch(self, effect: Effect) -> None:
        if self._outer is not None:
            self._outer._watch(effect)  # noqa: SLF001 - of this class
            return
        if self._effects is None:
            self._effects = Effects()
        self._effects.add(effect)


__all__ = [
    "BrokerPort",
    "Context",
    "Event",
    "Listening",
    "Message",
    "PubAck",
    "Publication",
    "Reply",
    "RetrySchedule",
    "Scope",
]
