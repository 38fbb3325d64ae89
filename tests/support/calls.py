"""Calls functions directly on a real database, and records the messages that they send."""

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args, get_type_hints

import asyncpg
import structlog
from pydantic import BaseModel

from functions.domain.rate_limiter import RateLimiter
from runtime import Context, Event, Message, PubAck, Publication, Reject, Reply, Unavailable
from runtime.context import Scope
from runtime.loader.payload import encode

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

STORED_AT_NS = 1_790_000_000_000_000_000


@dataclass
class Outbox:
    """Records messages in place of a broker, for functions that send without storing."""

    sent: list[tuple[str, bytes]] = field(default_factory=list)
    is_away: bool = False

    async def publish_core(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None
    ) -> None:
        assert headers is None
        if self.is_away:
            raise Unavailable("NATS", "the test says so")
        self.sent.append((subject, data))

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str | None,
        headers: Mapping[str, str] | None = None,
    ) -> PubAck:
        raise NotImplementedError

    async def publish_many(self, publications: Sequence[Publication]) -> list[PubAck]:
        raise NotImplementedError

    async def request(
        self,
        subject: str,
        data: bytes,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        raise NotImplementedError

    async def request_many(self, subject: str, data: bytes, *, wait_s: float) -> list[Reply]:
        raise NotImplementedError

    async def pull(
        self, stream: str, durable: str, *, messages: int, size_bytes: int, wait_s: float
    ) -> list[Message]:
        raise NotImplementedError

    async def in_progress(self, message: Message) -> None:
        raise NotImplementedError


@dataclass
class Caller:
    """Calls handlers on one database."""

    pool: "asyncpg.Pool[asyncpg.Record]"
    outbox: Outbox = field(default_factory=Outbox)
    settings: Any = None
    state: Any = None

    def context(self, message: Message | None = None, settings: Any = None) -> Context:
        resources = {"postgres": self.pool}
        chosen = self.settings if settings is None else settings
        scope = Scope("test", chosen, self.outbox, resources, structlog.get_logger())
        # What limits a rate gets; other handlers do not look at it.
        scope.state = RateLimiter(100_000, 1_000_000) if self.state is None else self.state
        return Context(scope, message)

    async def ask(
        self, handler: Callable[[Event[M], Context], Awaitable[T]], /, **fields: Any
    ) -> T:
        """Call an endpoint with a payload for its model; checks that the reply can be encoded."""
        request: type[M] = get_args(get_type_hints(handler)["event"])[0]
        message = Message("management.test", b"")
        reply = await handler(Event(message, request.model_validate(fields)), self.context(message))
        assert encode(reply)
        return reply

    async def refuse(
        self, handler: Callable[[Event[M], Context], Awaitable[Any]], /, **fields: Any
    ) -> tuple[str, int]:
        """Code and status of an endpoint's refusal."""
        try:
            await self.ask(handler, **fields)
        except Reject as refusal:
            return refusal.code, refusal.status
        raise AssertionError("the endpoint did not refuse")

    async def deliver(
        self, handler: Callable[[Event[bytes], Context], Awaitable[None]], message: Message
    ) -> None:
        """Call a consumer's function with a stored message.

        A function whose `Settings` the caller has not gets its defaults, and one with a `start`
        that state, unless the caller has one.
        """
        module = sys.modules[handler.__module__]
        model = getattr(module, "Settings", None)
        settings = model() if model and not isinstance(self.settings, model) else None
        context = self.context(message, settings)
        if self.state is not None or not hasattr(module, "start"):
            await handler(Event(message, message.data), context)
            return
        context = context.with_state(await module.start(context))
        try:
            await handler(Event(message, message.data), context)
        finally:
            if hasattr(module, "stop"):
                await module.stop(context)


def stored(subject: str, data: bytes, sequence: int, *, stream: str) -> Message:
    """A stored message; its stored time is one second later with each sequence."""
    return Message(
        subject,
        data,
        stream=stream,
        sequence=sequence,
        stored_at_ns=STORED_AT_NS + sequence * 1_000_000_000,
    )
